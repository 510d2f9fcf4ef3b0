"""One search for δ, several methods: which look for the very same value, and what each makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from rome_core.editing.method import MethodConfig
from rome_core.editing.methods.emmet import Emmet, at_once
from rome_core.editing.methods.least_squares import MassConfig, Wanted, found_by, spread, wanted
from rome_core.editing.methods.rome import POLICIES, RomeConfig, prefixes_of, repolicy
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.value import AddedTo, Report, ignore
from rome_core.errors import EditError
from rome_core.model.edits import Edit
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent


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
        and _plain(other)
        and site == added_to(type(other))
        and all(getattr(one, field.name) == getattr(other, field.name) for field in fields(RomeConfig))
    )


def _plain(config: MethodConfig) -> bool:
    """Whether a key policy's own settings are its defaults, which is how `repolicy` makes its update."""
    own = {field.name for field in fields(type(config))} - {field.name for field in fields(RomeConfig)}
    return type(config) not in POLICIES or all(getattr(config, name) == getattr(type(config)(), name) for name in own)


def with_prefixes(lm: LanguageModel, config: RomeConfig, edits: Sequence[Edit] = ()) -> RomeConfig:
    """The config with the prefixes that its method samples, so that all facts of a batch have the same ones."""
    if config.prefixes is not None:
        return config
    return replace(config, prefixes=prefixes_of(lm, config, edits))


def search(
    lm: LanguageModel,
    request: EditRequest,
    config: RomeConfig,
    *,
    edits: Sequence[Edit] = (),
    track: Track = silent,
    report: Report = ignore,
) -> Wanted:
    """The value of one fact of a batch; `update_of` makes one edit of many. config: with its prefixes."""
    if isinstance(config, MassConfig):
        config.check_layers()
    site = added_to(type(config))
    if site is None or config.prefixes is None:
        raise EditError(f"{config.name} searches no value by itself, or its prefixes are not chosen yet.")
    (found,) = wanted(lm, [request], config, config.prefixes, site, edits, track, report)
    return found


def update_of(
    lm: LanguageModel,
    facts: Sequence[Wanted],
    config: RomeConfig,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
) -> Edit:
    """One edit of facts whose values were searched one by one, by a method for batches."""
    used = moments_for(lm, config.layers, moments)
    if isinstance(config, MassConfig):
        return spread(lm, facts, config, used, edits)
    if isinstance(config, Emmet):
        return at_once(lm, facts, config, used[config.layers[0]], edits)
    raise EditError(f"{config.name} edits one fact at a time.", "", "Solve them one after another.")


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
    if isinstance(config, MassConfig | Emmet):
        return update_of(lm, found_by(lm, edit), replace(config, prefixes=edit.config.prefixes), moments, edits)
    return repolicy(lm, edit, config.name, moments)
