"""Hyper-parameters by model, each with its source. A config's None means: look here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from rome_core.editing.method import MethodConfig
from rome_core.editing.published import published_for
from rome_core.errors import RomeError
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, encode

C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Preset:
    """Where and how hard to edit one model. clamp is in units of ‖v_0‖.

    reason: why this layer, in a sentence, where somebody has compared it with others.
    first_token: other values for a subject that is the prompt's first token and no more. In all but the earliest layers
    its key is the attention sink's.
    """

    layer: int
    clamp: float
    source: str
    steps: int = 20
    reason: str = ""
    first_token: Preset | None = None


PRESETS: dict[str, Preset] = {
    DEFAULT_MODEL: Preset(
        layer=5,
        clamp=1.5,
        source="measured: docs/editing.md",
        reason="layers 1 to 5 score alike within their intervals, later ones bleed, and at layer 0 an edit is about a "
        "word rather than a subject",
        first_token=Preset(
            layer=0,
            clamp=6.0,
            steps=60,
            source="measured: docs/editing.md",
            reason="the subject is the prompt's first token, whose key is the attention sink's in every later layer",
        ),
    ),
}


def preset(lm: LanguageModel) -> Preset:
    """This model's preset: measured, else the first set that others have published for ROME on a model of its shape,
    else the depth that worked for the default model."""
    if measured := PRESETS.get(lm.name) or PRESETS.get(lm.name.split("/")[-1]):
        return measured
    for one in published_for(lm, "rome"):
        values = one.values
        return Preset(values["layer"], values["clamp"], one.source.rstrip("."), values["steps"])
    return Preset(max(0, round(lm.n_layers / 6)), 4.0, "not measured on this model: run a layer sweep")


def resolve(lm: LanguageModel, config: C, requests: Sequence[EditRequest] = ()) -> C:
    """The config with this model's values where it says None.

    requests: what is to be edited, if it is known: methods of a single key have values of their own for some subjects.
    """
    values = preset(lm)
    first = values.first_token
    if first and config.single_key and config.layers in ([], [first.layer]) and is_first_token(lm, requests):
        values = first
    own = {"layer": values.layer, "clamp": values.clamp, "steps": values.steps}
    empty = {f.name: own[f.name] for f in fields(config) if f.name in own and getattr(config, f.name) is None}
    return replace(config, **empty)


def unresolved(lm: LanguageModel, config: C, requests: Sequence[EditRequest] = ()) -> C:
    """The config with None where it stands at its preset, so that another method's config, or the same one for other
    requests, takes the preset of its own there."""
    own, standing = type(config)(), resolve(lm, type(config)(), requests)
    names = [f.name for f in fields(config) if getattr(own, f.name) is None]
    empty: dict[str, Any] = {n: None for n in names if getattr(config, n) == getattr(standing, n)}
    return replace(config, **empty)


def is_first_token(lm: LanguageModel, requests: Sequence[EditRequest]) -> bool:
    """Whether this is one request, about a subject that is the prompt's first token and no more."""
    try:
        return len(requests) == 1 and encode(lm.tokenizer, requests[0].prompt).last_subject == 0
    except RomeError:  # said where the request is used
        return False
