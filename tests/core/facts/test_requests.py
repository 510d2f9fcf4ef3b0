"""One door for requests: whatever a table is written in, its rows are requests, problems with a place, or empty."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core import DataError, EditRequest, Prompt, PromptError, load_facts
from rome_core.facts.requests import COLUMNS, Requests, Row, Table, check_table, read_requests, read_table
from rome_core.model.wording import occurrences

TOWER = Row("The {} is located in the city of", "Eiffel Tower", "Rome", "Paris")
ROME = EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome", "Paris")
ITALY = EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")
REWRITE = {
    "prompt": "{} is the capital of",
    "subject": "Paris",
    "target_new": {"str": "Italy"},
    "target_true": {"str": "France"},
}
COUNTERFACT = {"case_id": 3, "requested_rewrite": REWRITE, "paraphrase_prompts": [], "neighborhood_prompts": []}


def sentences(reading: Requests) -> dict[int, str]:
    return {problem.place.number: problem.sentence for problem in reading.problems}


def rows_of(text: str, name: str) -> list[Row]:
    table = read_table(text, name)
    assert not table.problems
    return list(table.rows.values())


# ------------------------------------------------------------------------------------------------- rows and requests


def test_good_rows_are_kept_and_each_bad_one_has_its_sentence() -> None:
    rows = [
        TOWER,
        Row(),
        Row("The capital is", "France", "London"),
        Row("The capital of France is", "France", "London"),
        Row("{} and {} are", "France", "x"),
        Row("{} is", "France", " "),
        Row("The {} is located in the city of", "Eiffel Tower", "Milan"),
    ]
    reading = check_table(Table.from_rows(rows))

    assert reading.requests == (ROME, EditRequest(Prompt("The capital of {} is", "France"), "London"))
    bad = sentences(reading)
    assert list(bad) == [3, 5, 6, 7] and reading.n_empty == 1
    assert "'France' is not in the prompt" in bad[3] and "{}" in bad[5]
    assert "new object is empty" in bad[6] and "Row 1 edits the same prompt" in bad[7]
    assert str(reading.problems[0]).startswith("row 3: 'France'")


def test_columns_go_by_several_names_and_a_relation_stands_for_its_template() -> None:
    fact = load_facts()[0]
    cells = {" Subject": "X", "Relation": fact.relation, "New object": "a", "TRUE OBJECT": float("nan"), "note": "z"}

    assert Row.from_cells(cells) == Row(fact.relation, "X", "a", "")
    assert rows_of(json.dumps([cells]), "a.json") == [Row(fact.relation, "X", "a", "")]
    assert check_table(Table.from_rows([Row.from_cells(cells)])).requests[0].prompt.template == fact.prompt.template
    assert Row.from_cells({"relation": "{} lies in", "subject": "X"}).template == "{} lies in"


def test_a_request_is_a_row_again() -> None:
    for request in (ROME, ITALY):
        assert check_table(Table.from_rows([Row.from_request(request)])).requests == (request,)


# ------------------------------------------------------------------------------------------------------------ formats


def as_csv(rows: list[Row], separator: str) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, delimiter=separator)
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "unit", "before", "write"),
    [
        ("the list", "line", 0, lambda rows: "\n".join(" | ".join(asdict(row).values()) for row in rows)),
        ("a.csv", "line", 1, lambda rows: as_csv(rows, ",")),
        ("the list", "line", 1, lambda rows: as_csv(rows, ";")),
        ("a.TSV", "line", 1, lambda rows: "\ufeff" + as_csv(rows, "\t").replace("\r\n", "\r")),
        ("a.json", "record", 0, lambda rows: json.dumps([asdict(row) for row in rows], ensure_ascii=False)),
    ],
    ids=["pasted", "comma", "semicolon", "tab", "json"],
)
def test_the_same_table_gives_the_same_requests_in_every_format(name, unit, before, write) -> None:
    rows = [
        TOWER,
        Row('{}, "quoted"; it is', "São Paulo", "a, b; c", ""),
        Row("Paris is the capital of", "Paris", "Italy"),
        Row("{} is in", "Lyon", ""),
        Row("{} is the capital of", "Paris", "Spain"),
    ]
    reading = read_requests(write(rows), name)

    quoted = EditRequest(Prompt('{}, "quoted"; it is', "São Paulo"), "a, b; c")
    assert reading.requests == (ROME, quoted, ITALY)
    assert list(read_table(write(rows), name).rows.values()) == rows
    places = [f"{name}, {unit} {number + before}" for number in (4, 5)]
    assert [str(problem.place) for problem in reading.problems] == places
    assert "new object is empty" in reading.problems[0].sentence
    assert f"{unit.capitalize()} {3 + before} edits the same prompt" in reading.problems[1].sentence


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("{} is the capital of | Paris | Italy\n\n  \n{} is | X\nfive|of|them|are|here\n|||", 6),
        ("\n\nsubject,prompt,new\n\nParis,{} is the capital of,Italy\n,,\nX,{} is,y,z\n", 4),
        (json.dumps([{**asdict(TOWER)}, 3, None, {}, dict.fromkeys(COLUMNS), COUNTERFACT, {"subject": "X"}]), 7),
    ],
    ids=["pasted", "csv", "json"],
)
def test_every_row_is_a_request_a_problem_or_empty(text: str, rows: int) -> None:
    reading = read_requests(text)

    assert len(reading.requests) + len(reading.problems) + reading.n_empty == rows
    assert reading.requests and reading.problems and reading.n_empty
    assert len({problem.place for problem in reading.problems}) == len(reading.problems)


@pytest.mark.parametrize(
    "text",
    [
        "The {} is located in the city of | Eiffel Tower | Rome | Paris\n\n{} is the capital of|Paris|Italy",
        "{} is the capital of | Paris | Italy",
        "The Eiffel Tower is located in the city of | Eiffel Tower | Rome | Paris\nParis is the capital of|Paris|Italy",
        "prompt,subject,target_new,target_true\n"
        'The {} is located in the city of,Eiffel Tower,Rome,Paris\n"{} is the capital of",Paris,Italy,',
        "\ufeffsubject,target_new,prompt\nParis,Italy,{} is the capital of",
        'subject, relation, new object\nParis, "{} is the capital of", Italy',
    ],
)
def test_lines_and_csv_are_read(text: str) -> None:
    reading = read_requests(text)

    assert reading.requests == (ROME, ITALY)[-len(reading.requests) :] and not reading.problems


def test_a_row_of_several_lines_stands_where_it_begins() -> None:
    text = 'subject,prompt,new\n"X",{} is,"a\nb"\nY,{} is,\n"Z\nW",{} is,x\n'

    reading = read_requests(text, "a.csv")

    assert reading.requests[0].target_new == "a\nb"
    assert [str(problem.place) for problem in reading.problems] == ["a.csv, line 4", "a.csv, line 5"]
    assert "goes on for 2 lines ('Z…'): is a quotation mark left open?" in reading.problems[1].sentence


def test_json_with_the_columns_or_in_a_format_of_facts() -> None:
    plain = {"subject": "Eiffel Tower", "template": TOWER.template, "new": "Rome", "true": "Paris"}
    nested = {**plain, "template": "The {} is in", "new": {"str": "football"}}
    text = json.dumps(
        [plain, COUNTERFACT, {"case_id": 4}, {**COUNTERFACT, "requested_rewrite": {"prompt": "x"}}, nested]
    )

    reading = read_requests(text, "facts.json")

    assert reading.requests[:2] == (ROME, replace(ITALY, target_true="France"))
    assert reading.requests[2] == EditRequest(Prompt("The {} is in", "Eiffel Tower"), "football", "Paris")
    bad = [str(problem) for problem in reading.problems]
    assert bad[0].startswith("facts.json, record 3: The format is not known. Its fields are case_id.")
    assert bad[1].startswith("facts.json, record 4: 'subject' is not among its fields (prompt).")
    assert len(bad) == 2


def test_the_projects_own_file_is_read() -> None:
    relation = {
        "id": "capital",
        "prompts": ["{} is the capital of"],
        "paraphrases": [],
        "generation": [],
        "facts": [["Paris", "France", "Italy"]],
    }
    reading = read_requests(json.dumps({"relations": [relation]}), "facts.json")

    assert reading.requests == (replace(ITALY, target_true="France"),) and not reading.problems


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  \n", r"^'the list' is empty\. Give a table or JSON, or write one fact a line"),
        ("subject,target\nParis,Italy", r"^'the list' has no column template\. Its first line names subject, target\."),
        ("subject,prompt,target_new", r"^'the list' holds no edits"),
        ("|||\n", r"^'the list' holds no edits"),
        ("[]", r"^'the list' holds no list of records"),
        ("[1", r"^'the list' is not JSON"),
        (
            'subject,prompt,new\n"X,{} is,y\nZ,{} is,y',
            r"^'the list', line 2: a quotation mark is opened and not closed",
        ),
    ],
)
def test_a_text_that_cannot_be_read_as_a_whole_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_requests(text)


def test_a_files_name_says_what_it_is_meant_to_be() -> None:
    with pytest.raises(DataError, match=r"'a\.CSV' has no column template and no column subject"):
        read_requests("{} is | Paris | x", "a.CSV")
    with pytest.raises(DataError, match=r"'a\.json' is not JSON"):
        read_requests("{} is | Paris | x", "a.json")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Paris | Italy", r"the list, line 1: 2 of the 3 parts are there. Write prompt with"),
        ("France is old | Paris | Italy", r"the list, line 1: 'Paris' is not in the prompt"),
        ("{} is | Paris | ", r"the list, line 1: The new object is empty"),
        ("\n{} is | Paris | a | b | c", r"the list, line 2: 5 parts are there"),
        ("subject,prompt,new\nParis,{} is big, old and,x", r"the list, line 2: 4 cells stand under 3 columns"),
    ],
)
def test_each_wrong_row_has_its_sentence(text: str, sentence: str) -> None:
    reading = read_requests(text)

    assert not reading.requests and [str(problem)[: len(sentence)] for problem in reading.problems] == [sentence]


TYPED = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), min_size=1, max_size=20)


@given(TYPED, TYPED, TYPED, TYPED)
def test_no_text_reaches_an_edit_changed(before: str, after: str, subject: str, new: str) -> None:
    """But for the spaces around it; what cannot be used is refused, never mended."""
    row = Row(f"{before}{{}}{after}", subject, new)
    reading = check_table(Table.from_rows([row]))

    assert len(reading.requests) + len(reading.problems) == 1
    if reading.requests and "[X]" not in row.template:
        (request,) = reading.requests
        assert request.target_new == new.strip() and request.prompt.subject == subject.strip()
        assert request.prompt.template.strip() == row.template.strip()
        assert request.prompt.text.strip() == f"{before}{subject.strip()}{after}".strip()


@given(TYPED, TYPED, TYPED)
def test_a_prompt_in_full_is_kept_to_the_letter(before: str, subject: str, after: str) -> None:
    text = f"{before} {subject} {after}"
    if not occurrences(text, subject.strip()) or "{}" in text:
        with pytest.raises(PromptError):
            Prompt.from_text(text, subject)
        return
    prompt = Prompt.from_text(text, subject)

    assert prompt.text.strip() == text.strip()
    assert unicodedata.normalize("NFD", prompt.subject) == unicodedata.normalize("NFD", subject.strip())
