"""Corpora from files and datasets, and a sentence for each way in which they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rome_core.errors import DataError
from rome_core.facts.corpora import read_dataset, read_texts


def test_paragraphs_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One\nline.\n\n\n  Two. \n\n", encoding="utf-8")
    assert read_texts(file) == ["One\nline.", "Two."]


def test_json_lists(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(["One.", {"Text": "Two.", "Corpus": "x"}, {"text": "Three."}]), encoding="utf-8")
    assert read_texts(file) == ["One.", "Two.", "Three."]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.txt", b"\xff\xfe\xff", "is not utf-16 text"),
        ("a.json", b"[", "is not JSON"),
        ("a.json", b'["ok", {"title": "x"}]', "record 2: there is no text"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_texts(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        read_texts(tmp_path / "none.txt")


def test_a_dataset_in_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    lines = [json.dumps({"body": text}) for text in ("One.", "", "Two.", "Three.")]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_dataset(str(tmp_path), column="body", limit=3) == ["One.", "Two."]
    with pytest.raises(DataError, match="no column 'text'"):
        read_dataset(str(tmp_path))
    with pytest.raises(DataError, match="could not be read"):
        read_dataset(str(tmp_path / "nowhere"))
