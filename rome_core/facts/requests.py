"""Edit requests from outside: pasted lines and files become rows of a table, and rows become requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from rome_core.errors import DataError, RomeError
from rome_core.facts.fact import Fact
from rome_core.facts.formats import (
    FLAT,
    NEW,
    TRUE,
    flat_cells,
    format_of,
    notes_on,
    prompt_of,
    read_record,
    templates_of,
)
from rome_core.facts.tables import PASTED, PASTED_COLUMNS, PROMPT, SUBJECT, Cells, Place, Problem, plain, read_source
from rome_core.model.tokens import EditRequest

__all__ = ["COLUMNS", "PASTED", "Place", "Problem", "Requests", "Row", "Table", "check_table", "read_requests"]

COLUMNS = PASTED_COLUMNS
COLUMN_NAMES = frozenset({*PROMPT, *SUBJECT, *NEW, *TRUE})


@dataclass(frozen=True)
class Row:
    """One row as it was written; cells are texts, empty where there is nothing."""

    template: str = ""
    subject: str = ""
    target_new: str = ""
    target_true: str = ""

    @classmethod
    def from_cells(cls, cells: Cells) -> Row:
        """A row from cells under any of the columns' names; raises DataError if a cell is no text."""
        return cls(**flat_cells(cells))

    @classmethod
    def from_request(cls, request: EditRequest) -> Row:
        return cls(request.prompt.template, request.prompt.subject, request.target_new, request.target_true or "")

    @classmethod
    def from_fact(cls, fact: Fact) -> Row:
        return cls(fact.prompt.template, fact.prompt.subject, fact.target_new, fact.target_true)

    @property
    def empty(self) -> bool:
        return not any(asdict(self).values())


@dataclass(frozen=True)
class Table:
    """The rows of a text by their places, empty ones too, and a problem for each that has not the form of a row."""

    rows: Mapping[Place, Row]
    problems: Sequence[Problem] = ()
    n_empty: int = 0  # of those that have no place in it
    notes: tuple[str, ...] = ()  # what was there and not used

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Table:
        return cls({Place(number): row for number, row in enumerate(rows, 1)})


@dataclass(frozen=True)
class Requests:
    """What was asked for: every row is a request, a problem or empty."""

    requests: tuple[EditRequest, ...] = ()
    problems: tuple[Problem, ...] = ()
    n_empty: int = 0
    notes: tuple[str, ...] = ()


def read_requests(data: str | bytes, name: str = "the list", encoding: str | None = None) -> Requests:
    """The requests of a pasted text or of a file's bytes. Raises DataError if it cannot be read as a whole."""
    return check_table(read_table(data, name, encoding))


def read_table(data: str | bytes, name: str = "the list", encoding: str | None = None) -> Table:
    """The rows of a text or a file, as they are to be shown in a table that can be edited.

    Lines: prompt with {} | subject | new object | true object; or anything that `load_facts` reads. A row of a table
    that lacks something stays a row, to be completed. Raises DataError if the text cannot be read as a whole.
    """
    source = read_source(data, name, encoding)
    templates = templates_of(source.records.values())
    rows, problems = dict[Place, Row](), list(source.problems)
    for number, (place, record) in enumerate(source.records.items(), 1):
        try:
            if format_of(record).fields == FLAT and not COLUMN_NAMES.isdisjoint(map(plain, record)):
                rows[place] = Row.from_cells(record)
                continue
        except RomeError as error:
            problems.append(Problem(place, str(error)))
            continue
        for part, item in read_record(record, number, templates):
            where = replace(place, part=part or (f"fact {len(rows) + 1}" if place in rows else ""))
            if isinstance(item, Fact):
                rows[where] = Row.from_fact(item)
            else:
                problems.append(Problem(where, item))
    if not problems and all(row.empty for row in rows.values()):
        raise DataError(f"'{name}' holds no edits.", "", f"Write one a line: {PASTED}.")
    return Table(rows, problems, source.n_empty, notes_on(source.records.values()))


def check_table(table: Table) -> Requests:
    """The requests of a table; a prompt without {} has its subject looked for.

    A prompt that was asked before is a problem: a model cannot give two answers, and two equal keys cannot be told
    apart.
    """
    requests, problems, first = list[EditRequest](), list(table.problems), dict[str, Place]()
    n_empty = table.n_empty
    for place, row in table.rows.items():
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
    return Requests(tuple(requests), tuple(problems), n_empty, table.notes)


def _build(row: Row) -> EditRequest:
    """What a row asks for; raises PromptError if it cannot be asked."""
    return EditRequest(prompt_of(row.template, row.subject), row.target_new, row.target_true or None)
