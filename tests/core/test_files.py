"""Files are written whole or not at all; the cache goes where it is told; versions name what is installed."""

from __future__ import annotations

import csv
import io
import platform
from pathlib import Path

import numpy as np
import pytest

from rome_core.files import ASSETS, STUDIES, cache_dir, csv_text, expanded, versions, write_whole


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


def test_a_users_home_is_expanded_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert expanded("~/models") == tmp_path / "models"
    assert expanded("models") == Path("models")
    assert expanded("~nobody-at-all/models") == Path("~nobody-at-all/models")
