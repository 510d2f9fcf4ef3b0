"""Requests from tables: columns by any of their names, one sentence for a bad row, every format of facts."""

from __future__ import annotations

import json

import pytest

from rome_core import DataError, EditRequest, Prompt, load_facts
from rome_core.facts.requests import Row, as_csv, read_rows, requests_of, row_of

TOWER = Row("The {} is located in the city of", "Eiffel Tower", "Rome", "Paris")


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
    good, bad = requests_of(rows)

    assert good == {
        1: EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome", "Paris"),
        4: EditRequest(Prompt("The capital of {} is", "France"), "London"),
    }
    assert bad.keys() == {3, 5, 6, 7}
    assert "'France' is not in the prompt" in bad[3] and "{}" in bad[5]
    assert "new object is empty" in bad[6] and "Row 1 edits the same prompt" in bad[7]


def test_columns_go_by_several_names_and_a_relation_stands_for_its_template() -> None:
    fact = load_facts()[0]
    row = row_of(
        {" Subject": "X", "Relation": fact.relation, "New object": "a", "TRUE OBJECT": float("nan"), "note": "z"}
    )

    assert row == Row(fact.prompt.template, "X", "a", "")
    assert row_of({"relation": "{} lies in", "subject": "X"}).template == "{} lies in"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_is_read_with_any_separator(mark: str) -> None:
    text = mark.join(("subject", "relation", "new object", "true object")) + "\n"
    text += mark.join(("Eiffel Tower", "The {} is located in the city of", "Rome", "Paris")) + "\n"

    assert read_rows("\ufeff" + text, "a.CSV") == ([TOWER], [])


def test_csv_comes_back_and_bad_files_are_one_sentence() -> None:
    rows = [TOWER, Row('{}, "quoted", is', "São Paulo", "a, b", "")]

    assert read_rows(as_csv(rows), "a.csv")[0] == rows
    with pytest.raises(DataError, match="no column template and no column target_new"):
        read_rows("subject,city\nParis,x\n", "a.csv")
    with pytest.raises(DataError, match="no column"):
        read_rows("", "a.csv")
    with pytest.raises(DataError, match="is not JSON"):
        read_rows("{", "a.json")


def test_json_with_the_columns_or_in_a_format_of_facts() -> None:
    plain = json.dumps([{"subject": "Eiffel Tower", "template": TOWER.template, "new": "Rome", "true": "Paris"}, 3])
    assert read_rows(plain, "a.json") == ([TOWER, Row()], [])

    record = {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": TOWER.template,
            "subject": "Eiffel Tower",
            "target_new": {"str": "Rome"},
            "target_true": {"str": "Paris"},
        },
        "paraphrase_prompts": [],
        "neighborhood_prompts": [],
    }
    rows, problems = read_rows(json.dumps([record, {**record, "requested_rewrite": {"prompt": "x"}}]), "b.json")
    assert rows == [TOWER] and len(problems) == 1 and "record 2" in problems[0]
