"""One search for δ, several methods: what another method makes of the value that an edit's search found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rome_core.editing.edit import Edit
from rome_core.editing.method import EditContext, MethodConfig
from rome_core.editing.methods import METHODS
from rome_core.editing.second_moment import Moment
from rome_core.errors import EditError
from rome_core.model.language_model import LanguageModel


def reuse(
    lm: LanguageModel,
    edit: Edit,
    config: MethodConfig,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
) -> Edit:
    """The edit of one fact that `config` makes of the value that `edit` found, without searching again.

    Ask `edit.config.shares_search(config)` first: it says whether a search of its own would find the same one. edits:
    those that `edit` was solved on top of.
    """
    made = config.update(EditContext(lm, edits, moments), [edit.config.value_of(edit)])
    return replace(made, on=edit.on)


def repolicy(lm: LanguageModel, edit: Edit, method: str, moments: Mapping[int, Moment] | None = None) -> Edit:
    """The same request, δ and keys under another method of a single key, whose own settings are its defaults."""
    if method not in METHODS or not METHODS[method].single_key:
        raise EditError(f"An edit by '{edit.method}' cannot be turned into '{method}'.", "", "Solve it again.")
    return reuse(lm, edit, edit.config.like(METHODS[method]), moments)


def policies() -> dict[str, type[MethodConfig]]:
    """The methods of a single key, which can be judged by it and turned into each other."""
    return {name: method for name, method in METHODS.items() if method.single_key}
