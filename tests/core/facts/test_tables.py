"""What stands in a file: every line, row and record has its place, and what is none of them its sentence."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rome_core.errors import DataError
from rome_core.facts.tables import Place, Source, Twice, kind_of, parse_json, read_source

HEAD = "subject,template,target_new,target_true\n"


def read(data: str | bytes, name: str = "the list") -> Source:
    return read_source(data, name)


@pytest.mark.parametrize(
    ("text", "name", "form", "unit"),
    [
        (HEAD + "Paris,{} is,a,b\n", "a.csv", "CSV", "line"),
        ("subject;prompt;new\nParis;{} is;a\n", "the list", "CSV", "line"),
        ("subject\tprompt\tnew\rParis\t{} is\ta\r", "a.tsv", "CSV", "line"),
        ('[{"subject": "Paris"}]', "the list", "JSON", "record"),
        ('{"data": [{"subject": "Paris"}]}', "the list", "JSON", "record"),
        ('{"subject": "Paris"}', "the list", "JSON", "record"),
        ('{"subject": "Paris"}\n{"subject": "Lyon"}\n', "the list", "JSON Lines", "line"),
        ('{"subject": "Paris"}', "a.jsonl", "JSON Lines", "line"),
        ("{} is | Paris | Italy", "the list", "pasted lines", "line"),
        ("[X] is | Paris | Italy", "the list", "pasted lines", "line"),
    ],
)
def test_a_form_is_told_by_its_shape(text: str, name: str, form: str, unit: str) -> None:
    source = read(text, name)

    assert source.form == form and not source.problems and not source.n_empty
    (place, record), *_ = source.records.items()
    assert (place.unit, place.source) == (unit, name)
    assert record["subject"].strip() == "Paris"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_will_do_and_empty_lines_are_counted(end: str) -> None:
    source = read(end.join([HEAD.strip(), "Paris,{} is,a,b", "", ",,,", '"X",{} is,"a', 'b",c', ""]), "a.csv")

    assert [place.number for place in source.records] == [2, 5]
    assert list(source.records.values())[1]["target_new"] == "a\nb"
    assert source.n_empty == 2


def test_spare_cells_and_a_quote_that_is_left_open_are_named() -> None:
    source = read("subject,template,target_new\nEiffel Tower,The {} is in,Rome, Italy\nX,{} is\n", "a.csv")

    assert [str(problem) for problem in source.problems] == [
        "a.csv, line 2: 4 cells stand under 3 columns. Put a cell with ',' in quotes."
    ]
    assert source.records == {Place(3, "line", "a.csv"): {"subject": "X", "template": "{} is"}}
    with pytest.raises(DataError, match=r"'a.csv', line 3: a quotation mark is opened and not closed"):
        read(HEAD + 'Paris,{} is,a,b\n"The Matrix,{} is,a,b\nX,{} is,a,b\nY,{} is,a,b\n', "a.csv")


def test_json_lines_are_read_one_by_one() -> None:
    source = read('{"a": 1}\n\nnot json\n[1]\n{"a": 2}\n3\n', "a.jsonl")

    assert [record["a"] for record in source.records.values()] == [1, 2]
    assert [str(problem) for problem in source.problems] == [
        "a.jsonl, line 3: The line is not JSON.",
        "a.jsonl, line 4: It is a list, not a record with fields.",
        "a.jsonl, line 6: It is the number 3, not a record with fields.",
    ]
    assert source.n_empty == 1


def test_parquet_keeps_types_and_places() -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"subject": ["Paris", None], "target_new": [{"str": "Italy"}, None]}), out)

    source = read(out.getvalue(), "a.parquet")

    assert source.form == "Parquet" and source.n_empty == 1
    assert source.records == {Place(1, "row", "a.parquet"): {"subject": "Paris", "target_new": {"str": "Italy"}}}
    with pytest.raises(DataError, match=r"'a.parquet' is no Parquet file that can be read"):
        read(b"PAR1 and nothing behind", "a.parquet")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'x.json' is empty"),
        ("[1, 2", "'x.json' is not JSON: .* in line 1, column 6"),
        ("3", "'x.json' holds no list of records"),
        ("[" * 100_000, "'x.json' is nested too deeply"),
    ],
)
def test_what_cannot_be_read_as_a_whole_has_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read(text, "x.json")


def test_columns_are_named_once_each() -> None:
    with pytest.raises(DataError, match="two columns 'subject'"):
        read("subject,Subject,template\nParis,Lyon,{} is\n", "a.csv")
    with pytest.raises(DataError, match=r"no column template\. Its first line names subject, city\."):
        read("subject,city\nParis,x\n", "a.csv")
    with pytest.raises(DataError, match=r"no column template and no column subject"):
        read("{} is | Paris | x", "a.CSV")


def test_a_field_that_stands_twice_has_no_value() -> None:
    assert parse_json('{"a": 1, "a": 2, "b": 3}', "x") == {"a": Twice(), "b": 3}


def test_values_are_named_in_words() -> None:
    values = [None, True, 1949.0, "x", [1], {}, Twice(), b""]
    words = ["nothing", "true", "the number 1949.0", "a text", "a list", "a record", "there twice", "no text"]
    assert list(map(kind_of, values)) == words


def test_places_read_like_a_path() -> None:
    assert str(Place(3, "record", "a.json", "rewrite 2")) == "a.json, record 3, rewrite 2" and str(Place(3)) == "row 3"
