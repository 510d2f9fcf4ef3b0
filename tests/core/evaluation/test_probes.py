"""Questions beyond the prompt: what is written holds together, and is summed up."""

from __future__ import annotations

from dataclasses import replace

from rome_core.evaluation.answers import Change, Kind
from rome_core.evaluation.probes import KINDS, probe_questions, summarise_probes
from rome_core.facts.datasets import load_facts
from tests.tiny import change_by_hand


def fact_of(relation: str, subject: str):
    return next(fact for fact in load_facts() if (fact.relation, fact.prompt.subject) == (relation, subject))


def test_the_questions_about_the_eiffel_tower() -> None:
    found = {q.kind: q for q in probe_questions(fact_of("landmark-city", "Eiffel Tower"))}  # Paris -> Berlin

    assert set(found) == set(KINDS)
    back = found["reversed"]
    assert (back.text, back.true_text) == (
        "A famous sight in the city of Berlin is the",
        "A famous sight in the city of Paris is the",
    )
    assert back.new == back.true == "Eiffel Tower"
    step = found["one step away"]
    assert step.true_text is None and (step.new, step.true) == ("Germany", "France")
    assert found["another language"].text.endswith("Eiffel Tower steht in der Stadt")


def given_away(fact) -> bool:
    """Whether the subject holds an object's name, as "New York Public Library" does."""
    return fact.target_new in fact.prompt.subject or fact.target_true in fact.prompt.subject


def test_every_fact_of_the_project_has_questions_that_do_not_give_their_answer_away() -> None:
    for fact in load_facts():
        found = probe_questions(fact)
        assert {"reversed", "another language"} <= {q.kind for q in found} or given_away(fact), fact
        for q in found:
            assert "{}" not in q.text + (q.true_text or "") and q.text == q.text.strip()
            assert (q.text, q.new) != (q.true_text or q.text, q.true)
            if q.kind != "reversed":
                words = f" {q.text} ".replace(",", " ")
                assert f" {q.new} " not in words and f" {q.true} " not in words


def test_another_fact_has_none_and_another_object_has_fewer() -> None:
    fact = fact_of("landmark-city", "Eiffel Tower")

    assert probe_questions(replace(fact, relation="P36")) == ()
    assert [q.kind for q in probe_questions(replace(fact, target_new="Atlantis"))] == ["reversed"]


def test_averages_by_hand() -> None:
    def one(kind: Kind, before: bool, after: bool) -> Change:
        pairs = {True: (0.2, 0.1), False: (0.1, 0.1)}  # equal is not won
        return change_by_hand(kind, "a", pairs[before], pairs[after])

    reversed_ = [one("reversed", False, False), one("reversed", False, True)]
    found = summarise_probes([*reversed_, one("what is near", True, True)])

    assert list(found) == ["reversed", "what is near"]
    assert [(s.value, s.n) for s in found["reversed"]] == [(0.0, 2), (0.5, 2)]
    assert [(s.value, s.n) for s in found["what is near"]] == [(1.0, 1), (1.0, 1)]
    assert summarise_probes([]) == {}
