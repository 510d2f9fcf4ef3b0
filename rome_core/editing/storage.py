"""Edits as files: one small safetensors file with everything needed to make it again, and a PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_core.editing.edit import Edit, Keys, PromptKeys, Step
from rome_core.editing.method import Foreign, MethodConfig
from rome_core.editing.methods import METHODS
from rome_core.errors import EditError, PromptError
from rome_core.model.edits import Delta, Update, check_base, factors
from rome_core.model.language_model import LanguageModel, Source
from rome_core.model.layout import is_transposed
from rome_core.model.tokens import EditRequest, Prompt

FORMAT = "rome-explorer edit 1"
_VECTORS = ("k_star", "v_star", "k_0", "v_0")
_PROMPTS = ("keys", "values", "bias")  # of the prefixed prompts


def save_edit(edit: Edit, path: str | Path) -> None:
    """Write an edit to one file: factors, k*, v*, requests, settings with prefixes and seed, history, fingerprint."""
    tensors = {} if edit.keys is None else _key_tensors(edit.keys)
    for index, delta in enumerate(edit.deltas):
        tensors |= {f"delta.{index}.U": delta.U, f"delta.{index}.V": delta.V}
    about = {
        "format": FORMAT,
        "method": edit.method,
        "config": asdict(edit.config),
        "requests": [asdict(request) for request in edit.requests],
        "modules": [delta.module for delta in edit.deltas],
        "history": [asdict(step) for step in edit.history],
        "base": edit.base,
        "on": edit.on,
        "corpus": edit.corpus,
        "moment_keys": edit.moment_keys,
    }
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, {"edit": json.dumps(about)})


def _key_tensors(keys: Keys) -> dict[str, Tensor]:
    tensors = {name: getattr(keys, name) for name in _VECTORS}
    if keys.delta is not None:
        tensors["extra.delta"] = keys.delta
    if keys.prompts is not None:
        tensors |= {f"extra.{name}": getattr(keys.prompts, name) for name in _PROMPTS}
    return tensors | {f"extra.keys_{layer}": columns for layer, columns in keys.by_layer.items()}


def _keys_from(tensors: Mapping[str, Tensor]) -> Keys | None:
    if "k_star" not in tensors or not tensors["k_star"].numel():
        return None
    k_star, v_star, k_0, v_0 = (tensors[name] for name in _VECTORS)
    prompts = None
    if "extra.keys" in tensors:
        own, values, bias = (tensors[f"extra.{name}"] for name in _PROMPTS)
        prompts = PromptKeys(own, values, k_0, v_0, bias)
    layers = [name for name in tensors if name.startswith("extra.keys_")]
    by_layer = {int(name.removeprefix("extra.keys_")): tensors[name] for name in sorted(layers)}
    return Keys(k_star, v_star, k_0, v_0, tensors.get("extra.delta"), prompts, by_layer)


def load_edit(path: str | Path, lm: LanguageModel | None = None) -> Edit:
    """Read an edit. With `lm` its fingerprint must match. Raises EditError with what is wrong with the file."""
    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["edit"])
            # Clones are aligned as any tensor is; the file's own places may make matrix products round differently.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  (not a dict)
        if about["format"] != FORMAT:
            raise EditError(f"'{name}' was saved by another version ({about['format']}).", "", "Solve the edit again.")
        edit = _from_parts(about, tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, PromptError) as error:
        raise EditError(
            f"'{name}' is not an edit saved by ROME Explorer.",
            "",
            "Choose a .safetensors file that 'Download the edit' or save_edit made.",
        ) from error
    if not all(bool(factor.isfinite().all()) for delta in edit.deltas for factor in (delta.U, delta.V)):
        raise EditError(f"'{name}' holds an update that is not finite.", "It would break the model.", "Solve it again.")
    if lm is None:
        return edit
    if edit.base != lm.fingerprint:
        raise EditError(
            f"'{name}' was solved for another model than '{lm.name}'.", "", "Load that model, or solve the edit again."
        )
    if strange := next((delta.module for delta in edit.deltas if not _fits(lm, delta)), None):
        raise EditError(f"'{name}' changes '{strange}', which does not fit '{lm.name}'.", "", "Solve the edit again.")
    return replace(edit, source=lm.source)


def _fits(lm: LanguageModel, delta: Delta) -> bool:
    """Whether an update is of a matrix in the model's blocks, where overlays act, and of its size."""
    inside = delta.module.startswith(f"{lm.layout.blocks}.") and delta.module in dict(lm.hf.named_modules())
    return inside and (delta.U.shape[0], delta.V.shape[1]) == tuple(lm.matrix(delta.module).shape)


def _from_parts(about: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    return Edit(
        requests=tuple(
            EditRequest(Prompt(**request["prompt"]), request["target_new"], request["target_true"])
            for request in about["requests"]
        ),
        config=config_of(about["method"], about["config"]),
        deltas=tuple(
            Delta(module, tensors[f"delta.{i}.U"], tensors[f"delta.{i}.V"]) for i, module in enumerate(about["modules"])
        ),
        keys=_keys_from(tensors),
        history=tuple(Step(**step) for step in about["history"]),
        base=about["base"],
        on=tuple(about["on"]),
        corpus=about["corpus"],
        moment_keys={int(layer): key for layer, key in about.get("moment_keys", {}).items()},
    )


def config_of(method: str, settings: Mapping[str, Any]) -> MethodConfig:
    """A method's config from settings that were read from JSON; fields that it does not have are passed over."""
    chosen = Foreign if method == Foreign.name else METHODS[method]
    names = {field.name for field in fields(chosen)}
    return chosen(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in names})


def export_adapter(edit: Update | Sequence[Update], folder: str | Path, base_model: str | None = None) -> None:
    """Write a PEFT LoRA adapter: `peft.AutoPeftModelForCausalLM.from_pretrained(folder)` gives the edited model.

    base_model: the Hugging Face id or the folder that the adapter names as its base; None is where the edit's model was
    loaded from, with its commit. The default model is on no hub: its base is the folder of this machine's cache. On
    another machine, attach the adapter to the model itself: `PeftModel.from_pretrained(load_model().hf, folder)`.

    LoRA adds B A x·alpha/r; with alpha = r, A = V and B = U that is exactly the update. Raises EditError.
    """
    edits = [edit] if isinstance(edit, Update) else list(edit)
    deltas = factors(edits)
    if not deltas:
        raise EditError("There is no edit to export.", "", "Solve one first.")
    if len({edit.base for edit in edits}) > 1:
        raise EditError("Edits of different models cannot be one adapter.", "", "Export those of one model.")
    source = next((edit.source for edit in edits if isinstance(edit, Edit) and edit.source), None)
    if base_model is not None:
        source = Source(base_model)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    ranks = {module: delta.U.shape[1] for module, delta in deltas.items()}
    rank = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source and source.place,
        "revision": source and source.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(m.endswith(("c_proj", "c_fc")) for m in deltas),  # GPT-2 keeps W transposed
        "target_modules": sorted(deltas),
    }
    weights = {}
    for module, delta in deltas.items():
        U, V = (factor.detach().cpu().contiguous().clone() for factor in delta.balanced)
        weights[f"base_model.model.{module}.lora_A.weight"] = V
        weights[f"base_model.model.{module}.lora_B.weight"] = U
    save_file(weights, target / "adapter_model.safetensors", {"format": "pt"})
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def export_merged(lm: LanguageModel, edits: Sequence[Update], folder: str | Path) -> None:
    """Write the edited model to a folder, in parts, as any Hugging Face model. The loaded weights are not written."""
    target = Path(folder)
    check_base(lm, edits)
    weights = dict(lm.hf.state_dict())
    for module, delta in factors(edits).items():
        key = f"{module}.weight"
        change = delta.matrix()
        change = change.T if is_transposed(lm.module(module)) else change
        weights[key] = (weights[key].cpu().double() + change).to(weights[key].dtype)
    lm.hf.save_pretrained(target, state_dict=weights, max_shard_size="2GB")
    lm.tokenizer.save_pretrained(target)
