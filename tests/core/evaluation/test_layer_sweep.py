"""The layer sweep: its order, that it goes on where it was, every policy against an edit of its own, and its lines."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rome_core import METHODS, DataError, LanguageModel, Prompt, solve
from rome_core.evaluation.answers import Pairs, ask, pairs_of, questions_about
from rome_core.evaluation.layer_sweep import UPDATES, Swept, as_record, by_layer, coarse_to_fine, from_record, sweep
from rome_core.files import STUDIES
from tests.core.evaluation.test_answers import FACT as TOWER
from tests.tiny import random_moment

pytestmark = pytest.mark.usefixtures("random_moments")
FACT = replace(
    TOWER,
    neighbours=tuple(f"Number {n} is located in the city of" for n in range(6)),
    neighbour_true="Paris",
)
CONFIG = METHODS["r-rome"](steps=2, clamp=1.0, prefixes=("", "x. "))


def test_the_order_covers_the_depth_first_and_every_layer_once() -> None:
    order = coarse_to_fine(30)

    assert order[:4] == [0, 8, 16, 24] and sorted(order) == list(range(30))


def test_every_policy_is_measured_as_an_edit_of_its_own(lm: LanguageModel) -> None:
    (record,) = sweep(lm, [FACT], CONFIG, layers=[2])

    assert record.cases.keys() == record.norms.keys() == set(UPDATES)
    few = replace(FACT, neighbours=FACT.neighbours[:4])
    for policy in ("rome", "h-rome"):
        config = METHODS[policy](layer=2, steps=2, clamp=1.0, prefixes=CONFIG.prefixes)
        edit = solve(lm, [FACT.request], config, moments={2: random_moment(lm, 2)})
        own, case = pairs_of(ask(lm, questions_about(few), edits=[edit])), record.cases[policy]
        for kind in ("edit", "paraphrase", "neighbour"):
            for mine, theirs in zip(case[kind], own[kind], strict=True):
                assert mine == pytest.approx(theirs, rel=1e-3)
        assert record.norms[policy] == pytest.approx(edit.delta_norm / float(lm.weight(2).norm()), rel=1e-4)


def test_what_is_done_is_not_done_again_and_a_fact_that_fails_has_its_reason(lm: LanguageModel) -> None:
    bad = replace(FACT, id="bad", prompt=Prompt("The {} is", "tower " * 300))
    records = list(sweep(lm, [FACT, bad], CONFIG, layers=[0, 1], done={(0, "tower"), (0, "bad"), (1, "tower")}))

    assert [(record.layer, record.fact) for record in records] == [(1, "bad")]
    assert "tokens" in records[0].error and not records[0].cases
    assert by_layer(records, "r-rome") == {}
    assert from_record(json.loads(json.dumps(as_record(records[0])))).error == records[0].error


def test_facts_with_one_id_are_told_apart(lm: LanguageModel) -> None:
    """The second fact is traced though the first one, whose id it has, is done; its numbers are its own."""
    other = replace(FACT, prompt=Prompt("The {} is located in the city of", "Colosseum"))
    (mine,) = sweep(lm, [FACT, other], CONFIG, layers=[1], done={(1, "tower")})
    (expected,) = sweep(lm, [replace(other, id="other")], CONFIG, layers=[1])

    assert mine.fact == "tower (2)" and mine.cases == expected.cases and mine.norms == expected.norms
    with pytest.raises(DataError, match="1 of 1 facts have no new object"):
        list(sweep(lm, [replace(FACT, target_new=FACT.target_true)], CONFIG))


def test_scores_by_layer_and_lines_that_come_back() -> None:
    good: Pairs = {"edit": [(0.9, 0.1)], "paraphrase": [(0.8, 0.1)], "neighbour": [(0.1, 0.8), (0.1, 0.9)]}
    half: Pairs = {"edit": [(0.9, 0.1)], "paraphrase": [(0.1, 0.8)], "neighbour": [(0.9, 0.1), (0.1, 0.9)]}
    records = [
        Swept(5, "a", 1.5, 0.1, {"rome": good}, {"rome": 0.2}),
        Swept(5, "b", 1.5, 0.1, {"rome": half}, {"rome": 0.2}),
        Swept(0, "b", 1.5, 0.1, {"rome": half}, {"rome": 0.2}),
    ]
    again = [from_record(json.loads(json.dumps(as_record(record)))) for record in records]
    scores = by_layer(again, "rome")

    assert again == records and list(scores) == [0, 5]
    assert [scores[5][name].value for name in ("ES", "PS", "NS")] == [1.0, 0.5, 0.75]
    assert scores[5]["S"].value == pytest.approx(3 / (1 + 2 + 4 / 3)) and scores[5]["ES"].n == 2
    assert scores[0]["PS"].value == 0 and scores[0]["S"].value == 0
    assert not math.isnan(scores[5]["S"].low)


def test_the_kept_study_is_read_and_written_as_it_is() -> None:
    lines = (STUDIES / "layers.jsonl").read_text(encoding="utf-8").splitlines()

    assert [json.loads(json.dumps(as_record(from_record(json.loads(line))))) for line in lines[:20]] == [
        json.loads(line) for line in lines[:20]
    ]
