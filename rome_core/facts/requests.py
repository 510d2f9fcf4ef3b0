"""The one door for edit requests from outside: pasted lines, CSV and JSON become rows, and rows become requests.

A format is one function that gives its rows in order (`FORMATS`); what a row asks for is decided in one place.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from rome_core.errors import DataError, RomeError
from rome_core.facts.datasets import load_facts, parse_facts, parse_json, parse_record
from rome_core.model.tokens import EditRequest, Prompt

COLUMNS = ("template", "subject", "target_new", "target_true")
# What other people call the same columns, in lower case, with spaces for underscores.
ALIASES = {
    "template": ("template", "prompt", "relation"),
    "subject": ("subject",),
    "target_new": ("target new", "new object", "new", "target"),
    "target_true": ("target true", "true object", "true", "ground truth"),
}
PASTED = "prompt with {} | subject | new object | true object (may be left out)"


@dataclass(frozen=True)
class Row:
    """One row as it was written; cells are texts, empty where there is nothing."""

    template: str = ""
    subject: str = ""
    target_new: str = ""
    target_true: str = ""

    @classmethod
    def from_cells(cls, cells: Mapping[str, object]) -> Row:
        """A row from cells under any of the columns' names; raises DataError if a cell holds more than a text."""
        known = {_plain(name): cell for name, cell in cells.items()}
        texts = {column: [_text(name, known.get(name)) for name in names] for column, names in ALIASES.items()}
        return cls(**{column: next(filter(None, alike), "") for column, alike in texts.items()})

    @classmethod
    def from_request(cls, request: EditRequest) -> Row:
        prompt = request.prompt
        return cls(prompt.template, prompt.subject, request.target_new.strip(), (request.target_true or "").strip())

    @property
    def empty(self) -> bool:
        return not any(asdict(self).values())


@dataclass(frozen=True)
class Place:
    """Where a row stands, counted from 1: 'facts.csv, line 3'."""

    number: int
    unit: str = "row"
    source: str = ""

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}" if self.source else f"{self.unit} {self.number}"


@dataclass(frozen=True)
class Problem:
    """Why the row at a place is no request, in one sentence."""

    place: Place
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


@dataclass(frozen=True)
class Table:
    """The rows of a text by their places, empty ones too, and a problem for each that has not the form of a row."""

    rows: Mapping[Place, Row]
    problems: Sequence[Problem] = ()

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Table:
        return cls({Place(number): row for number, row in enumerate(rows, 1)})


@dataclass(frozen=True)
class Requests:
    """What was asked for: every row is a request, a problem or empty."""

    requests: tuple[EditRequest, ...] = ()
    problems: tuple[Problem, ...] = ()
    n_empty: int = 0


def read_requests(text: str, name: str = "the list") -> Requests:
    """The requests of a pasted or uploaded text. Raises DataError if it cannot be read as a whole."""
    return check_table(read_table(text, name))


def read_table(text: str, name: str = "the list") -> Table:
    """The rows of a text, as they are to be shown in a table that can be edited; `name` is how messages call it.

    Lines: prompt with {} | subject | new object | true object. CSV (comma, semicolon or tab) or a list of JSON
    records with columns by any of their names, or facts in one of the formats of `load_facts`. Raises DataError if the
    text cannot be read as a whole.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"'{name}' is empty.", "", f"Write one edit a line: {PASTED}.")
    form = next(form for form in FORMATS if form.fits(text, name))
    rows, problems = dict[Place, Row](), list[Problem]()
    for number, row in form.rows(text, name):
        place = Place(number, form.unit, name)
        if isinstance(row, Row):
            rows[place] = row
        else:
            problems.append(Problem(place, row))
    if not problems and all(row.empty for row in rows.values()):
        raise DataError(f"'{name}' holds no edits.", "", f"Write one a line: {PASTED}.")
    return Table(dict(zip(rows, _fill_templates(rows.values()), strict=True)), problems)


def check_table(table: Table) -> Requests:
    """The requests of a table; a prompt without {} has its subject looked for.

    A prompt that was asked before is a problem: a model cannot give two answers, and two equal keys cannot be told
    apart.
    """
    requests, problems, n_empty, first = list[EditRequest](), list(table.problems), 0, dict[str, Place]()
    for place, row in zip(table.rows, _fill_templates(table.rows.values()), strict=True):
        if row.empty:
            n_empty += 1
            continue
        try:
            request = _build(row)
        except RomeError as error:
            problems.append(Problem(place, str(error)))
            continue
        before = first.setdefault(request.prompt.text, place)
        if before is place:
            requests.append(request)
        else:
            same = f"{before.unit.capitalize()} {before.number} edits the same prompt already. Keep one of them."
            problems.append(Problem(place, same))
    problems.sort(key=lambda problem: problem.place.number)
    return Requests(tuple(requests), tuple(problems), n_empty)


def _build(row: Row) -> EditRequest:
    """What a row asks for; raises PromptError if it cannot be asked."""
    make = Prompt if "{}" in row.template else Prompt.from_text
    return EditRequest(make(row.template, row.subject), row.target_new, row.target_true or None)


def _fill_templates(rows: Iterable[Row]) -> list[Row]:
    """The rows, with its template wherever one gives only the name of a relation of the project's facts."""
    rows = list(rows)
    if all("{}" in row.template or not row.template for row in rows):
        return rows
    templates = {fact.relation: fact.prompt.template for fact in reversed(load_facts())}
    return [replace(row, template=templates.get(row.template, row.template)) for row in rows]


def _plain(column: object) -> str:
    """A column's name as `ALIASES` has it."""
    return str(column).replace("_", " ").strip().casefold()


def _text(name: str, cell: object) -> str:
    """A cell as a text; what a table puts where nothing was typed (None, NaN) is empty."""
    if isinstance(cell, (dict, list)):
        raise DataError(f"'{name}' holds a {'list' if isinstance(cell, list) else 'record'} where a text is needed.")
    return "" if cell is None or cell != cell else str(cell).strip()


# ------------------------------------------------------------------------------------------------------------ formats

Numbered = Iterator[tuple[int, Row | str]]  # each row's number, and the row or why there is none


def _is_json(text: str, name: str) -> bool:
    start = text.lstrip()
    return name.casefold().endswith(".json") or (start[0] in "[{" and not start.startswith("{}"))


def _json_rows(text: str, name: str) -> Numbered:
    """Records with the columns of a table, or facts in one of the formats of `load_facts`."""
    data = parse_json(text, name)
    if not isinstance(data, list):  # the project's own form
        yield from enumerate((Row.from_request(fact.request) for fact in parse_facts(text, name)), 1)
        return
    for number, record in enumerate(data, 1):
        names = {_plain(field) for field in record} if isinstance(record, dict) else set()
        try:
            if all(names.intersection(ALIASES[column]) for column in COLUMNS[:3]):
                yield number, Row.from_cells(record)
            else:
                yield number, Row.from_request(parse_record(record, number - 1).request)
        except RomeError as error:
            yield number, str(error)


def _split_header(text: str) -> tuple[str, list[str]]:
    """What separates the cells of a CSV, and the names of its columns as they are written."""
    line = next(line for line in io.StringIO(text, newline=None) if line.strip())
    separator = max(",;\t", key=line.count)
    return separator, [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _is_csv(text: str, name: str) -> bool:
    return name.casefold().endswith((".csv", ".tsv")) or "subject" in map(_plain, _split_header(text)[1])


def _csv_rows(text: str, name: str) -> Numbered:
    """Cells behind a first line that names their columns; a row's number is that of the line where it begins."""
    separator, header = _split_header(text)
    missing = [column for column in COLUMNS[:3] if not set(map(_plain, header)).intersection(ALIASES[column])]
    if missing:
        raise DataError(
            f"'{name}' has no column {' and no column '.join(missing)}.",
            f"Its first line names {', '.join(filter(None, header)) or 'nothing'}.",
            "Name the columns subject, template (or relation), target_new and target_true in the first line.",
        )
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        next(cells for cells in lines if any(map(str.strip, cells)))  # the header
        begin = lines.line_num + 1
        for cells in lines:
            if any(map(str.strip, cells[len(header) :])):
                yield begin, f"{len(cells)} cells stand under {len(header)} columns."
            else:
                yield begin, Row.from_cells(dict(zip(header, cells, strict=False)))
            begin = lines.line_num + 1
    except csv.Error as error:
        raise DataError(f"'{name}' is not CSV: {error} in line {lines.line_num}.") from None


def _pasted_rows(text: str, name: str) -> Numbered:
    """A row a line, its cells between bars."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        cells = line.split("|")
        if not line.strip():
            yield number, Row()
        elif len(cells) < 3:
            yield number, f"{len(cells)} of the 3 parts are there. Write {PASTED}."
        elif len(cells) > 4:
            yield number, f"{len(cells)} parts are there, 4 at most are known. Write {PASTED}."
        else:
            yield number, Row.from_cells(dict(zip(COLUMNS, cells, strict=False)))


@dataclass(frozen=True)
class Format:
    """unit: what its rows are counted in. fits: whether a text is meant so, by its shape or its file's name."""

    unit: str
    fits: Callable[[str, str], bool]
    rows: Callable[[str, str], Numbered]


# The first that fits is taken.
FORMATS = (
    Format("record", _is_json, _json_rows),
    Format("line", _is_csv, _csv_rows),
    Format("line", lambda text, name: True, _pasted_rows),
)
