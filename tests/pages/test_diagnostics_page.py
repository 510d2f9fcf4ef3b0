"""The diagnostics page: a verdict before anything is applied, the safe policy instead, and what came of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from pages.shared import diagnosis_figures, diagnosis_report, verdicts
from pages.shared.diagnosis_report import Foresight
from pages.shared.figures import DARK, LIGHT
from rome_core import METHODS
from rome_core.diagnostics import Diagnosis
from rome_core.methods.rome import POLICIES
from rome_core.reference import Reference
from tests.pages.conftest import goto, texts, wait_for
from tests.tiny import random_edit, random_moment, tiny_model

ORDINARY = tuple(np.logspace(2.5, 3.5, 30).tolist())
BROKEN = Diagnosis(
    verdict="disabling",
    explanation="The update divides by k_0ᵀC⁻¹k* = 12.",
    calibrated=False,
    quantity="relative_F",
    score=14.9,
    caution_at=0.5,
    disabling_at=2.0,
    method="rome",
    layer=7,
    denominator=12.0,
    caution_below=360.0,
    disabling_below=90.0,
    k0_k0=170.0,
    k0_kstar=12.0,
    kstar_kstar=1231.0,
    k0_norm=30.0,
    kstar_norm=4.0,
    cosine=0.1,
    cosine_whitened=0.03,
    subject_first=True,
    value_ratio=1.2,
    norm_F=2_500.0,
    relative_F=14.9,
    relative_2=100.0,
    relative_C=12.0,
    relative_start=9.0,
    reference=Reference(k0_kstar=ORDINARY),
)
SAFE = replace(BROKEN, verdict="safe", method="r-rome", denominator=1231.0, disabling_below=20.0, relative_F=0.07)


@pytest.fixture
def page(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("rome_core.moment.stored_moment", random_moment)
    return goto(app, "diagnostics")


def job(app: AppTest, name: str = "job") -> Any:
    return app.session_state["_results"][("diagnosis", name)]


def diagnose(app: AppTest) -> Foresight:
    app.button(key="diagnose").click().run()
    return finished(app, "job")


def finished(app: AppTest, name: str) -> Any:
    wait_for(app, lambda app: not job(app, name).live)
    app.run()
    assert job(app, name).error is None
    return job(app, name).result


# --------------------------------------------------------------------------------------------------------------- page


def test_it_says_what_to_do(page: AppTest) -> None:
    assert "Press Diagnose" in texts(page.info)


def test_the_verdict_comes_before_anything_is_applied(page: AppTest) -> None:
    found = diagnose(page)

    assert not page.exception
    assert set(found.policies) == {policy.name for policy in POLICIES}
    assert page.session_state["_edits"] == []
    assert len(page.table) == 2
    assert "k₀ᵀC⁻¹k" in str(page.table[0].value)


def test_bad_input_is_one_sentence(page: AppTest) -> None:
    page.text_input(key="target").set_value("").run()
    page.button(key="diagnose").click().run()

    assert not page.exception
    assert [error.value.split(".")[0] for error in page.error] == ["The new object is empty"]


def test_an_edit_is_applied_and_its_effect_measured_next_to_the_forecast(page: AppTest) -> None:
    found = diagnose(page)
    page.button(key="apply").click().run()
    after = finished(page, "tried")

    assert [item.edit.id for item in page.session_state["_edits"]] == [found.edit.id]
    assert after.verdict == found.diagnosis.verdict
    assert [metric.label for metric in page.metric][:3] == ["Perplexity", "Outcome", "Forecast"]


def test_the_safe_policy_is_offered_instead_and_takes_the_place_of_the_other(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.selectbox(key="method").select("rome").run()
    diagnose(page)
    job(page).result = replace(job(page).result, diagnosis=BROKEN, policies={"rome": BROKEN, "h-rome": SAFE})
    page.run()
    page.button(key="apply").click().run()
    page.button(key="apply-safe").click().run()
    finished(page, "tried")

    assert [item.edit.method for item in page.session_state["_edits"]] == ["h-rome"]


def test_an_edit_of_the_session_can_be_diagnosed(page: AppTest) -> None:
    diagnose(page)
    page.button(key="apply").click().run()
    (item,) = page.session_state["_edits"]
    page.selectbox(key="what").select(item.edit.id).run()
    assert not [box for box in page.selectbox if box.key == "method"]

    assert diagnose(page).edit is item.edit


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("policies", "offered"),
    [
        ({"rome": BROKEN, "r-rome": SAFE, "h-rome": SAFE, "n-rome": SAFE}, "n-rome"),
        ({"rome": BROKEN, "r-rome": BROKEN, "h-rome": SAFE, "p-rome": SAFE}, "h-rome"),
        ({"rome": BROKEN, "p-rome": SAFE}, None),
    ],
)
def test_the_policy_offered_is_a_safe_one(policies: dict[str, Diagnosis], offered: str | None) -> None:
    edit = replace(random_edit(tiny_model()), method="rome")

    assert Foresight(edit, (), BROKEN, policies).safest == offered


@pytest.mark.parametrize(
    ("perplexities", "word"),
    [
        ((87.0, 14_204.0), "broken"),
        ((87.0, 110.0), "hurt"),
        ((87.0, 86.0), "unharmed"),
        ((87.0, float("nan")), "broken"),
    ],
)
def test_the_outcome_is_a_word(perplexities: tuple[float, float], word: str) -> None:
    assert word in diagnosis_report.damage(perplexities)[0]


def test_every_quantity_has_its_meaning() -> None:
    rows = diagnosis_report.quantities(BROKEN, random_edit(tiny_model()))

    assert len(rows) == 10
    assert all(symbol and value and meaning for symbol, value, meaning in rows)
    assert ("k*ᵀC⁻¹k*", "1,231") in [row[:2] for row in rows]


def test_a_verdict_is_a_shape_and_a_word_and_numbers_have_no_powers_of_ten() -> None:
    assert [verdicts.label(verdict) for verdict in verdicts.SHAPES] == ["● safe", "▲ caution", "■ disabling"]
    assert [verdicts.large(x) for x in (14_204.4, 12.345, 0.0123, -3.0)] == ["14,204", "12.3", "0.0123", "−3"]


# -------------------------------------------------------------------------------------------------------------- gauge


def test_the_gauge_marks_this_edit_and_the_danger_zone() -> None:
    fig = diagnosis_figures.gauge(BROKEN, "rome", "caption", LIGHT)
    zone, line = fig.layout.shapes

    assert fig.layout.title.text == "Denominator 83.4 times smaller than that of ordinary facts"
    assert (line.x0, zone.x0, zone.x1) == pytest.approx((12, 1, 90))
    assert sum(fig.data[0].y) == len(ORDINARY)
    assert "k₀ᵀC⁻¹k*" in fig.layout.xaxis.title.text


@pytest.mark.parametrize("denominator", [-12.0, 0.0, 1e-300])
def test_a_denominator_that_is_not_positive_stands_at_the_left_edge(denominator: float) -> None:
    fig = diagnosis_figures.gauge(replace(BROKEN, denominator=denominator), "rome", "caption", DARK)

    low, high = fig.layout.xaxis.range
    assert low <= np.log10(fig.layout.shapes[0].x0) <= high


def test_the_gauge_does_without_ordinary_facts() -> None:
    fig = diagnosis_figures.gauge(replace(SAFE, reference=Reference()), "r-rome", "caption", LIGHT)

    assert fig.layout.title.text == "No ordinary facts to compare this edit with"
    assert list(METHODS)
