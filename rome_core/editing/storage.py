"""Edits as files: one small safetensors file with everything needed to make it again, and a PEFT adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_core.editing.edit import Edit, Keys, PromptKeys, Step
from rome_core.editing.method import Foreign, MethodConfig
from rome_core.editing.methods import METHODS
from rome_core.errors import EditError, ModelError, PromptError, RomeError
from rome_core.files import write_whole
from rome_core.model.edits import Delta, Update, check_base, factors
from rome_core.model.language_model import LanguageModel, Source
from rome_core.model.layout import is_transposed
from rome_core.model.stored import PLAIN
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.settings import first_fault

FORMAT = "rome-explorer edit 1"
_VECTORS = ("k_star", "v_star", "k_0", "v_0")
_PROMPTS = ("keys", "values", "bias")  # of the prefixed prompts
MOST_HEADER = 32 * 2**20  # bytes of a file's description: the histories of some 6,000 searches
MOST_VALUES = 4_000_000  # in that description
MOST_ENTRIES = 2**30  # of one matrix; those of the families here have fewer
_DAMAGE = (
    *(OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError),
    PromptError,
)


def save_edit(edit: Edit, path: str | Path) -> None:
    """Write an edit to one file: factors, k*, v*, requests, settings with prefixes and seed, history, fingerprint.

    Raises EditError where it cannot be written.
    """
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
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    _write(path, lambda: write_whole(Path(path), lambda part: save_file(plain, part, {"edit": json.dumps(about)})))


def _write(path: str | Path, write: Callable[[], object]) -> None:
    """Write, or raise EditError with the reason why nothing can be written there."""
    try:
        write()
    except RomeError:
        raise
    except (OSError, SafetensorError, ValueError) as error:  # no room, no rights, no path at all
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        what = f"'{str(path)[:200]}' cannot be written."
        raise EditError(what, f"{reason[:200]}.", "Choose another place.") from error


def _key_tensors(keys: Keys) -> dict[str, Tensor]:
    tensors = {name: getattr(keys, name) for name in _VECTORS}
    if keys.delta is not None:
        tensors["extra.delta"] = keys.delta
    if keys.prompts is not None:
        tensors |= {f"extra.{name}": getattr(keys.prompts, name) for name in _PROMPTS}
    return tensors | {f"extra.keys_{layer}": columns for layer, columns in keys.by_layer.items()}


def _keys_from(tensors: Mapping[str, Tensor]) -> Keys | None:
    if "k_star" not in tensors:
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
    """Read an edit. With `lm` its fingerprint must match, and each of its updates must be of a matrix in the blocks.

    What the file says of itself is held against bounds and against the model before any tensor is read. Raises
    EditError with what is wrong with the file.
    """
    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            _check_header(Path(path), name)
            about = _description(file.metadata() or {})
            if about["format"] != FORMAT:
                raise EditError(
                    f"'{name}' was saved by another version ({str(about['format'])[:80]}).", "", "Solve the edit again."
                )
            if lm is not None and about["base"] != lm.fingerprint:
                raise EditError(
                    f"'{name}' was solved for another model than '{lm.name}'.",
                    "",
                    "Load that model, or solve the edit again.",
                )
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            shapes = {key: tuple(one.get_shape()) for key, one in slices.items() if one.get_dtype() in PLAIN}
            wanted = _check_shapes(name, about, shapes, lm)
            # Clones are aligned as any tensor is; the file's own places may make matrix products round differently.
            tensors = {key: file.get_tensor(key).clone() for key in wanted}
        edit = _from_parts(about, tensors)
    except _DAMAGE as error:
        raise EditError(
            f"'{name}' is not an edit saved by ROME Explorer.",
            "",
            "Choose a .safetensors file that 'Download the edit' or save_edit made.",
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise EditError(f"'{name}' holds an update that is not finite.", "It would break the model.", "Solve it again.")
    if lm is None:
        return edit
    edit.config.check_settings(lm)
    return replace(edit, source=lm.source)


def _check_header(path: Path, name: str) -> None:
    """Raise EditError where a file's description is larger than that of any edit: its first bytes say its size."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER:
        raise EditError(
            f"'{name}' describes itself in {size:,} bytes; at most {MOST_HEADER:,} are read.",
            "",
            "Save an edit of fewer facts.",
        )


def _description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of its edit. Raises ValueError where that is no record, or holds too much to be one."""
    text = metadata["edit"]
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError("too many values")
    about = json.loads(text)
    if not isinstance(about, dict):
        raise ValueError("no record")
    return about


def _check_shapes(
    name: str, about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], lm: LanguageModel | None
) -> list[str]:
    """The tensors to be read. Raises EditError for an update of no matrix of the model, ValueError where shapes do not
    belong together."""
    wanted = []
    for index, module in enumerate(about["modules"]):
        U, V = (shapes[f"delta.{index}.{factor}"] for factor in "UV")
        if len(U) != 2 or len(V) != 2 or U[1] != V[0] or not math.prod((*U, *V)) or U[0] * V[1] > MOST_ENTRIES:
            raise ValueError(f"no factors of a matrix: {U} and {V}")
        if lm is not None and _shape_of(lm, module) != (U[0], V[1]):
            raise EditError(
                f"'{name}' changes '{str(module)[:80]}', which does not fit '{lm.name}'.", "", "Solve the edit again."
            )
        wanted += [f"delta.{index}.U", f"delta.{index}.V"]
    if not wanted:
        raise ValueError("no update")
    return wanted + _check_keys(len(about["requests"]), shapes, lm)


def _shape_of(lm: LanguageModel, module: object) -> tuple[int, ...] | None:
    """Of the matrix of a module in the blocks, where overlays act; None of anything else."""
    if not isinstance(module, str) or not module.startswith(f"{lm.layout.blocks}."):
        return None
    try:
        return tuple(lm.matrix(module).shape)
    except (AttributeError, ModelError):  # no such module, or one without a matrix
        return None


def _check_keys(n: int, shapes: Mapping[str, tuple[int, ...]], lm: LanguageModel | None) -> list[str]:
    """The tensors of an edit's keys and values, none of methods that know none. Raises ValueError."""
    if not n:
        raise ValueError("no request")
    if not math.prod(shapes.get("k_star", (0,))):
        return []
    d_mlp, d_model = (shapes["k_star"][-1], shapes["v_star"][-1]) if lm is None else (lm.d_mlp, lm.d_model)
    rows = () if len(shapes["k_star"]) == 1 else (n,)
    expected = {name: (*rows, d_mlp if name.startswith("k") else d_model) for name in _VECTORS}
    if "extra.delta" in shapes:
        expected["extra.delta"] = (d_model,)
    if "extra.keys" in shapes:
        prompts = shapes["extra.keys"][0]
        expected |= {"extra.keys": (prompts, d_mlp), "extra.values": (prompts, d_model), "extra.bias": (d_model,)}
    for name in (name for name in shapes if name.startswith("extra.keys_")):
        expected[name] = (d_mlp, shapes[name][-1])
        if lm is not None and int(name.removeprefix("extra.keys_")) not in range(lm.n_layers):
            raise ValueError(f"{name}: no such layer")
    for name, shape in expected.items():
        if shapes[name] != shape or not math.prod(shape):
            raise ValueError(f"{name} has shape {shapes[name]}, not {shape}")
    return list(expected)


def _from_parts(about: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    """The edit of a file's parts, each of its type."""
    config = config_of(about["method"], about["config"])
    if fault := first_fault(config):
        raise ValueError(fault)
    texts = [about["base"], about["corpus"], *about["on"], *(moment_keys := about.get("moment_keys", {})).values()]
    if strange := next((text for text in texts if not isinstance(text, str)), None):
        raise TypeError(f"{strange} is no text")
    return Edit(
        requests=tuple(
            EditRequest(Prompt(**request["prompt"]), request["target_new"], request["target_true"])
            for request in about["requests"]
        ),
        config=config,
        deltas=tuple(
            Delta(module, tensors[f"delta.{i}.U"], tensors[f"delta.{i}.V"]) for i, module in enumerate(about["modules"])
        ),
        keys=_keys_from(tensors),
        history=tuple(map(_step, about["history"])),
        base=about["base"],
        on=tuple(about["on"]),
        corpus=about["corpus"],
        moment_keys={int(layer): key for layer, key in moment_keys.items()},
    )


def _step(numbers: Mapping[str, Any]) -> Step:
    """A step of the search. Raises TypeError or OverflowError where one of its numbers is none."""
    for value in numbers.values():
        float(value)
        if isinstance(value, str | bool):
            raise TypeError(f"'{value}' is no number")
    return Step(**numbers)


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

    def write() -> None:
        target = Path(folder)
        write_whole(target / "adapter_model.safetensors", lambda part: save_file(weights, part, {"format": "pt"}))
        described = json.dumps(config, indent=2)
        write_whole(target / "adapter_config.json", lambda part: part.write_text(described, encoding="utf-8"))

    _write(folder, write)


def export_merged(lm: LanguageModel, edits: Sequence[Update], folder: str | Path) -> None:
    """Write the edited model to a folder, in parts, as any Hugging Face model. The loaded weights are not written.

    Raises EditError.
    """
    target = Path(folder)
    check_base(lm, edits)
    weights = dict(lm.hf.state_dict())
    for module, delta in factors(edits).items():
        key = f"{module}.weight"
        change = delta.matrix()
        change = change.T if is_transposed(lm.module(module)) else change
        weights[key] = (weights[key].cpu().double() + change).to(weights[key].dtype)

    def write() -> None:
        lm.hf.save_pretrained(target, state_dict=weights, max_shard_size="2GB")
        lm.tokenizer.save_pretrained(target)

    _write(target, write)
