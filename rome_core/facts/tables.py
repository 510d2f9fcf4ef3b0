"""What stands in a file, before anybody asks what it means: its records, each with its place, and what is no record.

A form is told by the text's shape or the file's name; each is one function (`FORMS`). No cell is converted here.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rome_core.errors import DataError
from rome_core.files import decode

Cells = Mapping[str, Any]

PASTED = "prompt with {} | subject | new object | true object (may be left out)"
PASTED_COLUMNS = ("template", "subject", "target_new", "target_true")
# What a record calls its fields: in lower case, with spaces for underscores; the first that holds something is it.
# The prompt stands before the template, because the template of a known fact may stop before its prompt does.
PROMPT = ("prompt", "template", "src", "question", "relation")
SUBJECT = ("subject", "sub label")
OBJECT = ("object", "obj label")
PARQUET = b"PAR1"


@dataclass(frozen=True)
class Place:
    """Where a row stands, counted from 1: 'facts.csv, line 3'. part: which of several things in it."""

    number: int
    unit: str = "row"
    source: str = ""
    part: str = ""

    def __str__(self) -> str:
        names = (self.source, f"{self.unit} {self.number}", self.part)
        return ", ".join(filter(None, names))


@dataclass(frozen=True)
class Problem:
    """Why what stands at a place is left out, in one sentence, which names the field whose fault it is."""

    place: Place
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


@dataclass(frozen=True)
class Twice:
    """Stands for the value of a field that a record has twice."""


@dataclass
class Source:
    """The records of one file by their places, those that cannot be read, and how many are empty."""

    form: str
    records: dict[Place, Cells] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    n_empty: int = 0


def read_source(data: str | bytes, name: str = "the list", encoding: str | None = None) -> Source:
    """The records of a text or of a file's bytes; `name` is how messages call it.

    CSV with commas, semicolons or tabs, JSON, JSON Lines, Parquet, or pasted lines. Raises DataError if it cannot be
    read as a whole (an EncodingError where only its encoding must be named).
    """
    if isinstance(data, bytes) and data.startswith(PARQUET):
        return _source("Parquet", "row", name, _parquet(data, name))
    text = decode(data, name, encoding) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"'{name}' is empty.", "", f"Give a table or JSON, or write one fact a line: {PASTED}.")
    form = next(form for form in FORMS if form.fits(text, name))
    return _source(form.name, form.unit, name, form.records(text, name))


Numbered = Iterator[tuple[int, Cells | str | None]]  # each record's number, and the record, None, or why there is none


def _source(form: str, unit: str, name: str, records: Numbered) -> Source:
    source = Source(form)
    for number, record in records:
        place = Place(number, unit, name)
        if record is None or (isinstance(record, dict) and all(map(is_nothing, record.values()))):
            source.n_empty += 1
        elif isinstance(record, str):
            source.problems.append(Problem(place, record))
        else:
            source.records[place] = record
    return source


def is_nothing(value: object) -> bool:
    """Whether a cell is empty: also NaN, which tables put where nothing was written."""
    blank = isinstance(value, str) and not value.strip()
    return value is None or value != value or blank or (isinstance(value, (list, tuple, dict)) and not value)


def plain(column: object) -> str:
    """A column's name as it is looked up: in lower case, with spaces for underscores."""
    return str(column).replace("_", " ").strip().casefold()


# ---------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str, name: str) -> object:
    """What a JSON text holds; raises DataError with the line where it ends to be JSON."""
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise DataError(
            f"'{name}' is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.",
            "",
            "Give a JSON file with a list of records, or one record a line.",
        ) from None
    except (RecursionError, ValueError):
        raise DataError(
            f"'{name}' is nested too deeply, or has a number too long.", "", "Give plain records."
        ) from None


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; a field that stands in it twice has no value."""
    names = Counter(name for name, _ in pairs)
    return {name: value if names[name] == 1 else Twice() for name, value in pairs}


def _is_json(text: str, name: str) -> bool:
    start = text.lstrip()
    return name.casefold().endswith(".json") or (start[0] in "[{" and not start.startswith(("{}", "[X]")))


def _json(text: str, name: str) -> Numbered:
    """A list of records; one record; or an object with one list of records in it."""
    data = parse_json(text, name)
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        records = [value for value in lists if value and all(isinstance(record, dict) for record in value)]
        data = records[0] if len(data) == len(records) == 1 and "relations" not in data else [data]
    if not isinstance(data, list) or not data:
        raise DataError(f"'{name}' holds no list of records.", "", "Give a JSON file with a list of records.")
    for number, record in enumerate(data, 1):
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, f"It is {kind_of(record)}, not a record with fields."


def _is_json_lines(text: str, name: str) -> bool:
    if not _is_json(text, name) and not name.casefold().endswith((".jsonl", ".ndjson")):
        return False
    lines = [line for line in io.StringIO(text, newline=None) if line.strip()]
    if name.casefold().endswith((".jsonl", ".ndjson")):
        return True
    if not lines[0].lstrip().startswith("{"):
        return False
    return sum(_is_object(line) for line in lines) > len(lines) / 2 and len(lines) > 1


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(text: str, name: str) -> Numbered:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield number, None
            continue
        try:
            record = parse_json(line, name)
        except DataError:
            yield number, "The line is not JSON."
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, f"It is {kind_of(record)}, not a record with fields."


def kind_of(value: object) -> str:
    """What a value is, in words of everyday."""
    if isinstance(value, Twice):
        return "there twice"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, (list, tuple)) else "a record" if isinstance(value, dict) else "no text"


# ----------------------------------------------------------------------------------------------------------------- CSV


def _split_header(text: str) -> tuple[str, list[str]]:
    """What separates the cells of a CSV, and the names of its columns as they are written."""
    line = next(line for line in io.StringIO(text, newline=None) if line.strip())
    separator = max(",;\t", key=line.count)
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    except csv.Error:
        cells = [line]
    return separator, [cell.strip() for cell in cells]


def _is_csv(text: str, name: str) -> bool:
    return name.casefold().endswith((".csv", ".tsv", ".tab")) or any(
        plain(c) in SUBJECT for c in _split_header(text)[1]
    )


def _csv(text: str, name: str) -> Numbered:
    """Cells behind a first line that names their columns; a row's number is that of the line where it begins."""
    separator, header = _split_header(text)
    twice = [column for column, n in Counter(map(plain, header)).items() if n > 1 and column]
    if twice:
        raise DataError(f"'{name}' has two columns '{twice[0]}'.", "", "Give each column a name of its own.")
    names = set(map(plain, header))
    needed = {"template": (*PROMPT, *OBJECT), "subject": SUBJECT}
    if missing := [what for what, columns in needed.items() if names.isdisjoint(columns)]:
        raise DataError(
            f"'{name}' has no column {' and no column '.join(missing)}.",
            f"Its first line names {', '.join(filter(None, header)) or 'nothing'}.",
            "Name the columns in the first line: subject, template (or relation), target_new and target_true.",
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    begin = 1
    try:
        for cells in lines:
            if any(map(str.strip, cells)):  # the header
                break
        begin = lines.line_num + 1
        for cells in lines:
            if not any(map(str.strip, cells)):
                yield begin, None
            elif any(map(str.strip, cells[len(header) :])):
                yield (
                    begin,
                    f"{len(cells)} cells stand under {len(header)} columns. Put a cell with {separator!r} in quotes.",
                )
            else:
                yield begin, {column: cell for column, cell in zip(header, cells, strict=False) if column}
            begin = lines.line_num + 1
    except csv.Error as error:
        quote = "unexpected end" in str(error)
        what = "a quotation mark is opened and not closed" if quote else str(error)
        raise DataError(
            f"'{name}', line {begin}: {what}.", "", 'Close it, or write a quotation mark within a cell twice: "".'
        ) from None


# ------------------------------------------------------------------------------------------------------ other forms


def _pasted(text: str, name: str) -> Numbered:
    """A row a line, its cells between bars."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        cells = line.split("|")
        if not line.strip():
            yield number, None
        elif len(cells) < 3:
            yield number, f"{len(cells)} of the 3 parts are there. Write {PASTED}."
        elif len(cells) > 4:
            yield number, f"{len(cells)} parts are there, 4 at most are known. Write {PASTED}."
        elif not any(map(str.strip, cells)):
            yield number, None
        else:
            yield number, dict(zip(PASTED_COLUMNS, cells, strict=False))


def _parquet(data: bytes, name: str) -> Numbered:
    try:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "It is damaged."
        raise DataError(f"'{name}' is no Parquet file that can be read.", reason, "Write it anew.") from None
    yield from enumerate(rows, 1)


@dataclass(frozen=True)
class Form:
    """unit: what its records are counted in. fits: whether a text is meant so, by its shape or its file's name."""

    name: str
    unit: str
    fits: Callable[[str, str], bool]
    records: Callable[[str, str], Numbered]


# The first that fits is taken.
FORMS = (
    Form("JSON Lines", "line", _is_json_lines, _json_lines),
    Form("JSON", "record", _is_json, _json),
    Form("CSV", "line", _is_csv, _csv),
    Form("pasted lines", "line", lambda text, name: True, _pasted),
)
