"""A decoder from its name: found without running anything that comes with it, loaded, and checked before it is used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_core.errors import ModelError, RomeError
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.discovery import discover
from rome_core.model.language_model import LanguageModel, Source, fingerprint
from rome_core.model.layout import LAYOUTS, Layout, is_recomputed
from rome_core.model.origin import ADAPTER, CONFIG, TOKENIZER, Origin, find_model
from rome_core.model.proof import TEXT, fit_logits, incapacities, prove
from rome_core.model.stored import check_plain, weight_files
from rome_core.progress import Track, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    track: Track = silent,
) -> LanguageModel:
    """Load a decoder: the default model, a local folder, or a Hugging Face id.

    device: "cpu", "cuda", …, or "auto" to spread a large model over all devices; None takes the GPU if there is one.

    Only safetensors are read, and no code that comes with a model is ever run: a model that names such code
    (`auto_map`) is refused, also where transformers has a class of its own for it, as the two may differ. So are
    quantised weights, an adapter beside the weights, missing and unknown tensors, and what `from_pretrained_parts`
    refuses. Raises ModelError.
    """
    placement = _placement(device)
    origin = find_model(str(name), revision, track)
    try:
        _check_files(origin)
        hf, tokenizer = _load(origin, dtype, placement)
        return from_pretrained_parts(hf, tokenizer, str(name), None, Source(origin.place, origin.commit))
    except RomeError:
        raise
    except Exception as error:  # other people's files: whatever transformers stumbles over is about them
        raise ModelError(
            f"The model '{name}' could not be loaded.",
            origin.reason(error),
            "Check the spelling, or give a local folder with config.json, tokenizer and *.safetensors.",
        ) from error


def from_pretrained_parts(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    layout: Layout | None = None,
    source: Source | None = None,
) -> LanguageModel:
    """Wrap a model that is already in memory. It is set to evaluation mode and its weights are frozen.

    source: where it can be loaded from again, which exported adapters name as their base.

    layout: of a family that is not in the table; found where it is not given. What cannot be done with the model stands
    in `LanguageModel.cannot`, each with its reason.

    Raises ModelError where its weights are not finite, where the tokenizer ends texts by itself, gives no offsets or
    has tokens without an embedding, where its parts are not found, and where logits are not those of the model's own
    pass.
    """
    hf.eval().requires_grad_(False)
    if lost := next((path for path, weight in hf.named_parameters() if weight.is_meta), None):
        raise ModelError(
            f"'{name}' does not fit into memory.", f"'{lost}' was left on the disk.", "Choose a smaller model or dtype."
        )
    embedding: Any = hf.get_input_embeddings()
    _check_tokenizer(tokenizer, len(embedding.weight), name)
    known = layout or LAYOUTS.get(str(hf.config.model_type))
    try:
        lm = LanguageModel(hf, tokenizer, known or discover(hf), name, fingerprint(hf), source)
        for layer in range(lm.n_layers if known else 0):
            for path in (*lm.layout.mlp_matrices(layer), lm.layout.module("attn_out", layer)):
                lm.matrix(path)
        lm = fit_logits(lm)
        return replace(lm, cannot=incapacities(prove(lm)))
    except RomeError:
        raise
    except Exception as error:  # a family's own code, given a model that does not suit it
        raise ModelError(
            f"'{name}' cannot read a text.", f"{type(error).__name__}: {str(error)[:200]}", "Choose another model."
        ) from error


# ------------------------------------------------------------------------------------------------------ what is loaded


def _check_files(origin: Origin) -> None:
    """Refuse what can be told from its files, before transformers is given any."""
    config, adapter = origin.settings(CONFIG), origin.settings(ADAPTER)
    if not config and (origin.is_folder or adapter):
        raise _no_model(origin, adapter)
    for file, settings in ((CONFIG, config), (TOKENIZER, origin.settings(TOKENIZER))):
        if "auto_map" in settings:
            raise ModelError(
                f"'{origin.name}' comes with code of its own (auto_map in {file}).",
                "Such code is never run, and without it the model may be another one.",
                f"Choose a model that transformers knows; if the code adds nothing to it, take auto_map out of {file}.",
            )
    if adapter:
        raise ModelError(
            f"'{origin.name}' holds an adapter beside the model's weights.",
            "It cannot be seen whether they are meant with it or without.",
            f"Merge it into the weights (peft: merge_and_unload), or take {ADAPTER} out of the folder.",
        )
    if config.get("quantization_config") is not None:
        raise ModelError(
            f"'{origin.name}' has quantised weights.",
            "Keys, values and updates need the plain ones.",
            "Choose the unquantised version of the model.",
        )
    if not config:  # of a repository: none, or out of reach
        raise OSError(f"It has no {CONFIG}.")
    _check_type(origin.name, config.get("model_type"))
    if not (files := weight_files(origin.find)):
        raise ModelError(
            f"'{origin.name}' has no safetensors.",
            "Weights of other formats are not read; pickled ones could run code.",
            "Save the model again with save_pretrained.",
        )
    check_plain(files, origin.name)


def _check_type(name: str, kind: Any) -> None:
    """Refuse what transformers has no decoder for."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not kind:
        raise ModelError(
            f"The model '{name}' cannot be loaded.", f"Its {CONFIG} names no model_type.", "Copy it again."
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"'{name}' is of type '{kind}', which transformers {transformers.__version__} does not know.",
            "",
            "Install a release that does, or choose another model.",
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"'{name}' is of type '{kind}', and no model of that type continues a text.",
            "Facts are followed through one stack of blocks.",
            "Choose a decoder (docs/models.md has a list).",
        )


def _no_model(origin: Origin, adapter: dict[str, Any]) -> ModelError:
    """What a folder without config.json is."""
    if adapter:
        return ModelError(
            f"'{origin.name}' is an adapter, no model.",
            f"Its base is '{adapter.get('base_model_name_or_path')}'.",
            "Load the base, and compare the adapter with it on the page Diagnose.",
        )
    files = sorted(path.name for path in Path(origin.place).iterdir())
    held = f"It holds {', '.join(files[:5])}{' …' if files[5:] else ''}." if files else "It is empty."
    if any(file.endswith(".gguf") for file in files):
        held += " GGUF holds quantised weights."
    return ModelError(
        f"'{origin.name}' has no {CONFIG}.", held, "Give a folder with config.json, tokenizer and *.safetensors."
    )


def _placement(device: str | torch.device | None) -> str | torch.device:
    """The device, tried; "auto" as it is."""
    if device == "auto":
        return "auto"
    try:
        chosen = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        raise ModelError(
            f"There is no device '{device}' here.", "", 'Choose "cpu", "auto", or a GPU that this machine has.'
        ) from None
    return chosen


def _load(
    origin: Origin, dtype: torch.dtype, placement: str | torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(origin.place, **origin.options)
    with _without_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            origin.place,
            **origin.options,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            # Tracing replays single blocks and shows attention patterns: both need the mask and the weights spelt out.
            attn_implementation="eager",
            **({"device_map": "auto"} if placement == "auto" else {}),
        )
    hf, report = loaded
    _check_report(origin.name, report)
    if getattr(hf.config.get_text_config(), "tie_word_embeddings", False) and not _is_tied(hf):
        raise ModelError(
            f"'{origin.name}' holds a head that is not its embedding.",
            f"{CONFIG} says that the two are one (tie_word_embeddings).",
            f"If the head is meant as it is, set tie_word_embeddings to false in {CONFIG}.",
        )
    if placement != "auto":
        nn.Module.to(hf, placement)
    return hf, tokenizer


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep out of the log what transformers says of tensors that do not fit: they are refused, and never "ignored"."""
    logger = logging.getLogger("transformers.modeling_utils")

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _check_report(name: str, report: dict[str, Any]) -> None:
    """Refuse a model that was not loaded from its file one to one."""
    if wrong := sorted(map(tuple, report["mismatched_keys"])):
        key, found, wanted = wrong[0]
        raise ModelError(
            f"The weights of '{name}' do not fit its {CONFIG}.",
            f"'{key}' has shape {tuple(found)} and should have {tuple(wanted)}{_and_more(wrong)}.",
            "Copy or save the model again.",
        )
    if lost := sorted(map(str, report["missing_keys"])):
        raise ModelError(
            f"The weights of '{name}' are incomplete.",
            f"'{lost[0]}' is missing{_and_more(lost)}.",
            f"Copy or save the model again; if it is the head and the embedding serves as head, set "
            f"tie_word_embeddings to true in {CONFIG}."
            if lost == ["lm_head.weight"]
            else "Copy or save the model again.",
        )
    if unknown := sorted(key for key in map(str, report["unexpected_keys"]) if not is_recomputed(key)):
        raise ModelError(
            f"'{name}' holds weights that its family does not have.",
            f"'{unknown[0]}' would be left out{_and_more(unknown)}.",
            "Without them it is another model: choose one that transformers knows whole.",
        )


def _and_more(keys: list[Any]) -> str:
    return f", and {len(keys) - 1} more" if len(keys) > 1 else ""


def _is_tied(hf: PreTrainedModel) -> bool:
    """Whether head and embedding are one matrix, or two equal ones (on two devices)."""
    head: Any = hf.get_output_embeddings()
    embedding: Any = hf.get_input_embeddings()
    return head.weight is embedding.weight or torch.equal(head.weight, embedding.weight.to(head.weight.device))


# ------------------------------------------------------------------------------------------------------ what is checked


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """rows: of the embedding. Special tokens may have none: they are refused where a text holds one (`batch_of`)."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer of '{name}' gives no character offsets.",
            "They are needed to find the subject's tokens.",
            "Choose a model that comes with a tokenizer.json.",
        )
    read = tokenizer(TEXT, return_special_tokens_mask=True)
    if read["special_tokens_mask"] and read["special_tokens_mask"][-1]:
        raise ModelError(
            f"The tokenizer of '{name}' ends every text with '{tokenizer.decode(read['input_ids'][-1:])}'.",
            "A prompt that goes on cannot end so.",
            f"Set add_eos_token to false in {TOKENIZER}, or take the token out of post_processor in tokenizer.json.",
        )
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {id: token for token, id in tokenizer.get_vocab().items() if id >= rows and id not in special}
    if beyond:
        raise ModelError(
            f"The tokenizer of '{name}' has tokens up to number {max(beyond)}; the model has {rows:,} embeddings.",
            f"'{beyond[min(beyond)]}' has none{_and_more(list(beyond))}.",
            "Use the tokenizer that belongs to the model.",
        )
