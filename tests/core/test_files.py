"""Files are written whole or not at all; the cache goes where it is told; versions name what is installed."""

from __future__ import annotations

import contextlib
import csv
import io
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.errors import DataError
from rome_core.files import (
    ASSETS,
    STUDIES,
    WINDOWS,
    EncodingError,
    cache_dir,
    csv_text,
    decode,
    expanded,
    read_bytes,
    read_text,
    versions,
    write_whole,
)


def test_the_projects_own_files_are_there() -> None:
    assert (ASSETS / "facts.json").is_file() and (STUDIES / "edits.jsonl").is_file()


def test_a_file_is_written_with_its_folder_and_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("old", "new"):
        write_whole(path, lambda part, text=text: part.write_text(text))
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        assert path.read_text() == "old"  # also while the new one grows
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_cache_is_where_the_project_is_told_else_where_the_users_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ROME_EXPLORER_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ROME_EXPLORER_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROME_EXPLORER_CACHE", "here")
    assert cache_dir() == tmp_path / "here"

    monkeypatch.delenv("ROME_EXPLORER_CACHE")
    if platform.system() == "Linux":  # elsewhere the user's cache is not named by a variable
        assert cache_dir() == tmp_path / "cache" / "rome-explorer"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_dir() == tmp_path / ".cache" / "rome-explorer"
    assert cache_dir().name == "rome-explorer" and cache_dir().is_absolute()


def test_versions_are_of_what_is_installed() -> None:
    found = versions(("numpy", "no-such-package"))

    assert found == {"python": platform.python_version(), "machine": platform.machine(), "numpy": np.__version__}


def test_a_table_as_csv_comes_back() -> None:
    rows = [["a, b", 'say "x"', 1.5], ["two\nlines", "", None]]

    header, *read = csv.reader(io.StringIO(csv_text(["name", "text", "value"], rows)))

    assert header == ["name", "text", "value"]
    assert read == [["a, b", 'say "x"', "1.5"], ["two\nlines", "", ""]]


@pytest.mark.parametrize("text", ["=1+1", "+5", "-x", "@SUM(A1)", "\tx"])
def test_no_text_of_a_table_is_a_formula(text: str) -> None:
    assert csv_text(["a", "b"], [[text, -1.5]]).splitlines()[1] == f"'{text},-1.5"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff")))
def test_a_text_is_read_as_it_was_written_in_every_encoding_that_bytes_tell(text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert decode(text.encode(encoding)) == text
    latin = "a, b and c: " + text[:5]
    assert decode(latin.encode("utf-16-le")) == latin == decode(latin.encode("utf-16-be"))


@given(st.binary())
def test_bytes_are_a_text_or_a_sentence_and_no_letter_is_replaced(data: bytes) -> None:
    text = None
    with contextlib.suppress(DataError):
        text = decode(data)
    if text is not None:
        encodings = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
        written = [text.encode(encoding) for encoding in encodings]
        assert any(data.endswith(each) and len(data) - len(each) <= 4 for each in written)


def test_windows_1252_is_offered_with_what_it_would_say() -> None:
    data = "ok\nnow São Paulo is".encode("cp1252")

    with pytest.raises(EncodingError) as caught:
        decode(data, "a.csv")
    assert str(caught.value) == (
        "'a.csv' is not UTF-8: the byte 0xe3 in line 2 is no letter there. In Windows-1252 it would read "
        "'now São Paulo is'. If that is right, choose the encoding Windows-1252; else save the file as UTF-8."
    )
    assert decode(data, "a.csv", WINDOWS) == "ok\nnow São Paulo is"
    with pytest.raises(DataError, match="There is no encoding 'klingon'"):
        decode(data, "a.csv", "klingon")
    with pytest.raises(DataError, match=r"'a\.csv' is not utf-8 text"):
        decode(data, "a.csv", "utf-8")


def test_a_path_that_cannot_be_read_has_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, sentence in ((tmp_path / "none", "There is no file"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=sentence):
            read_bytes(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_bytes("\ufeffäé".encode())
    assert read_text("~/a.txt") == "äé"


def test_a_users_home_is_expanded_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert expanded("~/models") == tmp_path / "models"
    assert expanded("models") == Path("models")
    assert expanded("~nobody-at-all/models") == Path("~nobody-at-all/models")
