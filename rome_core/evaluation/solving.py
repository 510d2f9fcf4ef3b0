"""One fact by several methods: those that look for the same δ share one search, and only their updates differ."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.presets import resolve
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.shared_search import reuse
from rome_core.errors import RomeError
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent

# What one fact can run into though the program is right: it cannot be edited so, or its matrices cannot be factored.
FAILURES = (RomeError, torch.linalg.LinAlgError)


def explain(error: Exception) -> str:
    """Why a fact failed, in a sentence or with the error's name."""
    return str(error) if isinstance(error, RomeError) else f"{type(error).__name__}: {str(error)[:300]}"


@dataclass(frozen=True, eq=False)
class Solved:
    """One method's edit, or the reason why there is none.

    shared: the method whose δ it took over; `seconds` is then what was spent beyond its search.
    """

    config: MethodConfig
    edit: Edit | None = None
    seconds: float = 0.0
    shared: str = ""
    error: str = ""


def solve_by_each(
    lm: LanguageModel,
    request: EditRequest,
    configs: Sequence[MethodConfig],
    *,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
    track: Track = silent,
) -> Iterator[Solved]:
    """The request solved by one method after another, each by itself on top of `edits`.

    moments: C by layer; a layer that is not among them takes the shipped or cached one, or estimates it.
    """
    searched: list[tuple[MethodConfig, Edit]] = []
    for config in track([resolve(lm, config, [request]) for config in configs], "Methods", len(configs)):
        donor = next(((other, edit) for other, edit in searched if other.shares_search(config)), None)
        try:
            C = _moments(lm, config, moments or {}, track)
            began = time.monotonic()
            if donor:
                edit = reuse(lm, donor[1], config, C, edits)
            else:
                edit = solve(lm, [request], config, moments=C, edits=edits, track=track)
                searched.append((config, edit))
        except FAILURES as error:
            yield Solved(config, error=explain(error))
            continue
        yield Solved(config, edit, time.monotonic() - began, donor[0].name if donor else "")


def _moments(lm: LanguageModel, config: MethodConfig, given: Mapping[int, Moment], track: Track) -> dict[int, Moment]:
    """C of the layers that a method needs. A layer that the model does not have is left to the method to refuse."""
    missing = [layer for layer in config.layers if layer not in given and 0 <= layer < lm.n_layers]
    return {**moments_for(lm, missing, None, track), **given}
