"""One search for δ, several methods: which look for the very same value, and what each makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from rome_core.edits import Edit
from rome_core.methods.config import MethodConfig
from rome_core.methods.emmet import Emmet, emmet_of
from rome_core.methods.rome import POLICIES, RomeConfig, repolicy
from rome_core.model import LanguageModel
from rome_core.moment import Moment

FAMILY = (*POLICIES, Emmet)  # δ is added to the MLP's output at the subject's last token


def same_search(one: MethodConfig, other: MethodConfig) -> bool:
    """Whether two methods, asked for one fact with these settings, optimise the same loss over the same prompts.

    The key policies and EMMET do; only the update that they make of δ differs.
    """
    return all(type(config) in FAMILY for config in (one, other)) and all(
        getattr(one, field.name) == getattr(other, field.name) for field in fields(RomeConfig)
    )


def reuse(lm: LanguageModel, edit: Edit, config: MethodConfig, moments: Mapping[int, Moment] | None = None) -> Edit:
    """The edit that `config` makes of the δ and the keys of a key policy's edit, without searching again.

    Ask `same_search` first: it says whether a search of its own would find the same δ.
    """
    if isinstance(config, Emmet):
        return emmet_of(lm, edit, replace(config, prefixes=edit.config.prefixes), moments)
    return repolicy(lm, edit, config.name, moments)
