"""Facts from the project's own set and from the four formats of the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rome_core.errors import DataError
from rome_core.facts.datasets import OWN_FACTS, Fact, expand_relations, facts_of, load_facts, parse_facts, part_of
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


def read(*records: object) -> list[Fact]:
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
    "an unknown format": (
        {"question": "Where?"},
        "mine.json, record 2: the format is not known. Its fields are question",
    ),
    "not a record": ("text", "mine.json, record 2: the format is not known"),
    "nothing": (None, "mine.json, record 2: the format is not known"),
    "a missing field": ({**ZSRE, "loc_ans": None} | {"loc": "x"}, "mine.json, record 2"),
    "no answers": ({**ZSRE, "answers": []}, "mine.json, record 2"),
    "no rephrase": ({k: v for k, v in ZSRE.items() if k != "rephrase"}, "record 2: the field 'rephrase' is missing"),
    "a number for a text": ({**KNOWN, "attribute": 3}, "mine.json, record 2: a field has the wrong type"),
    "an empty object": ({**KNOWN, "attribute": " "}, "mine.json, record 2: a field has the wrong type"),
    "a subject not in its prompt": (
        {**KNOWN, "subject": "Everest"},
        "mine.json, record 2: 'Everest' is not in the prompt",
    ),
    "a template without braces": (
        {**COUNTERFACT, "requested_rewrite": {**COUNTERFACT["requested_rewrite"], "prompt": "No braces"}},
        "mine.json, record 2: 'No braces' has no {}",
    ),
    "a list for a rewrite": (
        {**COUNTERFACT, "requested_rewrite": []},
        "mine.json, record 2: a field has the wrong type",
    ),
    "a text for a list": (
        {**COUNTERFACT, "neighborhood_prompts": 3},
        "mine.json, record 2: a field has the wrong type",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_among_good_ones_names_its_place_and_the_good_ones_stay(case: str) -> None:
    bad, sentence = BAD[case]

    facts = parse_facts(json.dumps([COUNTERFACT, bad, KNOWN]), "mine.json")

    assert [fact.id for fact in facts] == ["7", "0"]
    (problem,) = facts.problems
    assert isinstance(problem, DataError) and sentence in str(problem)


def test_where_all_records_are_bad_the_first_says_why() -> None:
    with pytest.raises(DataError, match="record 1: the format is not known"):
        read({"a": 1}, {"b": 2})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2", "'mine.json' is not JSON: .* in line 1, column 6"),
        ("", "'mine.json' is not JSON"),
        ("{}", "'mine.json' holds no list of records"),
        ("[]", "'mine.json' holds no list of records"),
        ("3", "'mine.json' holds no list of records"),
        ('{"relations": 3}', "mine.json"),
        ('{"relations": [{"id": "x"}]}', "mine.json"),
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
    for missing in (path, tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            load_facts(missing)


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
    paris, lyon, rome = expand_relations(OWN)

    assert paris.id == "capital/0" and paris.prompt == Prompt("{} is the capital of", "Paris")
    assert (paris.target_true, paris.target_new, paris.neighbour_true) == ("France", "Italy", "France")
    assert paris.paraphrases == ("The capital Paris lies in", "Paris governs")
    assert paris.generations == ("In Paris you", "Paris is")
    assert paris.reversed == "The capital of Italy is"
    assert sorted(paris.neighbours) == ["Lyon is the capital of", "Nice is the capital of"]
    assert sorted(lyon.neighbours) == ["Nice is the capital of", "Paris is the capital of"]
    assert rome.neighbours == ("Milan is the capital of",)
    assert parse_facts(json.dumps(OWN)) == [paris, lyon, rome]


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


def test_the_rule_of_the_parts_is_stable() -> None:
    def about(subject: str) -> str:
        return part_of(Fact("x", "y", Prompt("{} is in", subject), "a", "b"))

    # Written down once: checkpoints were trained on what the rule said then.
    subjects = ("Eiffel Tower", "Kenya", "Nile", "Lyon", "Toyota", "dolphin")
    assert [about(subject) for subject in subjects] == ["train", "test", "validation", "test", "train", "test"]
    assert about(" eiffel tower") == about("Eiffel Tower")
