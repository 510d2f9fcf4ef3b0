"""Facts of a set are told apart by more than their ids."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rome_core.facts.datasets import Fact
from rome_core.facts.identity import tell_apart
from rome_core.model.tokens import Prompt


def facts_with(ids: Sequence[str]) -> list[Fact]:
    return [Fact(id, "r", Prompt("{} is in", f"City {i}"), "France", "Italy") for i, id in enumerate(ids)]


def test_an_id_that_is_there_once_is_the_name() -> None:
    assert tell_apart(facts_with(["a", "1", "P36/0"])) == ["a", "1", "P36/0"]
    assert tell_apart(facts_with(["1", "1", "1"])) == ["1", "1 (2)", "1 (3)"]
    assert tell_apart(facts_with(["1", "1 (2)", "1"])) == ["1", "1 (2)", "1 (3)"]


@given(st.lists(st.sampled_from(["", "1", "1 (2)", "1 (2) (2)", "2"]), max_size=9), st.integers(0, 9))
def test_no_two_names_are_one_and_a_set_may_grow(ids: list[str], n: int) -> None:
    names = tell_apart(facts_with(ids))

    assert len(set(names)) == len(ids) == len(names)
    assert tell_apart(facts_with(ids[:n])) == names[:n]
