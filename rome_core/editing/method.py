"""What every editing method offers: a frozen config that can solve requests into an Edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from rome_core.editing.second_moment import Moment
from rome_core.editing.value import Report
from rome_core.model.edits import Delta, Edit, Step
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track


@dataclass(frozen=True)
class MethodConfig:
    """Base of the methods' configs. `name` is the key in METHODS, `title` and `formula` are shown on the page."""

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    batches: ClassVar[bool] = False  # whether several requests may be solved into one edit
    prefixed_use: ClassVar[bool] = False  # whether a prefix stands before the prompt when the edited model is used

    @property
    def layers(self) -> list[int]:
        """The layers whose C the method needs, once the config is resolved for a model."""
        return []

    def solve(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        *,
        moments: Mapping[int, Moment] | None,
        edits: Sequence[Edit],
        track: Track,
        report: Report,
    ) -> Edit:
        """The edit of these requests on top of `edits`. Configs arrive here resolved for the model."""
        raise TypeError(f"{type(self).__name__} is the base of the methods and solves nothing itself.")


def keyless(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: MethodConfig,
    deltas: tuple[Delta, ...],
    edits: Sequence[Edit],
    history: tuple[Step, ...] = (),
    corpus: str = "",
) -> Edit:
    """An edit by a method that knows no keys and values, only updates."""
    key, value = torch.zeros(0, lm.d_mlp), torch.zeros(0, lm.d_model)
    return Edit(
        requests=tuple(requests),
        method=config.name,
        config=config,
        deltas=deltas,
        k_star=key,
        v_star=value,
        k_0=key,
        v_0=value,
        history=history,
        base=lm.fingerprint,
        on=tuple(edit.id for edit in edits),
        corpus=corpus,
    )
