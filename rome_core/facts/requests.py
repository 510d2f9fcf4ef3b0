"""Many requests from a table: what each row asks for, or in one sentence what is wrong with it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rome_core.errors import DataError, RomeError
from rome_core.facts.datasets import load_facts, parse_facts
from rome_core.model.tokens import EditRequest, Prompt

COLUMNS = ("template", "subject", "target_new", "target_true")
# What other people call the same columns, in lower case.
ALIASES = {
    "template": ("template", "prompt", "relation"),
    "subject": ("subject",),
    "target_new": ("target_new", "new object", "new", "target new", "target"),
    "target_true": ("target_true", "true object", "true", "target true", "ground_truth"),
}


@dataclass(frozen=True)
class Row:
    """One row of a table of requests; cells are texts, empty where there is nothing."""

    template: str = ""
    subject: str = ""
    target_new: str = ""
    target_true: str = ""

    @property
    def empty(self) -> bool:
        return not any((self.template, self.subject, self.target_new, self.target_true))


def row_of(cells: Mapping[str, Any]) -> Row:
    """A row from cells under any of the columns' names. A relation of the project's facts stands for its template."""
    found = {str(name).strip().casefold(): value for name, value in cells.items() if name is not None}
    texts = {
        column: next((text for name in names if (text := _text(found.get(name)))), "")
        for column, names in ALIASES.items()
    }
    if texts["template"] and "{}" not in texts["template"]:
        texts["template"] = _templates().get(texts["template"], texts["template"])
    return Row(**texts)


def _text(value: Any) -> str:
    """A cell as a text; what a table puts where nothing was typed (None, NaN) is empty."""
    return "" if value is None or value != value else str(value).strip()


def _templates() -> dict[str, str]:
    return {fact.relation: fact.prompt.template for fact in reversed(load_facts())}


def requests_of(rows: Sequence[Row]) -> tuple[dict[int, EditRequest], dict[int, str]]:
    """The requests of the good rows and one sentence for each bad one, by row number from 1. Empty rows are neither.

    A prompt that was asked before is bad: a model cannot give two answers, and two equal keys cannot be told apart.
    """
    good: dict[int, EditRequest] = {}
    bad: dict[int, str] = {}
    asked: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.empty:
            continue
        try:
            prompt = Prompt(row.template, row.subject) if "{}" in row.template else _found(row)
            request = EditRequest(prompt, row.target_new, row.target_true or None)
        except RomeError as error:
            bad[number] = str(error)
            continue
        if prompt.text in asked:
            bad[number] = f"Row {asked[prompt.text]} edits the same prompt already. Keep one of them."
            continue
        asked[prompt.text] = number
        good[number] = request
    return good, bad


def _found(row: Row) -> Prompt:
    return Prompt.from_text(row.template, row.subject)


def read_rows(text: str, name: str) -> tuple[list[Row], list[str]]:
    """Rows of a file and what could not be read of it. CSV with a header, JSON with the same columns, or facts in one
    of the formats of `load_facts`. Raises DataError if nothing can be read."""
    if name.casefold().endswith(".csv"):
        return _csv_rows(text, name), []
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"'{name}' is not JSON: {error.msg} in line {error.lineno}.", "", "Give CSV or JSON.") from None
    if isinstance(data, list) and data and _plain(data[0]):
        return [row_of(record if isinstance(record, dict) else {}) for record in data], []
    facts = parse_facts(text, name)
    rows = [Row(f.prompt.template, f.prompt.subject, f.target_new, f.target_true) for f in facts]
    return rows, [str(problem) for problem in facts.problems]


def _plain(record: Any) -> bool:
    names = {str(name).strip().casefold() for name in record} if isinstance(record, dict) else set()
    return (
        "subject" in names and bool(names & set(ALIASES["template"])) and bool(names & set(ALIASES["target_new"][:3]))
    )


def _csv_rows(text: str, name: str) -> list[Row]:
    sample = text.lstrip("\ufeff")
    separator = max(",;\t", key=sample.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(sample), delimiter=separator)
    names = {str(column).strip().casefold() for column in reader.fieldnames or ()}
    missing = [column for column in COLUMNS[:3] if not names & set(ALIASES[column])]
    if missing:
        raise DataError(
            f"'{name}' has no column {' and no column '.join(missing)}.",
            f"Its first line names {', '.join(sorted(names)) or 'nothing'}.",
            "Name the columns subject, template (or relation), target_new and target_true in the first line.",
        )
    return [row_of(record) for record in reader]


def as_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV, to be read again."""
    out = io.StringIO()
    lines = csv.writer(out)
    lines.writerow(COLUMNS)
    lines.writerows([getattr(row, column) for column in COLUMNS] for row in rows)
    return out.getvalue()
