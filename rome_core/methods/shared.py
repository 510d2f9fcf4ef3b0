"""One search for δ, several methods: which look for the very same value, and what each makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from rome_core.edits import Edit
from rome_core.methods.config import MethodConfig
from rome_core.methods.emmet import Emmet, at_once
from rome_core.methods.mass import MassConfig, found_by, spread
from rome_core.methods.rome import POLICIES, RomeConfig, repolicy
from rome_core.methods.value import AddedTo
from rome_core.model import LanguageModel
from rome_core.moment import Moment, moments_for


def added_to(method: type[MethodConfig]) -> AddedTo | None:
    """Where a method adds the δ that it optimises: key policies and EMMET to the MLP's output, methods that spread over
    layers to the block's. None: it optimises no δ."""
    if issubclass(method, MassConfig):
        return "resid_post"
    return "mlp_out" if method in (*POLICIES, Emmet) else None


def same_search(one: MethodConfig, other: MethodConfig) -> bool:
    """Whether `other`, asked for one fact with these settings, optimises what `one` does, whose edit keeps its δ."""
    site = added_to(type(one))
    return (
        site is not None
        and not isinstance(one, Emmet)  # its edits keep the mean key only
        and site == added_to(type(other))
        and all(getattr(one, field.name) == getattr(other, field.name) for field in fields(RomeConfig))
    )


def reuse(
    lm: LanguageModel,
    edit: Edit,
    config: MethodConfig,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
) -> Edit:
    """The edit of one fact that `config` makes of the value that `edit` found, without searching again.

    Ask `same_search` first: it says whether a search of its own would find the same one. edits: those that `edit` was
    solved on top of.
    """
    if isinstance(config, MassConfig):
        used = moments_for(lm, config.layers, moments)
        return spread(lm, found_by(lm, edit), replace(config, prefixes=edit.config.prefixes), used, edits)
    if isinstance(config, Emmet):
        (moment,) = moments_for(lm, config.layers, moments).values()
        return at_once(lm, found_by(lm, edit), replace(config, prefixes=edit.config.prefixes), moment, edits)
    return repolicy(lm, edit, config.name, moments)
