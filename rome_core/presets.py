"""Hyper-parameters by model, each with its source. A config's None means: look here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from rome_core.default_model import DEFAULT_MODEL
from rome_core.model import LanguageModel

C = TypeVar("C")


@dataclass(frozen=True)
class Preset:
    """Where and how hard to edit one model. clamp is in units of ‖v_0‖."""

    layer: int
    clamp: float
    source: str


PRESETS: dict[str, Preset] = {
    DEFAULT_MODEL: Preset(layer=5, clamp=1.5, source="found on a few facts of this model: docs/editing.md"),
    "gpt2-medium": Preset(layer=8, clamp=3.0, source="settings of the ROME authors"),
    "gpt2-large": Preset(layer=12, clamp=4.0, source="settings of the ROME authors"),
    "gpt2-xl": Preset(layer=17, clamp=4.0, source="settings of the ROME authors"),
    "EleutherAI/gpt-j-6b": Preset(layer=5, clamp=4.0, source="settings of the ROME authors"),
}


def preset(lm: LanguageModel) -> Preset:
    """This model's preset; for a model that nobody measured, the depth that worked for the default model."""
    found = PRESETS.get(lm.name) or PRESETS.get(lm.name.split("/")[-1])
    return found or Preset(max(0, round(lm.n_layers / 6)), 4.0, "not measured on this model: run a layer sweep")


def resolve(lm: LanguageModel, config: C) -> C:
    """The config with this model's values where it says None."""
    values: Any = preset(lm)
    empty = {
        f.name: getattr(values, f.name)
        for f in fields(config)  # type: ignore[arg-type]
        if getattr(config, f.name) is None and hasattr(values, f.name)
    }
    return replace(config, **empty)  # type: ignore[type-var]
