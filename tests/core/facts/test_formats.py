"""The formats of the field, each by a small record of its shape, and what is said of values that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rome_core.errors import DataError
from rome_core.facts.datasets import Facts, parse_facts, read_facts
from rome_core.facts.fact import Probe
from rome_core.facts.formats import FORMATS, format_of, from_lama, name_of, read_record, text_of
from rome_core.facts.requests import read_requests
from rome_core.model.tokens import EditRequest, Prompt

SPORT = {"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}
BERLIN = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "portability": {
        "Reasoning": [
            {"prompt": "The continent of the place of death of Leo Arons is", "ground_truth": [["Europe", "x"]]}
        ],
        "Subject_Aliasing": [{"prompt": "The place of death of Martin Leo Arons is", "ground_truth": "Berlin"}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The father of Leo Arons is", "ground_truth": [["Albert Arons"]]},
            {"prompt": "The work of Leo Arons is", "ground_truth": ["physics"]},
        ]
    },
}
KNOWEDIT_ZSRE = {
    "subject": "Epaspidoceras",
    "target_new": "Noctuidae",
    "prompt": "Which family does Epaspidoceras belong to?",
    "ground_truth": ["Aspidoceratidae"],
    "rephrase_prompt": "What family are Epaspidoceras?",
    "cond": "…",
    "locality": {"Relation_Specificity": [{"prompt": "The rank of Epaspidoceras is", "ground_truth": ["genus"]}]},
    "portability": {"Reasoning": [{"prompt": "The name of its family?", "ground_truth": "Owlet moths"}]},
}
EASYEDIT = {
    "prompt": "Ray Charles plays the",
    "subject": "Ray Charles",
    "target_new": "violin",
    "ground_truth": "piano",
    "rephrase_prompt": "Ray Charles performs on the",
    "locality": {
        "neighborhood": {"prompt": ["Joseph Fischhof, the", "Bill Evans, the"], "ground_truth": ["piano", "keys"]},
        "distracting": {"prompt": "Ray Charles, the violin. Hauschka plays the", "ground_truth": "piano"},
    },
    "portability": {"one_hop": {"prompt": "The key part of what Ray Charles plays is the", "ground_truth": "bow"}},
}
ZSRE_PORTABLE = {
    "subject": "Shelley's crimsonwing",
    "src": "What is the endangered status of Shelley's crimsonwing?",
    "pred": "endangered",
    "rephrase": "What is the status of threat of Shelley's crimsonwing?",
    "alt": "threatened",
    "answers": ["near threatened"],
    "loc": "nq question: who sang the song",
    "loc_ans": "Bob",
    "cond": "…",
    "portability": {"Recalled Relation": "(…)", "New Question": "In what country?", "New Answer": "Uganda"},
}
ZSRE_MEMIT = {
    "case_id": 5,
    "requested_rewrite": {
        "prompt": "What is the product made by {}?",
        "subject": "UniFirst",
        "target_new": {"str": "uniform"},
        "target_true": {"str": "<|endoftext|>"},
    },
    "paraphrase_prompts": ["What will be the product of UniFirst?"],
    "neighborhood_prompts": [
        {"prompt": "nq question: who?", "target": " Bob"},
        {"prompt": "nq: who? Bob", "target": "by"},
    ],
    "attribute_prompts": [],
    "generation_prompts": [],
}
MQUAKE = {
    "case_id": 9,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Croatia", "id": "Q224"},
            "target_true": {"str": "United States of America", "id": "Q30"},
            "subject": "Ellie Kemper",
            "question": "What is the country of citizenship of Ellie Kemper?",
        },
        {"prompt": "The head of {} is", "target_new": {"str": "X"}, "target_true": {"str": "Y"}, "subject": "Croatia"},
    ],
    "questions": ["Who leads the country of Ellie Kemper?"],
    "answer": "Y",
    "new_answer": "X",
    "single_hops": [],
}
RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Leonardo DiCaprio is Syria.",
        "subject_id": "Q38111",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q858",
        "original_fact": {"prompt": "The name of the country of citizenship of Leonardo DiCaprio is United States."},
    },
    "Relation_Specificity": [
        {
            "test_queries": [
                {"prompt": "The mother of Leonardo DiCaprio is", "answers": [{"value": "Irmelin", "aliases": ["I."]}]}
            ],
            "test_condition": "OR",
            "condition_queries": [],
        }
    ],
    "Logical_Generalization": [],
    "Compositionality_I": [
        {
            "test_queries": [
                {"prompt": "The continent of the country of Leonardo DiCaprio is", "answers": [{"value": "Asia"}]}
            ]
        }
    ],
}
REST = {"alt": "Bob", "answers": ["Coe"], "rephrase": "x", "loc": "y", "loc_ans": "z"}
MZSRE: dict[str, Any] = {
    "en": {"subject": "IAAF", "src": "Who leads the IAAF?", **REST},
    "fr": {"subject": "l'IAAF", "src": "Qui dirige l'IAAF ?", **REST},
}
LRE = {
    "name": "star constellation name",
    "prompt_templates": ["{} is part of the constellation named"],
    "prompt_templates_zs": ["{} belongs to the constellation"],
    "properties": {"relation_type": "factual"},
    "samples": [
        {"subject": "Rigel", "object": "Orion"},
        {"subject": "Bellatrix", "object": "Orion"},
        {"subject": "Vega", "object": ["Lyra", "the Lyre"]},
    ],
}
LAMA = {"relation": "P19", "template": "[X] was born in [Y] .", "label": "place of birth", "type": "N-1"}
TREX = {
    "uuid": "u1",
    "predicate_id": "P19",
    "sub_uri": "Q1",
    "sub_label": "Allan Peiper",
    "obj_uri": "Q2",
    "obj_label": "Alexandra",
    "evidences": [],
}
PARAREL = {"pattern": "[X] is native to [Y].", "lemma": "native", "extended_lemma": "native-to", "tense": "present"}


def read(*records: Any) -> Facts:
    return parse_facts(json.dumps(records, ensure_ascii=False), "mine.json")


def test_a_request_of_the_notebooks_is_its_text_and_never_the_text_of_its_record() -> None:
    (fact,) = read(SPORT)

    assert fact.request == EditRequest(Prompt("{} plays the sport of", "LeBron James"), "football")
    assert read_requests(json.dumps([SPORT])).requests == (fact.request,)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["Rome", "Roma"], "a list of 2"),
        ({"text": "Rome"}, "a record"),
        (1949.0, "the number 1949.0"),
        (True, "true"),
        ([["Rome"], "x"], "a list of 2"),
    ],
)
def test_a_structure_is_refused_by_every_reader_alike(value: object, words: str) -> None:
    record = {**SPORT, "target_new": value}
    sentence = f"'target_new' is {words} where one text is needed."

    facts, requests = read(SPORT, record), read_requests(json.dumps([SPORT, record]))

    assert [problem.sentence for problem in facts.problems] == [sentence]
    assert [problem.sentence for problem in requests.problems] == [sentence]


def test_a_whole_number_and_a_list_of_one_are_their_text() -> None:
    assert text_of("x", 1949) == "1949" and text_of("x", ["Rome"]) == "Rome" and text_of("x", {"str": " a "}) == "a"


def test_knowedit_and_easyedit_bring_what_must_stay_and_what_must_follow() -> None:
    berlin, moth, ray = read(BERLIN, KNOWEDIT_ZSRE, EASYEDIT)

    assert berlin.prompt == Prompt("The place of death of {} is", "Leo Arons") and berlin.target_true == ""
    assert berlin.near == (
        ("The father of Leo Arons is", "Albert Arons"),
        ("The work of Leo Arons is", "physics"),
    )
    assert berlin.portability == (
        Probe("The continent of the place of death of Leo Arons is", "Europe", "Reasoning"),
        Probe("The place of death of Martin Leo Arons is", "Berlin", "Subject_Aliasing"),
    )
    assert (moth.target_new, moth.target_true) == ("Noctuidae", "Aspidoceratidae")
    assert moth.paraphrases == ("What family are Epaspidoceras?",) and moth.neighbour_true == "genus"
    assert ray.near == (
        ("Joseph Fischhof, the", "piano"),
        ("Bill Evans, the", "keys"),
        ("Ray Charles, the violin. Hauschka plays the", "piano"),
    )
    assert ray.portability[0].answer == "bow" and ray.target_true == "piano"


def test_zsre_in_its_three_shapes() -> None:
    mend, memit, portable = read({**ZSRE_PORTABLE, "portability": None}, ZSRE_MEMIT, ZSRE_PORTABLE)

    assert mend.portability == () and portable.portability[0].prompt == "In what country?"
    assert mend.near == (("nq question: who sang the song?", "Bob"),) == portable.near
    assert memit.target_true == "" and memit.target_new == "uniform"
    assert memit.near == (("nq question: who?", "Bob"), ("nq: who? Bob", "by"))


def test_mquake_has_several_rewrites_a_record() -> None:
    first, second = read(MQUAKE)

    assert (first.id, second.id) == ("9/1", "9/2")
    assert first.request == EditRequest(
        Prompt("{} is a citizen of", "Ellie Kemper"), "Croatia", "United States of America"
    )
    assert first.paraphrases == ("What is the country of citizenship of Ellie Kemper?",)
    assert first.portability == ()  # the question needs both rewrites
    (alone,) = read({**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"][:1]})
    assert alone.id == "9" and alone.portability == (Probe(MQUAKE["questions"][0], "X", "multi-hop"),)


def test_one_bad_rewrite_leaves_the_other() -> None:
    facts = read({**MQUAKE, "requested_rewrite": [MQUAKE["requested_rewrite"][0], {"prompt": "{} is"}]})

    assert len(facts) == 1 and facts.n_rows == 2
    assert str(facts.problems[0]).startswith(
        "mine.json, record 1, rewrite 2: 'subject' is not among its fields (prompt)"
    )


def test_rippleedits_sentences_are_taken_apart() -> None:
    (fact,) = read(RIPPLE)

    assert fact.prompt == Prompt("The name of the country of citizenship of {} is", "Leonardo DiCaprio")
    assert (fact.target_new, fact.target_true) == ("Syria", "United States")
    assert fact.near == (("The mother of Leonardo DiCaprio is", "Irmelin"),)
    assert fact.portability == (
        Probe("The continent of the country of Leonardo DiCaprio is", "Asia", "Compositionality_I"),
    )
    other = {**RIPPLE, "edit": {**RIPPLE["edit"], "relation": "GENDER"}}
    assert "names no subject" in str(read(RIPPLE, other).problems[0])


def test_mzsre_gives_a_fact_for_each_language() -> None:
    facts = read(MZSRE)

    assert [fact.id for fact in facts] == ["0 en", "0 fr"]
    assert facts[1].prompt == Prompt("Qui dirige {} ?", "l'IAAF")
    other = read({**MZSRE, "fr": {**MZSRE["fr"], "subject": "l’IAAF"}})
    assert len(other) == 1 and other.n_rows == 2
    assert str(other.problems[0]) == (
        "mine.json, record 1, fr: 'l’IAAF' is not in the prompt 'Qui dirige l'IAAF ?', but 'l'IAAF' is: the apostrophe "
        "differs. Did you mean 'l'IAAF'? Then spell it as the prompt does."
    )


def test_lre_relations_expand_to_facts_without_a_new_object() -> None:
    facts = parse_facts(json.dumps({**LRE, "samples": [*LRE["samples"], {"subject": "x"}]}), "star.json")

    rigel, _, vega = facts
    assert rigel.prompt == Prompt("{} is part of the constellation named", "Rigel")
    assert (rigel.target_true, rigel.target_new, rigel.relation) == ("Orion", "", "star constellation name")
    assert rigel.paraphrases == ("Rigel belongs to the constellation",)
    assert rigel.near == (("Bellatrix is part of the constellation named", "Orion"),)
    assert vega.target_true == "Lyra" and vega.near == ()
    assert [str(problem) for problem in facts.problems] == ["star.json, record 1, sample 4: 'object' is missing."]
    assert facts.lacking == list(facts) and facts.n_rows == 4


def test_trex_takes_the_templates_of_lama_and_pararel() -> None:
    lines = lambda *records: "\n".join(map(json.dumps, records))  # noqa: E731
    together = parse_facts(lines(LAMA, TREX), "both.jsonl")
    apart = read_facts([("P19.jsonl", lines(TREX)), ("patterns.jsonl", lines(PARAREL, LAMA))])
    pararel = read_facts([("P19.jsonl", lines(TREX)), ("patterns.jsonl", lines(PARAREL))])

    assert together[0].prompt == Prompt("{} was born in", "Allan Peiper") == apart[0].prompt
    assert together[0].target_true == "Alexandra" and together.n_templates == 1 and together.n_rows == 2
    assert pararel[0].prompt == Prompt("{} is native to", "Allan Peiper")
    with pytest.raises(DataError, match="There is no template for relation P19: give one beside the facts"):
        parse_facts(lines(TREX), "P19.jsonl")
    with pytest.raises(DataError, match="holds 1 templates and no facts"):
        parse_facts(lines(LAMA), "relations.jsonl")


def test_a_template_whose_object_is_not_last_cannot_be_asked() -> None:
    assert from_lama("[X] is the capital of [Y] .") == "{} is the capital of"
    with pytest.raises(DataError, match=r"goes on behind \[Y\]"):
        from_lama("[X] and [Y] are twin cities .")
    with pytest.raises(DataError, match=r"\[Y\] before \[X\]"):
        from_lama("[Y] is the home of [X].")
    row = {"template": "[X] plays [Y].", "subject": "Messi", "target_new": "tennis"}
    assert read(row)[0].prompt == Prompt("{} plays", "Messi")


def test_what_is_not_used_is_said() -> None:
    assert read({**SPORT, "note": 1, "cond": "x"}).notes == ("Not used: note, cond.",)
    assert read(SPORT).notes == ()


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (SPORT, "a table"),
        (BERLIN, "KnowEdit or EasyEdit"),
        (ZSRE_MEMIT, "CounterFact"),
        ({**ZSRE_PORTABLE}, "zsRE"),
        (RIPPLE, "RippleEdits"),
        (MZSRE, "zsRE by language"),
        (LRE, "LRE"),
        (LAMA, "templates"),
        (PARAREL, "templates"),
        (TREX, "T-REx"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_is_known_by_its_fields(record: dict[str, Any], name: str) -> None:
    assert name_of(record) == name and format_of(record) in FORMATS


def test_fields_that_mean_the_same_may_not_contradict_each_other() -> None:
    ((_, sentence),) = read_record({"Subject": "a", "subject ": "b", "prompt": "{} is", "new": "x"}, 1, {})

    assert sentence == "'subject ' stands there twice, as 'Subject', too."


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["prompt", "str", "x"]), inner)
    ),
    max_leaves=4,
)
WHOLE = [SPORT, BERLIN, EASYEDIT, ZSRE_PORTABLE, ZSRE_MEMIT, MQUAKE, RIPPLE, MZSRE, LRE, TREX]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(WHOLE), st.data())
def test_no_junk_in_any_field_of_any_format_is_more_than_a_row_that_is_left_out(
    whole: dict, data: st.DataObject
) -> None:
    broken = json.loads(json.dumps(whole))
    place = broken
    while True:  # a field, or one within it
        names = list(place) if isinstance(place, dict) else range(len(place))
        name = data.draw(st.sampled_from(names))
        if not isinstance(place[name], (dict, list)) or not place[name] or data.draw(st.booleans()):
            break
        place = place[name]
    place[name] = data.draw(JUNK)

    facts = read(SPORT, broken)
    requests = read_requests(json.dumps([SPORT, broken]))

    assert facts[0].target_new == "football" and len(requests.requests) >= 1
    assert all(problem.sentence for problem in [*facts.problems, *requests.problems])
