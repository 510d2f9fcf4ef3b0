"""Edits of single facts, measured in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rome_core import METHODS, Edit, Fact, LanguageModel, Prompt, evaluate, solve
from rome_core.evaluation import ask, measure, questions_about, score_answers, summarise_values
from tests.core.evaluation.test_answers import BARE, FACT
from tests.tiny import random_edit, random_moment, tiny_model


def values_of(lm: LanguageModel, fact: Fact, edits: Sequence[Edit] = ()) -> dict[str, float]:
    return score_answers(ask(lm, questions_about(fact), edits=edits))


def config(**changes):
    return METHODS["r-rome"](**{"layer": 1, "clamp": 8.0, "steps": 6, "prefixes": ("",), "ridge": 1e-3, **changes})


def test_every_fact_is_edited_by_itself_on_the_untouched_model() -> None:
    lm = tiny_model()
    moments = {1: random_moment(lm, 1)}
    other = replace(FACT, id="other", target_new="Milan")
    seen: list[tuple[str, int]] = []

    def track(items, label, total, /):
        seen.append((label, total))
        return items

    found = evaluate(lm, [FACT, other], config(), moments=moments, track=track)

    for record, fact in zip(found.records, (FACT, other), strict=True):
        edit = solve(lm, [fact.request], config(), moments=moments)
        assert record.fact == fact.id and record.error == ""
        assert record.before == values_of(lm, fact) and record.after == values_of(lm, fact, [edit])
        assert record.delta_norm == pytest.approx(edit.delta_norm)
        assert record.after != record.before
    assert found.scores == summarise_values([record.after for record in found.records])
    assert found.before == summarise_values([record.before for record in found.records])
    assert found.failed == () and seen == [("Editing facts", 2)]


def test_edits_that_are_active_stay_active() -> None:
    lm = tiny_model()
    first, moments = random_edit(lm, 2), {1: random_moment(lm, 1)}

    (record,) = measure(lm, [FACT], config(), moments=moments, edits=[first])

    edit = solve(lm, [FACT.request], config(), moments=moments, edits=[first])
    assert record.before == values_of(lm, FACT, [first])
    assert record.after == values_of(lm, FACT, [first, edit])


def test_a_fact_that_cannot_be_edited_is_counted_and_not_hidden() -> None:
    lm = tiny_model("gpt2", n_positions=24)
    moments = {1: random_moment(lm, 1)}
    long = replace(BARE, id="long", prompt=Prompt("The city of {} is far away" + ", far away" * 10, "Paris"))

    found = evaluate(lm, [FACT, long, BARE], config(), moments=moments)

    (failed,) = found.failed
    assert failed.fact == "long" and "24" in failed.error
    assert failed.after is None and math.isnan(failed.delta_norm)
    assert [record.fact for record in found.records] == ["tower", "long", "bare"]
    assert found.scores["ES"].n == found.before["ES"].n == 2
    nowhere = evaluate(lm, [FACT], config(layer=9), moments=moments)
    assert "Layer 9 does not exist" in nowhere.failed[0].error and nowhere.scores == nowhere.before == {}
