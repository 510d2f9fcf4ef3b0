"""Sets without new objects are counted, and given objects of the same relation by a seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.errors import DataError
from rome_core.facts.datasets import Fact
from rome_core.facts.fact import lacks_new_object
from rome_core.facts.new_objects import require_new_objects, with_new_objects
from rome_core.model.tokens import Prompt


def fact(subject: str, true: str, new: str = "", relation: str = "P1", template: str = "{} is in") -> Fact:
    return Fact("1", relation, Prompt(template, subject), true, new)


CITIES = [fact("Paris", "France"), fact("Lyon", "France"), fact("Rome", "Italy"), fact("Köln", "Germany", "Japan")]


@pytest.mark.parametrize(
    ("new", "lacks"), [("", True), (" ", True), ("France", True), (" france ", True), ("Italy", False)]
)
def test_no_new_object_is_none_or_the_true_one(new: str, lacks: bool) -> None:
    assert lacks_new_object(fact("Paris", "France", new)) == lacks


def test_a_set_without_new_objects_is_refused_with_their_number() -> None:
    with pytest.raises(
        DataError, match=r"^3 of 4 facts have no new object to edit to.*true one.*object of its relation.*trace"
    ):
        require_new_objects(CITIES)
    require_new_objects(CITIES[3:])
    require_new_objects([])


def test_an_object_of_the_same_relation_is_taken() -> None:
    found = with_new_objects(
        [*CITIES, fact("Bach", "composer", relation="P2"), fact("Haydn", "pianist", relation="P2")], 0
    )

    assert [one.prompt.subject for one in found] == ["Paris", "Lyon", "Rome", "Köln", "Bach", "Haydn"]
    assert all(one.target_new in {"Italy", "Germany"} for one in found[:2])
    assert found[2].target_new in {"France", "Germany"}
    assert found[3].request == CITIES[3].request and not found.problems, "what has one keeps it"
    assert [one.target_new for one in found[4:]] == ["pianist", "composer"]
    assert len({tuple(one.target_new for one in with_new_objects(CITIES, seed)) for seed in range(20)}) > 2


def test_without_a_relation_the_template_stands_for_it() -> None:
    found = with_new_objects(
        [
            fact("Paris", "France", relation=""),
            fact("Rome", "Italy", relation=""),
            fact("Bach", "composer", relation="", template="{} was a"),
        ],
        0,
    )

    assert [one.target_new for one in found] == ["Italy", "France"]
    assert [str(problem) for problem in found.problems] == [
        "fact 3: The set has no other object of the relation '{} was a' for 'Bach'."
    ]


def test_what_is_true_of_the_subject_by_another_record_is_not_chosen() -> None:
    languages = [fact("Switzerland", "German"), fact("Switzerland", "French"), fact("Brazil", "Portuguese")]

    assert [one.target_new for one in with_new_objects(languages, 0)][:2] == ["Portuguese", "Portuguese"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Paris", "Lyon", "Rome", " Rome"]),
            st.sampled_from(["France", "france", "Italy", "Japan"]),
            st.sampled_from(["", "France", "Italy"]),
            st.sampled_from(["P1", "P2", ""]),
        ),
        max_size=8,
    ),
    st.integers(0, 5),
    st.randoms(),
)
def test_every_fact_comes_back_with_a_new_object_or_is_named(rows, seed, draw) -> None:
    facts = [replace(fact(*row), id=str(i)) for i, row in enumerate(rows)]
    found = with_new_objects(facts, seed)

    assert len(found) + len(found.problems) == len(facts)
    assert not any(map(lacks_new_object, found))
    by_id = {one.id: one for one in facts}
    for one in found:
        assert replace(one, target_new="") == replace(by_id[one.id], target_new=""), "nothing else is changed"
    draw.shuffle(facts)
    assert {one.id: one for one in with_new_objects(facts, seed)} == {one.id: one for one in found}


def test_a_set_without_true_objects_cannot_be_scored() -> None:
    with pytest.raises(DataError, match=r"^1 of 2 facts have no true object\. An edit is scored by p\(new\) against p"):
        require_new_objects([fact("Paris", "", "Italy"), fact("Rome", "Italy", "France")])
