"""A fact's identity is its place: ids are only what a source calls it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.errors import PromptError
from rome_core.facts.fact import Fact, distinct, editable, part_of
from rome_core.model.tokens import EditRequest, Prompt

PARIS = Fact("1", "capital", Prompt("{} is the capital of", "Paris"), "France", "Italy")


def test_repeated_ids_are_told_apart_by_their_place() -> None:
    facts = [PARIS, replace(PARIS, target_new="Spain"), replace(PARIS, id="1 (2)"), replace(PARIS, id="x")]

    assert [fact.id for fact in distinct(facts)] == ["1", "1 (3)", "1 (2)", "x"]
    assert [fact.target_new for fact in distinct(facts)] == ["Italy", "Spain", "Italy", "Italy"]


@given(st.lists(st.sampled_from(["1", "1 (2)", "1 (3)", "2", ""])))
def test_no_two_facts_share_an_id_and_the_first_keeps_its_own(ids: list[str]) -> None:
    named = [fact.id for fact in distinct(replace(PARIS, id=name) for name in ids)]

    assert len(set(named)) == len(ids)
    for at, name in enumerate(ids):
        if name not in ids[:at]:
            assert named[at] == name


def test_a_fact_without_a_new_object_is_no_request() -> None:
    assert PARIS.request == EditRequest(PARIS.prompt, "Italy", "France")
    assert replace(PARIS, target_true="").request.target_true is None
    with pytest.raises(PromptError, match="new object is empty"):
        _ = replace(PARIS, target_new="").request
    same = replace(PARIS, target_new="France")
    assert editable([PARIS, same, replace(PARIS, target_new="")]) == [PARIS]


def test_neighbours_have_one_answer_or_each_its_own() -> None:
    near = replace(PARIS, neighbours=("Lyon is in", "Rome is in"), neighbour_true="France")

    assert near.near == (("Lyon is in", "France"), ("Rome is in", "France"))
    assert replace(near, neighbour_answers=("France", "Italy")).near == (
        ("Lyon is in", "France"),
        ("Rome is in", "Italy"),
    )


def test_the_rule_of_the_parts_is_stable() -> None:
    def about(subject: str) -> str:
        return part_of(Fact("x", "y", Prompt("{} is in", subject), "a", "b"))

    # Written down once: checkpoints were trained on what the rule said then.
    subjects = ("Eiffel Tower", "Kenya", "Nile", "Lyon", "Toyota", "dolphin")
    assert [about(subject) for subject in subjects] == ["train", "test", "validation", "test", "train", "test"]
    assert about(" eiffel tower") == about("Eiffel Tower")
