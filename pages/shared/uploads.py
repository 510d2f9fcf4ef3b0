"""Files that a visitor brings, read strictly; where only the encoding is in doubt, again in the one that is named."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from pages.shared import public, session, track
from pages.shared.text import count, literal
from rome_core.errors import DataError, RomeError
from rome_core.facts.datasets import READABLE, SUFFIXES, Facts
from rome_core.facts.tables import PARQUET, Problem
from rome_core.files import WINDOWS, EncodingError, decode

R = TypeVar("R")
SHOWN_PLACES = 5
MOST_VALUES = 5_000_000  # of one file; CounterFact, the largest public one, has half as many
MOST_BYTES = 2**28  # of one Parquet file, unpacked
ROWS_AT_ONCE = 1000
Upload = tuple[str, str | bytes]  # a file's name, and its bytes, or its text where its encoding was named


@dataclass
class _Taken(Generic[R]):
    """What an uploader holds: read once, not on every redraw."""

    result: R
    is_new: bool = True


def uploaded(
    label: str,
    key: str,
    read: Callable[[list[Upload]], R],
    suffixes: Sequence[str] = SUFFIXES,
    help: str = READABLE,
) -> R | None:
    """An uploader of one or several files, and what `read` makes of them; what is wrong is said below it."""
    kinds = public.suffixes_of(suffixes)
    files = list(st.file_uploader(label, type=kinds, key=key, help=help, accept_multiple_files=True) or [])
    if not files:
        session.keep(_place(key), dict[str, _Taken[R]]).clear()
        return None
    windows = session.keep(("windows-1252", key), set[str])
    name = " ".join(f"{file.file_id}{'*' * (file.file_id in windows)}" for file in files)
    taken = session.keep(_place(key), dict[str, _Taken[R]])
    if name not in taken:
        try:
            public.check_upload([file.size for file in files])
            result = read([_content(file, windows) for file in files])
        except EncodingError as error:
            track.show_error(error)
            doubtful = [file.file_id for file in files if _is_doubtful(file)]
            st.button("Read it as Windows-1252", key=f"{key}-windows", on_click=windows.update, args=(doubtful,))
            return None
        except RomeError as error:
            track.show_error(error)
            return None
        taken.clear()
        taken[name] = _Taken(result)
    if chosen := [file.name for file in files if file.file_id in windows]:
        st.caption(literal(f"Read as Windows-1252, as you chose: {', '.join(chosen)}."))
    return taken[name].result


def uploaded_and_kept(
    label: str,
    key: str,
    read: Callable[[list[Upload]], R],
    suffixes: Sequence[str] = SUFFIXES,
    help: str = READABLE,
) -> R | None:
    """The same; what was read stays in the session when the page is left, which empties the uploader."""
    result = uploaded(label, key, read, suffixes, help)
    kept = session.keep("brought", dict[str, R])
    if result is not None:
        kept[key] = result
    elif st.session_state.get(key):  # what is there now cannot be read
        kept.pop(key, None)
    return kept.get(key)


def first_time(key: str) -> bool:
    """Whether what the uploader gave was not taken by its page yet; now it is."""
    is_new = any(one.is_new for one in session.keep(_place(key), dict[str, _Taken[Any]]).values())
    for one in session.keep(_place(key), dict[str, _Taken[Any]]).values():
        one.is_new = False
    return is_new


def _place(key: str) -> tuple[str, str]:
    return "uploaded", key


def _content(file: UploadedFile, windows: Container[str]) -> Upload:
    data = file.getvalue()
    check_unpacked(file.name, data)
    return file.name, decode(data, file.name, WINDOWS) if file.file_id in windows else data


def check_unpacked(name: str, data: bytes) -> None:
    """Raise DataError for a file that would unpack to far more than it weighs, before it is read."""
    if data.startswith(PARQUET):
        _check_parquet(name, data)
    elif sum(map(data.count, (b",", b";", b"\t", b"|", b"[", b"{", b"\n"))) > MOST_VALUES:
        raise DataError(f"'{name}' holds more than {MOST_VALUES:,} values.", "", "Bring a part of it.")


def _check_parquet(name: str, data: bytes) -> None:
    """Count the values of a Parquet file, then unpack it a few rows at a time until it is too much."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        parts = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        chunks = [part.column(i) for part in parts for i in range(part.num_columns)]
        values, unpacked = (sum(getattr(c, n) for c in chunks) for n in ("num_values", "total_uncompressed_size"))
        if max(values, file.metadata.num_rows) <= MOST_VALUES and unpacked <= MOST_BYTES:
            rows = max(1, min(ROWS_AT_ONCE, MOST_BYTES // max(1, unpacked)))  # were each row the largest value there is
            sizes = (sum(map(_size_of, batch.columns)) for batch in file.iter_batches(batch_size=rows))
            if all(size <= MOST_BYTES for size in itertools.accumulate(sizes)):
                return
    except (pa.ArrowException, OSError, ValueError):
        return  # its reader says what is wrong
    raise DataError(f"'{name}' unpacks to more than is read here.", "", "Bring a part of it.")


def _size_of(column: pa.Array) -> int:
    """Bytes of a column with every value spelt out."""
    return int((column.dictionary_decode() if pa.types.is_dictionary(column.type) else column).nbytes)


def _is_doubtful(file: UploadedFile) -> bool:
    try:
        decode(file.getvalue(), file.name)
    except EncodingError:
        return True
    except RomeError:
        return False
    return False


def text_of(upload: Upload) -> tuple[str, str]:
    """An upload's name and its text, where only a text will do. Raises DataError."""
    name, data = upload
    return name, decode(data, name) if isinstance(data, bytes) else data


def by_reason(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """What is left out, a row a reason, with its first places and how many more."""
    reasons = dict[str, list[str]]()
    for problem in problems:
        reasons.setdefault(problem.sentence, []).append(str(replace(problem.place, source="")))
    return [{"where": _several(places), "what is wrong": sentence} for sentence, places in reasons.items()]


def _several(places: Sequence[str]) -> str:
    shown = ", ".join(places[:SHOWN_PLACES])
    return shown if len(places) <= SHOWN_PLACES else f"{shown} and {len(places) - SHOWN_PLACES:,} more"


def account_of(facts: Facts) -> str:
    """What a set was read as, and what became of each row: used and left out add up to what was there."""
    parts = ["; ".join(facts.forms)] if facts.forms else []
    if facts.problems or facts.n_empty or facts.n_templates:
        parts.append(
            f"{count(facts.n_rows, 'row')} in all: {count(len(facts), 'fact')}, {len(facts.problems)} left out"
            + f", {facts.n_templates} templates" * bool(facts.n_templates)
            + f", {facts.n_empty} empty" * bool(facts.n_empty)
        )
    return literal(". ".join([*parts, *(note.rstrip(".") for note in facts.notes)]) + ".") if parts else ""
