"""Files that a visitor brings, read strictly; where only the encoding is in doubt, again in the one that is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from pages.shared import session, track
from pages.shared.text import count, literal
from rome_core.errors import RomeError
from rome_core.facts.datasets import READABLE, SUFFIXES, Facts
from rome_core.files import WINDOWS, EncodingError

R = TypeVar("R")
Read = Callable[[Sequence[UploadedFile], str | None], R]  # files, and the encoding that was named for them


def uploaded(label: str, key: str, read: Read[R], suffixes: Sequence[str] = SUFFIXES, help: str = READABLE) -> R | None:
    """An uploader of one or several files, and what `read` makes of them; what is wrong is said below it."""
    given = st.file_uploader(label, type=list(suffixes), key=key, help=help, accept_multiple_files=True)
    files = list(given or [])
    if not files:
        return None
    named = session.keep(("encodings", key), dict[str, str])
    encoding = named.get(_name(files))
    try:
        result = read(files, encoding)
    except EncodingError as error:
        track.show_error(error)
        st.button(
            "Read it as Windows-1252", key=f"{key}-windows", on_click=named.__setitem__, args=(_name(files), WINDOWS)
        )
        return None
    except RomeError as error:
        track.show_error(error)
        return None
    if encoding:
        st.caption("Read as Windows-1252, as you chose.")
    return result


def uploaded_and_kept(
    label: str, key: str, read: Read[R], suffixes: Sequence[str] = SUFFIXES, help: str = READABLE
) -> R | None:
    """The same; what was read stays in the session when the page is left, which empties the uploader."""
    result = uploaded(label, key, read, suffixes, help)
    kept = session.keep("brought", dict[str, R])
    if result is not None:
        kept[key] = result
    elif st.session_state.get(key):  # what is there now cannot be read
        kept.pop(key, None)
    return kept.get(key)


def first_time(files: Sequence[UploadedFile]) -> bool:
    """Whether these files were not taken in this session yet; now they are."""
    is_new = _name(files) not in session.taken_uploads()
    session.taken_uploads().add(_name(files))
    return is_new


def _name(files: Sequence[UploadedFile]) -> str:
    return " ".join(file.file_id for file in files)


def contents(files: Sequence[UploadedFile]) -> list[tuple[str, bytes]]:
    """The files' names and bytes."""
    return [(file.name, file.getvalue()) for file in files]


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
