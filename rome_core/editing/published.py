"""Hyper-parameters that others have published, as data with their source: assets/published_settings.json.

A set belongs to a model by its shape, so that a folder of any name is recognised, and a folder that is merely called
gpt2-xl is not. The layer at which the loss is read is derived (always the last block's output) and never taken from a
set: several were copied from a model of another depth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from rome_core.editing.method import MethodConfig
from rome_core.files import ASSETS
from rome_core.model.language_model import LanguageModel

FILE = ASSETS / "published_settings.json"


@dataclass(frozen=True)
class Shape:
    """What tells a model's size within its family."""

    model_type: str
    n_layers: int
    d_model: int
    d_mlp: int


@dataclass(frozen=True)
class PublishedSet:
    """One set. method: as in METHODS. model: the one it was published for. values: fields of the method's config.

    v_loss_layer: as it stands in the file, None where there is none. note: what contradicts it, or differs here.
    """

    method: str
    model: str
    repository: str
    file: str
    values: Mapping[str, Any]
    v_loss_layer: int | None
    note: str = ""

    @property
    def label(self) -> str:
        """Short, for a list."""
        layers = self.values["layer"] - self.values.get("span", 1) + 1, self.values["layer"]
        where = f"layer {layers[1]}" if layers[0] == layers[1] else f"layers {layers[0]}–{layers[1]}"
        further = [f"{name} {self.values[name]:g}" for name in ("clamp", "epsilon", "lr") if name in self.values]
        return f"{self.repository.split('/')[-1]}, for {self.model}: {', '.join([where, *further])}"

    @property
    def source(self) -> str:
        """Where it stands, and what is to be said of it."""
        return " ".join(filter(None, (f"Published for {self.model}: {self.repository}, {self.file}.", self.note)))


def published_for(lm: LanguageModel, method: str) -> tuple[PublishedSet, ...]:
    """The sets of a method for models of this one's shape."""
    shapes, sets = published()
    config = lm.hf.config.get_text_config()
    own = Shape(str(config.model_type), lm.n_layers, lm.d_model, lm.d_mlp)
    return tuple(one for one in sets if one.method == method and shapes[one.model] == own)


def applied(one: PublishedSet, config: MethodConfig) -> dict[str, Any]:
    """The set's values that the config has fields for."""
    return {field.name: one.values[field.name] for field in fields(config) if field.name in one.values}


@cache
def published() -> tuple[Mapping[str, Shape], tuple[PublishedSet, ...]]:
    """All models and sets of the file."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    shapes = {name: Shape(**shape) for name, shape in data["models"].items()}
    return shapes, tuple(PublishedSet(**one) for one in data["sets"])
