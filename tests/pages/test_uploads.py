"""What is brought is bounded by what it unpacks to, before any reader sees it."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streamlit.testing.v1 import AppTest

from pages.shared import public, uploads
from pages.shared.uploads import check_unpacked
from rome_core.errors import DataError
from rome_core.facts.datasets import parse_facts
from tests.pages.conftest import goto, texts

RECORD = {"subject": "Eiffel Tower", "template": "The {} is in", "target_new": "Rome", "target_true": "Paris"}


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def test_what_facts_are_made_of_passes() -> None:
    table = pa.Table.from_pylist([RECORD] * 300)
    for name, data in (("a.parquet", parquet(table)), ("a.json", json.dumps([RECORD] * 300).encode())):
        check_unpacked(name, data)
        assert len(parse_facts(data, name)) == 300
    check_unpacked("a.parquet", b"PAR1 is no such file")  # its reader says so


ROWS = 6_000_000
BOMBS = {
    "many rows in a few bytes": parquet(pa.table({"subject": pa.array(["x"] * ROWS).dictionary_encode()})),
    "a long list in one row": parquet(pa.table({"a": pa.array([[0] * ROWS])})),
    "a long text in every row": parquet(
        pa.table({"subject": pa.DictionaryArray.from_arrays(pa.array([0] * 3000), pa.array(["y" * 200_000]))})
    ),
    "empty records": b"[" + b"{}," * ROWS + b"{}]",
    "numbers": b"[" + b"1," * ROWS + b"1]",
    "brackets": b"[" * ROWS,
    "lines": b"\n" * ROWS,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_unpacks_to_far_more_than_it_weighs_is_refused(bomb: str) -> None:
    data = BOMBS[bomb]
    assert len(data) < 20 * 2**20, "it may be uploaded"
    with pytest.raises(DataError, match=r"'a\.file' (unpacks to more than|holds more than 5,000,000 values)"):
        check_unpacked("a.file", data)


def test_a_refusal_is_a_sentence_on_the_page(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(public.SETTING, "1")
    monkeypatch.setenv("ROME_EXPLORER_MAX_FILES", "1")
    monkeypatch.setattr(uploads, "MOST_VALUES", 10)
    page = goto(app, "facts")
    good = json.dumps([RECORD]).encode()
    page.file_uploader(key="set-file").set_value([("a.json", good, "application/json")] * 2).run()
    assert "These are 2 files; at most 1 are read here at once." in texts(page.error)

    page.file_uploader(key="set-file").set_value([("a.json", b"[" + good, "application/json")]).run()
    assert "'a.json' is not JSON" in texts(page.error)
    page.file_uploader(key="set-file").set_value([("a.json", good * 5, "application/json")]).run()
    assert "'a.json' holds more than 10 values." in texts(page.error) and not page.exception
