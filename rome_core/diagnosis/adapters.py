"""A LoRA adapter as peft reads it: what it makes of each weight of its base, or one sentence of what is not understood.

The rules are those of peft 0.21 (`tuners/lora/layer.py`, `tuners/lora/dora.py`, `utils/other.get_pattern_key`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rome_core.diagnosis.differences import Difference, difference_of, noise_floor
from rome_core.errors import ModelError
from rome_core.model.language_model import LanguageModel
from rome_core.model.layout import is_transposed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "Merge it into its base with peft (merge_and_unload, save_pretrained), and give that folder."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B|magnitude_vector)(\.weight)?"
)
# Settings that are applied here, and settings that say nothing about what the adapter computes once it is trained.
_APPLIED = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("modules_to_save", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("peft_type", "init_lora_weights", "fan_in_fan_out"),  # how a module keeps its matrix is read off the module
}
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version", "inference_mode"),
    *("lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying", "velora_config"),
}
_BROKEN = (
    *(OSError, SafetensorError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError),
    re.error,
)
_STARTS = (True, False, None, "gaussian", "eva")  # others, such as PiSSA, take a part out of the base's own weights


def read_adapter(lm: LanguageModel, folder: Path) -> tuple[list[Difference], str]:
    """What an adapter makes of each weight that it changes, and the base that it names ("" where it names none).

    Raises ModelError where any of it is not understood.
    """
    try:
        config, tensors = _read(folder)
        _check_config(config, folder.name)
        base = config.get("base_model_name_or_path") or ""
        if not isinstance(base, str):
            raise TypeError("base_model_name_or_path is no text")
        return list(_differences(lm, config, tensors, folder.name)), base
    except _BROKEN as error:
        raise ModelError(
            f"The adapter in '{folder.name}' cannot be read.", str(error)[:200], f"It needs {CONFIG} and {WEIGHTS}."
        ) from None


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    if others := sorted(path.name for path in folder.glob("*.safetensors") if path.name != WEIGHTS):
        raise ModelError(
            f"'{folder.name}' holds an adapter and '{others[0]}'.",
            "It cannot be seen which of the two is meant.",
            "Give a folder with one of them.",
        )
    with safe_open(folder / WEIGHTS, "pt") as file:
        return config, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)


def _check_config(config: Mapping[str, Any], name: str) -> None:
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ModelError(f"'{name}' is an adapter of type {kind}.", "Only LoRA adapters can be read.", MERGE)
    settings = sorted(key for key, value in config.items() if value and key not in _APPLIED | _WITHOUT_EFFECT)
    if settings:
        raise ModelError(f"'{name}' is an adapter with {settings[0]}.", "Its weights are not known by it.", MERGE)
    if (start := config.get("init_lora_weights", True)) not in _STARTS:
        raise ModelError(
            f"'{name}' is an adapter that began with init_lora_weights = {start}.",
            "It takes a part out of the weights of its base.",
            MERGE,
        )


def _differences(
    lm: LanguageModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> Iterator[Difference]:
    own, modules = lm.hf.state_dict(), dict(lm.hf.named_modules())
    factors, saved = _sorted_out(tensors, own, name)
    _check_saved(config, saved, name)
    for module, parts in sorted(factors.items()):
        if module not in modules:
            raise ModelError(
                f"The adapter changes '{module}', which '{lm.name}' does not have.",
                "It belongs to another model.",
                "Load its base model first.",
            )
        if not _is_target(config, module):
            raise ModelError(
                f"The adapter in '{name}' has factors for '{module}'.",
                f"Its {CONFIG} does not target that module, so peft would pass them over.",
                "Save it again with peft.",
            )
        weight, bias = f"{module}.weight", f"{module}.bias"
        W = saved.pop(weight, own[weight]).cpu()
        added = _added(lm, config, module, parts, W)
        stored = difference_of(weight, own[weight].cpu(), W, lm.name)
        if stored is not None:
            yield Difference(weight, stored.delta + added.delta, stored.floor + added.floor)
        elif bool(added.delta.any()):
            yield added
        if "B.bias" in parts:
            if bias not in own or not config.get("lora_bias"):
                raise ModelError(f"The adapter in '{name}' adds a bias to '{module}'.", "It has none there.", MERGE)
            shift = parts["B.bias"].double() * _scaling(config, module)
            saved[bias] = saved.get(bias, own[bias]).cpu().double() + shift
    for weight, value in sorted(saved.items()):
        if (found := difference_of(weight, own[weight].cpu(), value, lm.name)) is not None:
            yield found


def _sorted_out(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The factors, by module and part, and the weights that were saved whole, by name."""
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    saved, unknown = dict[str, Tensor](), list[str]()
    for key, value in tensors.items():
        bare = key.removeprefix("base_model.model.")
        whole = bare.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if found := _FACTOR.fullmatch(bare):
            factors[found["module"]][found["part"].removeprefix("embedding_").removesuffix(".weight")] = value
        elif whole in own:
            saved[whole] = value
        else:
            unknown.append(key)
    if unknown:
        more = f", nor {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ModelError(
            f"The adapter in '{name}' holds '{min(unknown)}', which is not understood{more}.",
            "It is no factor of LoRA, and no weight of the loaded model.",
            "Load its base model first. " + MERGE,
        )
    if not factors and not saved:
        raise ModelError(f"The adapter in '{name}' has no LoRA factors.", "", "Save it again with peft.")
    return factors, saved


def _check_saved(config: Mapping[str, Any], saved: Mapping[str, Tensor], name: str) -> None:
    for wanted in config.get("modules_to_save") or ():
        if not any(re.match(rf"(^|.*\.){wanted}($|\..*)", weight.rpartition(".")[0]) for weight in saved):
            raise ModelError(
                f"The adapter in '{name}' lacks the weights of '{wanted}'.",
                "Its modules_to_save names them.",
                "Save it again with peft.",
            )


def _added(
    lm: LanguageModel, config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor], W: Tensor
) -> Difference:
    """What the factors, and with DoRA the magnitudes, add to a weight W of the base."""
    owner, weight = lm.module(module), f"{module}.weight"
    transposed = isinstance(owner, nn.Embedding) or is_transposed(owner)
    if not {"A", "B"} <= parts.keys() or (("magnitude_vector" in parts) != bool(config.get("use_dora"))):
        raise ModelError(
            f"The adapter's factors for '{module}' are incomplete, or more than its {CONFIG} says.",
            f"There are {', '.join(sorted(parts))}.",
            "Save it again with peft.",
        )
    if not all(bool(part.isfinite().all()) for part in parts.values()):
        raise ModelError(f"The adapter's factors for '{module}' are not finite.", "", "Save it again from its source.")
    A, B = parts["A"].double(), parts["B"].double()
    out, width = W.T.shape if transposed else W.shape
    if A.shape != (rank := _rank(config, module), width) or B.shape != (out, rank):
        raise ModelError(
            f"The adapter's factors for '{module}' do not fit '{lm.name}'.",
            f"They have shapes {tuple(B.shape)} and {tuple(A.shape)}; {(out, rank)} and {(rank, width)} are needed.",
            "Load its base model first.",
        )
    delta = B @ A * _scaling(config, module)
    eps = torch.finfo(parts["A"].dtype).eps
    floor = noise_floor(delta, eps * rank**0.5)
    if "magnitude_vector" in parts:
        # DoRA (Liu et al. 2024, equation 5): each output's row of W + BA is brought to the length that was learnt.
        rows = (W.double().T if transposed else W.double()) + delta
        length = parts["magnitude_vector"].double().reshape(-1, 1)
        new = rows * length / rows.norm(dim=1, keepdim=True)
        delta, floor = delta + new - rows, noise_floor(new, eps)
    return Difference(weight, delta.T if transposed else delta, floor)


def _rank(config: Mapping[str, Any], module: str) -> int:
    return int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))


def _scaling(config: Mapping[str, Any], module: str) -> float:
    """alpha/r, or alpha/√r with rank-stabilised LoRA."""
    rank = _rank(config, module)
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    """A pattern is a regular expression for the end of a module's path, from a dot on; the first that fits counts."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _is_target(config: Mapping[str, Any], module: str) -> bool:
    """Whether peft puts factors on a module (`tuners_utils.check_target_module_exists`)."""
    targets, saved = config.get("target_modules"), config.get("modules_to_save") or ()
    if _named(config.get("exclude_modules"), module) or any(
        re.match(rf"(^|.*\.){wanted}($|\..*)", module) for wanted in saved
    ):
        return False
    if targets is None or targets == "all-linear":
        return True
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or module in targets or layers in (None, []):
        return _named(targets, module)
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    starts = [patterns] if isinstance(patterns, str) else patterns
    place = next((m for start in starts if (m := re.match(rf"(?:^|.*?\.){start}\.(\d+)\.", module))), None)
    wanted = [layers] if isinstance(layers, int) else layers
    return _named(targets, module) and place is not None and int(place[1]) in wanted


def _named(names: Any, module: str) -> bool:
    """Whether one of the names is a module's path or its end; one text is a regular expression for the whole path."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())
