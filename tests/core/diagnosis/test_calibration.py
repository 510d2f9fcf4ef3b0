"""Thresholds: ROC, area and cut against counting by hand, the choice of the quantity, and the kept file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu

from rome_core.diagnosis.calibration import (
    QUANTITIES,
    Measured,
    Rate,
    auc,
    best_threshold,
    calibrate,
    calibration_for,
    held_back,
    lowest_threshold,
    roc,
)
from rome_core.errors import DataError

NAN = float("nan")


def drawn(n: int = 200, seed: int = 0) -> list[Measured]:
    """Edits whose relative_C alone says what becomes of them: from 3 on they break, from 1 on they hurt."""
    draw = np.random.default_rng(seed)
    edits = []
    for index in range(n):
        size = float(np.exp(draw.normal(0, 1.5)))
        ratio = 50.0 if size >= 3 else 1.5 if size >= 1 else 1.0
        values = {name: float(draw.random()) for name in QUANTITIES} | {"relative_C": size}
        edits.append(Measured(f"subject {index}", "first" if index % 3 else "later", values, ratio))
    return edits


def test_the_area_under_the_curve_is_mann_and_whitneys() -> None:
    draw = np.random.default_rng(0)
    values, truth = draw.integers(0, 12, 60).astype(float), draw.random(60) < 0.4

    expected = mannwhitneyu(values[truth], values[~truth]).statistic / truth.sum() / (~truth).sum()

    assert auc(values.tolist(), truth.tolist()) == pytest.approx(expected)
    x, y = np.array(roc(values.tolist(), truth.tolist())).T
    assert np.trapezoid(y, x) == pytest.approx(expected)


def test_the_curve_counts_every_threshold() -> None:
    assert roc([1.0, 2.0, 2.0, NAN], [False, True, False, True]) == [(0, 0), (0, 0.5), (0.5, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("values", "positive", "cut"),
    [
        ([1, 2, 8, 9], [0, 0, 1, 1], 4.0),  # the middle of 2 and 8 on a log scale
        ([1, 4, 9, 16], [0, 1, 0, 1], 2.0),  # two cuts are equally good: the one that misses nothing
        ([1, 2, 3, NAN], [0, 0, 0, 1], math.sqrt(3e300)),
        ([1, 2], [1, 1], 1.0),
        ([1, 2], [0, 0], math.inf),
    ],
)
def test_the_best_cut_by_hand(values: list[float], positive: list[int], cut: float) -> None:
    assert best_threshold(values, [bool(p) for p in positive]) == pytest.approx(cut)


@pytest.mark.parametrize(
    ("alpha", "cut"),
    [
        (0.0, math.sqrt(8 * 9)),  # above the largest negative, 8
        (0.25, math.sqrt(4 * 5)),  # 8 alone may reach it
        (0.5, math.sqrt(2 * 4)),  # 8 and 4 may
    ],
)
def test_the_lowest_cut_with_so_many_false_alarms_by_hand(alpha: float, cut: float) -> None:
    values, positive = [1.0, 2.0, 4.0, 8.0, 5.0, 9.0], [False] * 4 + [True] * 2

    assert lowest_threshold(values, positive, alpha) == pytest.approx(cut)


def test_disabling_never_begins_below_caution() -> None:
    """Even where the allowance of false alarms would reach down to edits that do no harm."""
    values = dict.fromkeys(QUANTITIES, 0.0)
    edits = [
        Measured(f"subject {i}", "first", {name: float(i) for name in values}, 50.0 if i > 95 else 1.0)
        for i in range(1, 101)
    ]

    found = calibrate(edits, "abc", "tiny", "numbers").best

    assert 90 < found.caution == found.disabling < 97


def test_the_quantity_that_tells_most_is_chosen_and_its_thresholds_found() -> None:
    edits = drawn()
    found = calibrate(edits, "abc", "tiny", "numbers")
    fit = [e.values["relative_C"] for e in edits if not held_back(e.subject)]
    held = [e for e in edits if held_back(e.subject)]

    assert found.quantity == "relative_C"
    harmless = [x for x in fit if x < 3]
    flagged = sum(x >= found.best.disabling for x in harmless)
    assert flagged == int(0.05 * len(harmless)) > 0  # all the false alarms that are allowed
    assert max(x for x in fit if x < 1) <= found.best.caution <= min(x for x in fit if x >= 1)
    assert found.best.auc_fit == found.best.auc_held == 1.0
    assert found.n_fit + found.n_held == 200 and found.n_held == len(held)
    for pool in ("first", "later"):
        mine = [e for e in held if e.pool == pool]
        flagged = [e for e in mine if e.values["relative_C"] >= found.best.disabling]
        assert found.caught[pool] == Rate(sum(e.broken for e in flagged), sum(e.broken for e in mine))
        assert found.false_alarms[pool] == Rate(sum(not e.broken for e in flagged), sum(not e.broken for e in mine))
        assert found.warned[pool] == Rate(sum(e.broken for e in mine), sum(e.broken for e in mine))
    assert found.caught["all"].n == found.caught["first"].n + found.caught["later"].n > 0


def test_held_back_edits_do_not_move_a_threshold() -> None:
    edits = drawn()
    changed = [
        Measured(e.subject, e.pool, e.values, 1.0 if index % 2 else 50.0) if held_back(e.subject) else e
        for index, e in enumerate(edits)
    ]

    one, two = (calibrate(some, "abc", "tiny", "numbers") for some in (edits, changed))

    assert (one.quantity, one.best.caution, one.best.disabling) == (two.quantity, two.best.caution, two.best.disabling)
    assert one.roc != two.roc


def test_about_half_of_all_subjects_are_held_back_whatever_their_case() -> None:
    held = [held_back(f"subject {i}") for i in range(1000)]

    assert 450 < sum(held) < 550
    assert [held_back(f"SUBJECT {i} ") for i in range(1000)] == held


@pytest.mark.parametrize(("k", "n"), [(0, 20), (19, 20), (20, 20), (3, 7)])
def test_the_interval_is_wilsons(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(method="wilson")

    assert Rate(k, n).interval == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert Rate(k, n).value == k / n


def test_no_edits_give_no_rate() -> None:
    assert math.isnan(Rate(0, 0).value) and Rate(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize("ratio", [1.0, 50.0])
def test_edits_of_one_kind_only_are_refused(ratio: float) -> None:
    edits = [Measured(e.subject, e.pool, e.values, ratio) for e in drawn()]

    with pytest.raises(DataError, match=r"thresholds need both kinds. Measure more edits"):
        calibrate(edits, "abc", "tiny", "numbers")


def test_perplexity_that_is_not_a_number_is_broken() -> None:
    assert Measured("x", "first", {}, NAN).broken and Measured("x", "first", {}, math.inf).hurt


def test_the_kept_file_comes_back_whole_and_belongs_to_one_model(tmp_path: Path) -> None:
    found = calibrate(drawn(), "abc", "tiny", "numbers")

    found.write(tmp_path)

    assert calibration_for("abc", tmp_path) == found
    assert calibration_for("another", tmp_path) is None
    assert (tmp_path / "abc.json").stat().st_size < 50_000


@pytest.mark.parametrize("text", ["", "[]", '{"model": "x"}', '{"thresholds": 3}'])
def test_a_damaged_file_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "abc.json").write_text(text)

    with pytest.raises(DataError, match=r"'abc.json' is not a readable calibration .* Fit it again"):
        calibration_for("abc", tmp_path)
