"""Scores of hand-made cases, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rome_core.evaluation.answers import Pairs
from rome_core.evaluation.fact_measures import score_pairs
from rome_core.evaluation.scores import Score, mean_score, summarise

# (new, true) probabilities of prompts
GOOD: Pairs = {
    "edit": [(0.8, 0.1)],
    "paraphrase": [(0.5, 0.25), (0.6, 0.1)],
    "neighbour": [(0.1, 0.7), (0.2, 0.3)],
}
HALF: Pairs = {
    "edit": [(0.9, 0.2)],
    "paraphrase": [(0.5, 0.25), (0.1, 0.6)],
    "neighbour": [(0.1, 0.7), (0.5, 0.3)],
}
BAD: Pairs = {
    "edit": [(0.1, 0.2)],
    "paraphrase": [(0.1, 0.25), (0.1, 0.1)],
    "neighbour": [(0.9, 0.1), (0.5, 0.5)],
}
BARE: Pairs = {"edit": [(0.8, 0.1)], "paraphrase": [], "neighbour": []}


def summarise_pairs(cases: Sequence[Pairs], *, seed: int = 0) -> dict[str, Score]:
    return summarise([score_pairs(case) for case in cases], seed=seed)


def test_the_scores_of_a_case() -> None:
    assert score_pairs(GOOD) == pytest.approx(
        {"ES": 1.0, "EM": 0.7, "PS": 1.0, "PM": (0.25 + 0.5) / 2, "NS": 1.0, "NM": (0.6 + 0.1) / 2}
    )
    assert score_pairs(HALF) == pytest.approx(
        {"ES": 1.0, "EM": 0.7, "PS": 0.5, "PM": (0.25 - 0.5) / 2, "NS": 0.5, "NM": (0.6 - 0.2) / 2}
    )
    assert score_pairs(BAD) == pytest.approx(  # equal probabilities are no success
        {"ES": 0.0, "EM": -0.1, "PS": 0.0, "PM": -0.15 / 2, "NS": 0.0, "NM": -0.8 / 2}
    )
    assert score_pairs(BARE) == pytest.approx({"ES": 1.0, "EM": 0.7})


def test_s_is_the_harmonic_mean_of_the_averages_and_not_of_the_cases() -> None:
    scores = summarise_pairs([GOOD, HALF, BAD])

    es, ps, ns = 2 / 3, 1.5 / 3, 1.5 / 3
    assert [scores[name].value for name in ("ES", "PS", "NS")] == pytest.approx([es, ps, ns])
    assert scores["S"].value == pytest.approx(3 / (1 / es + 1 / ps + 1 / ns))
    cases = [3 / (1 / 1 + 1 / 1 + 1 / 1), 3 / (1 / 1 + 1 / 0.5 + 1 / 0.5), 0.0]
    assert scores["S"].value != pytest.approx(np.mean(cases), abs=1e-3)
    assert scores["EM"].value == pytest.approx((0.7 + 0.7 - 0.1) / 3)
    assert {score.n for score in scores.values()} == {3}


def test_s_is_zero_where_one_average_is() -> None:
    assert summarise_pairs([BAD, BAD])["S"].value == 0.0


def test_without_cases_there_are_no_scores() -> None:
    assert summarise_pairs([]) == {}


def test_what_no_fact_has_is_absent_and_not_invented() -> None:
    assert set(summarise_pairs([BARE])) == {"ES", "EM"}


def test_facts_without_paraphrases_or_neighbours_count_where_they_can() -> None:
    scores = summarise_pairs([GOOD, HALF, {"edit": [(0.1, 0.8)], "paraphrase": [], "neighbour": []}])

    assert (scores["ES"].n, scores["PS"].n, scores["NS"].n) == (3, 2, 2)
    assert scores["ES"].value == pytest.approx(2 / 3)
    assert scores["PS"].value == scores["NS"].value == pytest.approx(0.75)
    assert 0.5 <= scores["PS"].low <= 0.75 <= scores["PS"].high <= 1.0
    assert scores["S"].low > 0.4  # 3/(3 + 2 + 2) at the least: a draw without paraphrases is none, not a zero


def test_the_interval_is_that_of_the_mean() -> None:
    """For 400 facts of which 300 succeed: 0.75 ± 1.96·√(0.75·0.25/400)."""
    cases = [GOOD] * 300 + [BAD] * 100

    scores = summarise_pairs(cases)

    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert scores["ES"].low == pytest.approx(0.75 - half, abs=0.006)
    assert scores["ES"].high == pytest.approx(0.75 + half, abs=0.006)
    assert scores["S"].value == pytest.approx(0.75)
    assert scores["S"].low < 0.75 < scores["S"].high
    assert summarise_pairs(cases) == scores  # seeded
    assert summarise_pairs(cases, seed=1) != scores


def test_facts_that_agree_leave_no_doubt() -> None:
    score = summarise_pairs([GOOD] * 5)["ES"]

    assert (score.value, score.low, score.high, score.n) == (1.0, 1.0, 1.0, 5)


def test_the_mean_of_numbers_with_its_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)

    score = mean_score(values.tolist())

    assert score.value == pytest.approx(values.mean()) and score.n == 400
    assert score.high - score.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_perplexity_is_averaged_as_nll() -> None:
    scores = summarise([{"perplexity": 10.0}, {"perplexity": 1000.0}])

    assert scores["perplexity"].value == pytest.approx(100.0)
    assert summarise([{"perplexity": math.inf}, {"perplexity": 10.0}])["perplexity"].value < math.inf
    assert scores["perplexity"].low == pytest.approx(10.0) and scores["perplexity"].high == pytest.approx(1000.0)
