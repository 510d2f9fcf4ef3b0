"""Many edits diagnosed one after another: requests from a list or a file, and edits that are solved already."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rome_core.diagnosis.calibration import Verdict
from rome_core.diagnosis.verdict import Diagnosis, diagnose, has_key, size_of
from rome_core.editing.edit import Edit
from rome_core.editing.method import MethodConfig
from rome_core.editing.methods import solve
from rome_core.editing.second_moment import Moment
from rome_core.errors import DataError, RomeError
from rome_core.facts.datasets import parse_facts
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.progress import Track, silent

COLUMNS = ("prompt", "subject", "target_new", "target_true")
PASTED = "prompt with {} | subject | new object | true object (may be left out)"


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
            yield screened(lm, edit, moments)
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
            yield screened(lm, edit, moments)
        except RomeError as error:
            yield Screened(edit.requests[0], edit=edit, error=str(error))


def screened(lm: LanguageModel, edit: Edit, moments: Mapping[int, Moment] | None = None) -> Screened:
    if has_key(edit):
        found = diagnose(lm, edit, moments)
        return Screened(edit.requests[0], edit, found.verdict, found, found.relative_F)
    size = size_of(lm, edit)
    return Screened(edit.requests[0], edit, size.verdict, None, size.relative_F)


# ----------------------------------------------------------------------------------------------------------- requests


def requests_from(text: str, name: str = "the list") -> tuple[list[EditRequest], list[DataError]]:
    """Requests from pasted lines, CSV with a header, or JSON; and what was wrong with the others, each with its place.

    Lines: prompt with {} | subject | new object | true object. CSV: columns prompt, subject, target_new and, if known,
    target_true. JSON: the formats of `load_facts`. Raises DataError if nothing can be read.
    """
    bare = text.lstrip("\ufeff \n\r\t")
    if not bare:
        raise DataError(f"'{name}' is empty.", "", f"Write one edit a line: {PASTED}.")
    if bare[0] in "[{" and not bare.startswith("{}"):
        facts = parse_facts(bare, name)
        return [fact.request for fact in facts], facts.problems
    head = bare.splitlines()[0].lower()
    rows = _csv(bare, name) if "|" not in head and "subject" in head else _lines(bare, name)
    requests, problems = [], []
    for place, cells in rows:
        try:
            requests.append(_request(cells, place))
        except DataError as error:
            problems.append(error)
    if not requests:
        raise problems[0] if problems else DataError(f"'{name}' holds no edits.", "", f"Write one a line: {PASTED}.")
    return requests, problems


Row = tuple[str, Sequence[str]]


def _csv(text: str, name: str) -> Iterator[Row]:
    try:
        rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"'{name}' is not CSV: {error}.", "", f"Give the columns {', '.join(COLUMNS)}.") from None
    missing = [column for column in COLUMNS[:3] if rows and column not in rows[0]]
    if missing:
        raise DataError(
            f"'{name}' has no column '{missing[0]}'.",
            f"Its columns are {', '.join(map(str, rows[0]))}.",
            f"Give the columns {', '.join(COLUMNS)}.",
        )
    for number, row in enumerate(rows, 2):
        yield f"{name}, line {number}", [row.get(column) or "" for column in COLUMNS]


def _lines(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{name}, line {number}", [cell.strip() for cell in line.split("|")]


def _request(cells: Sequence[str], place: str) -> EditRequest:
    """A request from cells; a prompt without {} has its subject looked for."""
    if len(cells) < 3:
        raise DataError(f"{place}: {len(cells)} of the 3 parts are there.", "", f"Write {PASTED}.")
    prompt, subject, new, true = (*cells, "")[:4]
    try:
        asked = Prompt(prompt, subject) if "{}" in prompt else Prompt.from_text(prompt, subject)
        return EditRequest(asked, new, true or None)
    except RomeError as error:
        raise DataError(f"{place}: {error}") from None
