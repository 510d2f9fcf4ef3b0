"""A fact's identity is its place: ids are only what a source calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.errors import PromptError
from rome_core.facts.fact import Fact, distinct, part_of, tell_apart
from rome_core.model.tokens import EditRequest, Prompt

PARIS = Fact("1", "capital", Prompt("{} is the capital of", "Paris"), "France", "Italy")


def test_repeated_ids_are_told_apart_by_their_place() -> None:
    facts = [PARIS, replace(PARIS, target_new="Spain"), replace(PARIS, id="1 (2)"), replace(PARIS, id="x")]

    assert [fact.id for fact in distinct(facts)] == ["1", "1 (2)", "1 (2) (2)", "x"]
    assert [fact.target_new for fact in distinct(facts)] == ["Italy", "Spain", "Italy", "Italy"]


def facts_with(ids: Sequence[str]) -> list[Fact]:
    return [replace(PARIS, id=id) for id in ids]


def test_an_id_that_is_there_once_is_the_name() -> None:
    assert tell_apart(facts_with(["a", "1", "P36/0"])) == ["a", "1", "P36/0"]
    assert tell_apart(facts_with(["1", "1", "1"])) == ["1", "1 (2)", "1 (3)"]
    assert tell_apart(facts_with(["1", "1 (2)", "1"])) == ["1", "1 (2)", "1 (3)"]


@given(st.lists(st.sampled_from(["", "1", "1 (2)", "1 (2) (2)", "2"]), max_size=9), st.integers(0, 9))
def test_no_two_names_are_one_and_a_set_may_grow(ids: list[str], n: int) -> None:
    names = tell_apart(facts_with(ids))

    assert len(set(names)) == len(ids) == len(names)
    assert tell_apart(facts_with(ids[:n])) == names[:n]
    assert [fact.id for fact in distinct(facts_with(ids))] == names


def test_a_fact_without_a_new_object_is_no_request() -> None:
    assert PARIS.request == EditRequest(PARIS.prompt, "Italy", "France")
    assert replace(PARIS, target_true="").request.target_true is None
    with pytest.raises(PromptError, match="new object is empty"):
        _ = replace(PARIS, target_new="").request


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
