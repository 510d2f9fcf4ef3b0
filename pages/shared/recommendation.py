"""Where to edit: one recommended layer with its reason, the same on every page."""

from __future__ import annotations

from dataclasses import dataclass

from rome_core import DEFAULT_METHOD, METHODS, EditRequest, LanguageModel, Prompt
from rome_core.editing.presets import preset, resolve
from rome_core.editing.second_moment import SHIPPED, default_tokens, kept_path


@dataclass(frozen=True)
class Recommendation:
    """A layer, and why this one."""

    layer: int
    reason: str


def recommend(lm: LanguageModel, prompt: Prompt | None = None) -> Recommendation:
    """The layer of this model's preset. prompt: whose fact is to be edited, if that is known."""
    values = preset(lm)
    requests = [EditRequest(prompt, prompt.subject)] if prompt else []  # presets ask for the prompt, not for the object
    [layer, *_] = resolve(lm, METHODS[DEFAULT_METHOD](), requests).layers
    if values.first_token and layer != values.layer:
        values = values.first_token
    reason = f"{values.reason} ({values.source})" if values.reason else values.source
    return Recommendation(layer, reason)


def tell(lm: LanguageModel, layer: int, prompt: Prompt | None = None) -> str:
    """One line: the recommended layer with its reason, and where C of the layer in the form comes from."""
    best = recommend(lm, prompt)
    return f"Recommended: layer {best.layer}, because {best.reason}. {tell_moment(lm, layer)}"


def tell_moment(lm: LanguageModel, layer: int) -> str:
    """Whether C of a layer is at hand or is made first."""
    kept = kept_path(lm, layer)
    if (SHIPPED / kept.name).exists():
        return f"C of layer {layer} comes with the project."
    if kept.exists():
        return f"C of layer {layer} is kept on this machine."
    return f"C of layer {layer} is not there yet: the first edit there makes it from {default_tokens(lm):,} tokens."
