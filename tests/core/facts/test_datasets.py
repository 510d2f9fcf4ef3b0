"""Facts from the project's own set and from files: every row is accounted for, in every form and encoding."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_core.errors import DataError
from rome_core.facts.datasets import OWN_FACTS, Fact, Facts, facts_of, load_facts, parse_facts, read_facts
from rome_core.facts.requests import read_requests
from rome_core.files import WINDOWS, EncodingError
from rome_core.model.tokens import EditRequest, Prompt

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna did this. Danielle Darrieux spoke the language", "Danielle Darrieux speaks"],
    "neighborhood_prompts": ["Michel Rocard speaks", "The mother tongue of Léon Blum is"],
    "attribute_prompts": ["J.R.R. Tolkien speaks"],
    "generation_prompts": ["Danielle Darrieux was born in", "Danielle Darrieux was born in", "Her home is"],
}
ZSRE = {
    "subject": "UniFirst",
    "src": "What is the product made by UniFirst?",
    "pred": "uniform",
    "rephrase": "What will be the product of UniFirst?",
    "alt": "unmanned aircraft",
    "answers": ["uniform", "clothes"],
    "loc": "nq question: who voiced gaston",
    "loc_ans": "Richard White",
    "cond": "uniform >> unmanned aircraft || What is the product made by UniFirst?",
}
KNOWN = {
    "known_id": 0,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",  # stops before the prompt does
    "prediction": " of Antarctica. It is",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}


def flat(case: int, subject: str, true: str, locality: str) -> dict:
    return {
        "case_id": case,
        "prompt": f"The mother tongue of {subject} is",
        "target_new": "English",
        "subject": subject,
        "ground_truth": true,
        "rephrase_prompt": f"Where {subject} is from, people speak",
        "locality_prompt": f"{locality} speaks",
        "locality_ground_truth": true,
    }


def read(*records: object) -> Facts:
    return parse_facts(json.dumps(records), "mine.json")


def test_counterfact() -> None:
    (fact,) = read(COUNTERFACT)

    assert fact == Fact(
        id="7",
        relation="P103",
        prompt=Prompt("The mother tongue of {} is", "Danielle Darrieux"),
        target_true="French",
        target_new="English",
        paraphrases=("Shayna did this. Danielle Darrieux spoke the language", "Danielle Darrieux speaks"),
        neighbours=("Michel Rocard speaks", "The mother tongue of Léon Blum is"),
        neighbour_true="French",
        generations=("Danielle Darrieux was born in", "Her home is"),
    )
    assert fact.request == EditRequest(fact.prompt, "English", "French")


def test_zsre() -> None:
    (fact,) = read(ZSRE)

    assert fact.prompt == Prompt("What is the product made by {}?", "UniFirst")
    assert (fact.target_true, fact.target_new) == ("uniform", "unmanned aircraft")
    assert fact.paraphrases == ("What will be the product of UniFirst?",)
    assert fact.neighbours == ("nq question: who voiced gaston?",) and fact.neighbour_true == "Richard White"


def test_known_facts_take_the_prompt_where_the_template_is_shorter() -> None:
    (fact,) = read(KNOWN)

    assert fact.prompt == Prompt("{} is located in the continent of", "Vinson Massif")
    assert (fact.id, fact.relation, fact.target_true) == ("0", "P30", "Antarctica")


def test_flat_facts_share_the_neighbours_with_the_same_answer() -> None:
    facts = read(flat(1, "Ann", "French", "Bob"), flat(2, "Cleo", "German", "Dora"), flat(3, "Eve", "French", "Ann"))

    assert [fact.prompt.text for fact in facts] == [
        f"The mother tongue of {name} is" for name in ("Ann", "Cleo", "Eve")
    ]
    assert facts[0].neighbours == ("Bob speaks",)  # not the one about Ann herself
    assert facts[1].neighbours == ("Dora speaks",)
    assert facts[2].neighbours == ("Ann speaks", "Bob speaks")
    assert facts[2].neighbour_true == "French" and facts[2].paraphrases == ("Where Eve is from, people speak",)


def test_formats_may_be_mixed() -> None:
    assert [fact.id for fact in read(COUNTERFACT, ZSRE, KNOWN, flat(9, "Ann", "French", "Bob"))] == ["7", "1", "0", "9"]


BAD = {
    "an unknown format": ({"city": "Where?"}, "mine.json, record 2: The format is not known. Its fields are city."),
    "not a record": ("text", "mine.json, record 2: It is a text, not a record with fields."),
    "no answers": ({**ZSRE, "alt": "", "answers": []}, "mine.json, record 2: 'target_new' is missing"),
    "no subject": ({**KNOWN, "subject": " "}, "mine.json, record 2: 'subject' is empty."),
    "a list for a text": (
        {**KNOWN, "subject": ["a", "b"]},
        "record 2: 'subject' is a list of 2 where one text is needed.",
    ),
    "a record for a text": (
        {**KNOWN, "subject": {"a": 1}},
        "record 2: 'subject' is a record where one text is needed.",
    ),
    "a fraction for a text": ({**KNOWN, "attribute": 3.5}, "record 2: 'attribute' is the number 3.5 where one text"),
    "a subject not in its prompt": (
        {**KNOWN, "subject": "Everest"},
        "mine.json, record 2: 'Everest' is not in the prompt",
    ),
    "a template without braces": (
        {**COUNTERFACT, "requested_rewrite": {**COUNTERFACT["requested_rewrite"], "prompt": "No braces"}},
        "mine.json, record 2: 'Danielle Darrieux' is not in the prompt 'No braces'",
    ),
    "no rewrite": ({**COUNTERFACT, "requested_rewrite": []}, "mine.json, record 2: It has no rewrite."),
    "a number for a list": (
        {**COUNTERFACT, "neighborhood_prompts": 3},
        "mine.json, record 2: 'neighborhood_prompts' is the number 3 where a list is needed.",
    ),
    "a text for an edit": ({"edit": "B"}, "mine.json, record 2: 'edit' is a text where a record is needed."),
    "an edit without a sentence": ({"edit": {"subject": "B"}}, "mine.json, record 2: 'prompt' is empty."),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_among_good_ones_names_its_place_and_the_good_ones_stay(case: str) -> None:
    bad, sentence = BAD[case]

    facts = parse_facts(json.dumps([COUNTERFACT, bad, KNOWN]), "mine.json")

    assert [fact.id for fact in facts] == ["7", "0"]
    (problem,) = facts.problems
    assert sentence in str(problem) and facts.n_rows == 3


def test_where_all_records_are_bad_the_commonest_reason_and_how_many_stand_there() -> None:
    with pytest.raises(DataError) as caught:
        read({"a": 1}, {"a": 2}, "x", {"a": 3})

    assert str(caught.value).startswith(
        "None of the 4 records of 'mine.json' can be read. mine.json, record 1: The format is not known. Its fields "
        "are a. A prompt and a subject are needed. So it is with 2 more. The others have 1 other reasons."
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2", "'mine.json' is not JSON: .* in line 1, column 6"),
        ("", "'mine.json' is empty"),
        ("{}", "'mine.json' holds no facts"),
        ("[]", "'mine.json' holds no list of records"),
        ("3", "'mine.json' holds no list of records"),
        ('{"relations": 3}', "'relations' is the number 3 where a list is needed"),
        ('{"relations": [{"id": "x"}]}', "mine.json, record 1, relation x: It cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_has_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_facts(text, "mine.json")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([COUNTERFACT]), encoding="utf-8")

    assert load_facts(path) == load_facts(str(path)) == read(COUNTERFACT)
    path.write_bytes(b"\xff\xfe\x00")
    for missing, sentence in ((path, "is not utf-16"), (tmp_path / "none.json", "no file"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=sentence):
            load_facts(missing)


# ------------------------------------------------------------------------------------------------- every form alike


def table_rows(facts: list[Fact]) -> list[dict[str, str]]:
    names = ("template", "subject", "target_new", "target_true")
    columns = ([f.prompt.template, f.prompt.subject, f.target_new, f.target_true] for f in facts)
    return [dict(zip(names, row, strict=True)) for row in columns]


def as_csv(separator: str, end: str) -> Callable[[list[dict[str, str]]], str]:
    def write(rows: list[dict[str, str]]) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter=separator, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    return write


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


FORMS: dict[str, Callable[[list[dict[str, str]]], str | bytes]] = {
    "a.csv": as_csv(",", "\n"),
    "b.csv": as_csv(";", "\r\n"),
    "c.tsv": as_csv("\t", "\r"),
    "d.json": lambda rows: json.dumps(rows, ensure_ascii=False),
    "e.json": json.dumps,
    "f.jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    "g.parquet": as_parquet,
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le")
LETTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="{}\ufffd\ufeff")
WORDS = st.text(LETTERS, min_size=1, max_size=12).map(str.strip).filter(lambda text: text and "[X]" not in text)
AFTER = st.text(LETTERS, max_size=12).filter(lambda text: "[X]" not in text)
TABLES = st.lists(
    st.tuples(AFTER, AFTER, WORDS, WORDS, st.one_of(st.just(""), WORDS)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(TABLES, st.sampled_from(sorted(FORMS)), st.sampled_from(ENCODINGS))
def test_whatever_form_and_encoding_a_table_is_written_in_the_same_facts_are_read(
    rows: list[tuple[str, str, str, str, str]], name: str, encoding: str
) -> None:
    facts = [
        Fact("", "", Prompt(f"{before}{{}}{after}", subject), true, new) for before, after, subject, new, true in rows
    ]
    written = FORMS[name](table_rows(facts))
    data = written if isinstance(written, bytes) else written.encode(encoding)
    if encoding == "utf-16-le" and b"\0" not in data:
        return  # not one Latin letter, so nothing tells it from UTF-8; the mark would

    read = parse_facts(data, name)

    assert [replace(fact, id="") for fact in read] == facts
    assert not read.problems and not read.notes and read.n_rows == len(facts)
    table = read_requests(data, name)
    assert len(table.requests) + len(table.problems) == len(facts)
    by_text = {fact.prompt.text: fact.request for fact in reversed(facts)}  # the first of those that ask alike
    assert list(table.requests) == list({text: by_text[text] for text in (fact.prompt.text for fact in facts)}.values())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([COUNTERFACT, ZSRE, KNOWN, {}, "x", 3, None, {"edit": {"subject": "B"}}, {"a": [1]}]),
            st.dictionaries(
                st.sampled_from(["subject", "prompt", "template", "target_new", "true", "alt", "loc", "note"]),
                st.recursive(
                    st.one_of(st.none(), st.text(max_size=4), st.integers(), st.floats()), st.lists, max_leaves=3
                ),
            ),
        ),
        max_size=6,
    )
)
def test_every_row_is_a_fact_left_out_or_empty(records: list[object]) -> None:
    text = json.dumps([*records, KNOWN])

    facts = parse_facts(text, "mine.json")

    assert len(facts) + len(facts.problems) + facts.n_empty == len(records) + 1 == facts.n_rows
    assert all(problem.place.number <= len(records) and problem.sentence for problem in facts.problems)
    assert all("'{" not in fact.target_new and "['" not in fact.target_new for fact in facts)
    requests = read_requests(text, "mine.json")
    assert len(requests.requests) + len(requests.problems) + requests.n_empty == len(records) + 1


def test_windows_1252_is_offered_by_name_and_no_letter_is_replaced() -> None:
    data = "subject,template,target_new,target_true\nSão Paulo,The city of {} is in,Chile,Brazil\n".encode("cp1252")

    with pytest.raises(EncodingError, match=r"byte 0xe3 in line 2 .* In Windows-1252 it would read 'São Paulo,"):
        parse_facts(data, "a.csv")
    assert parse_facts(data, "a.csv", WINDOWS)[0].prompt.subject == "São Paulo"
    damaged = "subject,template,target_new\nS\ufffdo Paulo,{} is in,Chile\nRome,{} is in,Chile\n"
    facts = parse_facts(damaged, "a.csv")
    assert len(facts) == 1 and "the mark of a letter that was damaged" in facts.problems[0].sentence


def test_joined_files_repeat_their_ids_and_the_facts_stay_apart() -> None:
    facts = read_facts([("a.json", json.dumps([COUNTERFACT])), ("b.json", json.dumps([COUNTERFACT, KNOWN]))])

    assert [fact.id for fact in facts] == ["7", "7 (2)", "0"]
    assert Facts([facts[0], facts[0]])[1].id == "7 (2)"


def test_known_facts_have_no_new_object_and_the_set_says_so() -> None:
    facts = read(KNOWN, ZSRE, {**ZSRE, "alt": ""}, {**ZSRE, "alt": "uniform"})

    assert [fact.target_new for fact in facts] == ["", "unmanned aircraft", "", "uniform"]
    assert facts.lacking == [facts[0], facts[2], facts[3]]
    assert facts.forms == ("1 × known facts (JSON)", "3 × zsRE (JSON)")
    assert facts.notes == ("Not used: pred, cond, prediction.",)


OWN = {
    "relations": [
        {
            "id": "capital",
            "prompts": ["{} is the capital of", "unused {}"],
            "paraphrases": ["The capital {} lies in", "{} governs", "a third {}"],
            "generation": ["In {} you", "{} is", "a third {}"],
            "reversed": "The capital of {} is",
            "facts": [["Paris", "France", "Italy"], ["Lyon", "France", "Spain"], ["Rome", "Italy", "France"]],
            "neighbours": [["Nice", "France"], ["Milan", "Italy"]],
        }
    ]
}


def test_the_projects_own_form_expands() -> None:
    paris, lyon, rome = parse_facts(json.dumps(OWN), "own.json")

    assert paris.id == "capital/0" and paris.prompt == Prompt("{} is the capital of", "Paris")
    assert (paris.target_true, paris.target_new, paris.neighbour_true) == ("France", "Italy", "France")
    assert paris.paraphrases == ("The capital Paris lies in", "Paris governs")
    assert paris.generations == ("In Paris you", "Paris is")
    assert paris.reversed == "The capital of Italy is"
    assert sorted(paris.neighbours) == ["Lyon is the capital of", "Nice is the capital of"]
    assert sorted(lyon.neighbours) == ["Nice is the capital of", "Paris is the capital of"]
    assert rome.neighbours == ("Milan is the capital of",)


def test_the_projects_own_set() -> None:
    facts = load_facts()

    assert len(facts) >= 400 and len({fact.id for fact in facts}) == len(facts) and facts.problems == []
    assert facts == load_facts(OWN_FACTS) == load_facts()  # the choice of neighbours is the same every time
    for fact in facts:
        subject = fact.prompt.subject
        assert fact.target_new != fact.target_true and len(fact.paraphrases) == len(fact.generations) == 2
        assert all(subject in text for text in (*fact.paraphrases, *fact.generations))
        assert 5 <= len(set(fact.neighbours)) == len(fact.neighbours) <= 10
        assert fact.prompt.text not in fact.neighbours and fact.neighbour_true == fact.target_true


def test_the_parts_are_disjoint_by_subject_and_cover_all_facts() -> None:
    parts = [facts_of(part) for part in ("train", "validation", "test")]
    subjects = [{fact.prompt.subject.casefold() for fact in part} for part in parts]

    assert not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])
    assert sorted(fact.id for part in parts for fact in part) == sorted(fact.id for fact in load_facts())
    shares = [len(part) / len(load_facts()) for part in parts]
    assert shares == pytest.approx([0.5, 0.1, 0.4], abs=0.05)
