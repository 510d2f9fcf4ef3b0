"""Many edits diagnosed one after another: requests from a list or a file, and edits that are solved already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rome_core.diagnosis.calibration import Verdict
from rome_core.diagnosis.verdict import Diagnosis, diagnose, has_key, size_of
from rome_core.editing.edit import Edit
from rome_core.editing.method import MethodConfig
from rome_core.editing.methods import solve
from rome_core.editing.second_moment import Moment
from rome_core.errors import RomeError
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent


@dataclass(frozen=True, eq=False)
class Screened:
    """One diagnosis of many. diagnosis: None for methods without a single key, whose verdict is by size alone.

    error: why there is none at all; then edit and verdict are None.
    """

    request: EditRequest
    edit: Edit | None = None
    verdict: Verdict | None = None
    diagnosis: Diagnosis | None = None
    relative_F: float | None = None
    error: str = ""


def diagnose_many(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: MethodConfig,
    *,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
    track: Track = silent,
) -> Iterator[Screened]:
    """Solve each request by itself on top of `edits`, apply none, and diagnose it; one that fails says why.

    The prefixes are sampled once, with the first request that can be solved.
    """
    for request in track(list(requests), "Diagnosing", len(requests)):
        try:
            config = config.with_prefixes(lm, edits)
            edit = solve(lm, [request], config, moments=moments, edits=edits, track=track)
            yield screen(lm, edit, moments)
        except RomeError as error:
            yield Screened(request, error=str(error))


def diagnose_sequence(
    lm: LanguageModel,
    edits: Sequence[Edit],
    *,
    moments: Mapping[int, Moment] | None = None,
    track: Track = silent,
) -> Iterator[Screened]:
    """Diagnose edits that are solved already, each as it is."""
    for edit in track(list(edits), "Diagnosing", len(edits)):
        try:
            yield screen(lm, edit, moments)
        except RomeError as error:
            yield Screened(edit.requests[0], edit=edit, error=str(error))


def screen(lm: LanguageModel, edit: Edit, moments: Mapping[int, Moment] | None = None) -> Screened:
    if has_key(edit):
        found = diagnose(lm, edit, moments)
        return Screened(edit.requests[0], edit, found.verdict, found, found.relative_F)
    size = size_of(lm, edit)
    return Screened(edit.requests[0], edit, size.verdict, None, size.relative_F)
