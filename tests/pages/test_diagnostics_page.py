"""The diagnostics page: a verdict before anything is applied, the safe policy instead, and what came of it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from pages.parts.diagnosis import calibration_view
from pages.parts.diagnosis import figures as diagnosis_figures
from pages.parts.diagnosis import many as diagnosis_many
from pages.parts.diagnosis import views as diagnosis_views
from pages.shared import verdicts
from pages.shared.session import ActiveEdit
from pages.shared.style import DARK, LIGHT
from pages.shared.track import Job
from rome_core import DEFAULT_METHOD, EditRequest, Prompt, export_adapter
from rome_core.diagnosis.calibration import QUANTITIES, Calibration, Rate, Thresholds
from rome_core.diagnosis.interference import Overlap
from rome_core.diagnosis.many import Screened
from rome_core.diagnosis.neighbourhood import Shift
from rome_core.diagnosis.ordinary_facts import Reference
from rome_core.diagnosis.verdict import Diagnosis
from rome_core.editing.edit import Edit
from rome_core.editing.shared_search import policies
from rome_core.editing.storage import export_merged
from rome_core.evaluation import foresight, perplexity
from rome_core.evaluation.foresight import Foresight
from tests.pages.conftest import edits_of, finish, goto, job_of, texts, wait_for
from tests.tiny import random_edit, tiny_model

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
    moment_key="kept",
    other_moment=False,
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
def page(app: AppTest, monkeypatch: pytest.MonkeyPatch, random_moments: None, few_facts: None) -> AppTest:
    """The page on a tiny model, with few facts and short texts: what is tested is the page."""
    monkeypatch.setattr(foresight, "perplexity", lambda lm, edits: perplexity(lm, ["It rained all day."], edits=edits))
    monkeypatch.setattr("rome_core.evaluation.before_after.NEW_TOKENS", 5)
    monkeypatch.setattr(foresight, "OTHERS", 15)
    return goto(app, "diagnostics")


def job(app: AppTest, name: str = "job") -> Any:
    return job_of(app, ("diagnosis", name))


def diagnose(app: AppTest) -> Foresight:
    app.button(key="diagnose").click().run()
    return finished(app, "job")


def finished(app: AppTest, name: str) -> Any:
    return finish(app, ("diagnosis", name))


PARIS = EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")
LIMITS = Thresholds(0.3, 1.2, 0.99, 0.98)
CALIBRATION = Calibration(
    "abc",
    "tiny",
    "relative_C",
    dict.fromkeys(QUANTITIES, LIMITS),
    100,
    90,
    {"all": Rate(19, 20), "first": Rate(19, 20), "later": Rate(0, 0)},
    {"all": Rate(20, 20), "first": Rate(20, 20), "later": Rate(0, 0)},
    {"all": Rate(1, 70), "first": Rate(1, 30), "later": Rate(0, 40)},
    ((0.0, 0.0), (0.0, 0.95), (1.0, 1.0)),
    "numbers",
)


# --------------------------------------------------------------------------------------------------------------- page


def test_it_says_what_to_do(page: AppTest) -> None:
    assert "Press Diagnose" in texts(page.info)


def test_the_verdict_comes_before_anything_is_applied(page: AppTest) -> None:
    found = diagnose(page)

    assert not page.exception
    assert set(found.policies) == set(policies())
    assert edits_of(page) == []
    assert len(page.table) == 2
    assert "k₀ᵀC⁻¹k" in str(page.table[1].value)


def test_bad_input_is_one_sentence(page: AppTest) -> None:
    page.text_input(key="target").set_value("").run()

    assert not page.exception and page.button(key="diagnose").disabled
    assert [error.value.split(".")[0] for error in page.error] == ["The new object is empty"]


def test_an_edit_is_applied_and_its_effect_measured_next_to_the_forecast(page: AppTest) -> None:
    found = diagnose(page)
    page.button(key="apply").click().run()
    after = finished(page, "tried")

    assert [item.edit.id for item in edits_of(page)] == [found.edit.id]
    assert after.verdict == found.diagnosis.verdict
    labels = [metric.label for metric in page.metric]
    assert labels[:4] == ["Perplexity", "Outcome", "Forecast", "Neighbours moved"]
    assert after.neighbour_kl == pytest.approx(np.mean([s.kl for s in after.shifts if s.kind != "unrelated"]))
    assert "nats" in page.metric[3].value and 10 < len(after.shifts) <= 15


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

    assert [item.edit.method for item in edits_of(page)] == ["h-rome"]


def view(app: AppTest, name: str) -> AppTest:
    app.segmented_control(key="question").set_value(name).run()
    assert not app.exception
    return app


def test_a_pasted_list_is_diagnosed_and_can_be_taken_away(page: AppTest) -> None:
    view(page, "Many edits")
    page.text_area(key="many-list").set_value("{} is the capital of | Paris | Italy\n{} is in|Lyon|Rome\nno").run()
    assert "the list, line 3: 1 of the 3 parts" in texts(page.warning)
    page.button(key="diagnose-all").click().run()
    finished(page, "many")

    screening = job(page, "many").partial
    assert [one.request.prompt.subject for one in screening.found] == ["Paris", "Lyon"]
    assert edits_of(page) == [] and "not calibrated" in texts(page.caption).lower()
    assert len(page.table) == 1
    data = json.loads(diagnosis_many.as_json(screening))
    assert data["settings"]["method"] == DEFAULT_METHOD and data["diagnoses"][0]["k0_kstar"]
    rows = list(csv.DictReader(io.StringIO(diagnosis_many.as_csv(screening))))
    assert [row["subject"] for row in rows] == ["Paris", "Lyon"] and rows[0]["model"] == "tiny-llama"


def test_what_was_diagnosed_before_a_stop_stays() -> None:
    lm, stopping = tiny_model(), Job("many")

    def work(track: Any) -> Any:
        for edit in track([random_edit(lm, seed=i) for i in range(3)], "Diagnosing", 3):
            yield Screened(edit.requests[0], edit, "safe", None, 0.1)
            if edit.id == random_edit(lm, seed=1).id:
                stopping.stop()

    stopping.run(lambda job: diagnosis_many.run(lm.name, {}, work, job))

    assert stopping.state == "stopped"
    assert len(stopping.partial.found) == 2


def test_a_list_that_cannot_be_read_is_one_sentence(page: AppTest) -> None:
    view(page, "Many edits")
    page.text_area(key="many-list").set_value("Paris").run()

    assert not page.exception
    assert "1 of the 3 parts are there" in texts(page.error)


def test_active_edits_are_diagnosed_as_they_are(page: AppTest) -> None:
    view(page, "Many edits")
    page.segmented_control(key="many-source").set_value("This session's edits").run()
    assert "No edit is active" in texts(page.info)


def put(page: AppTest, *edits: Edit) -> None:
    edits_of(page)[:] = [ActiveEdit(edit, f"edit {i}") for i, edit in enumerate(edits)]
    page.run()


def test_the_next_edits_effect_on_earlier_ones_is_foretold_and_checked(page: AppTest) -> None:
    lm = tiny_model("llama", layers=4)
    put(page, random_edit(lm), replace(random_edit(lm, seed=1), requests=(PARIS,)))
    view(page, "Between edits")
    page.button(key="foretell").click().run()
    found = finished(page, "interference")
    assert [one.label for one in found.moves] == ["Eiffel Tower → Rome"]
    page.button(key="check").click().run()
    (measured,) = finished(page, "check")

    assert measured.measured == pytest.approx(found.moves[0].predicted, rel=1e-3)
    assert "moved, measured" in str(page.table[0].value)
    assert "The form has changed" not in texts(page.caption)
    page.selectbox(key="next-edit").set_value(found.earlier[0].id).run()
    assert "The form has changed since this run; press **Foretell** to run it." in texts(page.caption)


def test_one_edit_alone_is_in_nobodys_way(page: AppTest) -> None:
    assert "Two edits are needed" in texts(view(page, "Between edits").info)


def test_a_changed_checkpoint_is_taken_apart_and_taken_back(page: AppTest, tmp_path: Path) -> None:
    lm = tiny_model("llama", layers=4)
    edit = random_edit(lm, 2)
    export_adapter(edit, tmp_path)
    view(page, "A changed model")
    page.text_input(key="forensics-folder").set_value(str(tmp_path)).run()
    page.button(key="compare-folder").click().run()
    found = finished(page, "forensics")
    page.button(key="take").click().run()

    assert [(change.layer, change.rank) for change in found.changes] == [(2, 1)]
    assert "1 weight changed, in layer 2" in texts(page.markdown)
    (item,) = edits_of(page)
    assert torch.allclose(item.edit.deltas[0].matrix(), edit.deltas[0].matrix(), atol=1e-5)


@pytest.mark.parametrize(("base", "said"), [(None, False), ("tiny-llama", False), ("someone/base", True)])
def test_an_adapter_of_another_base_is_said(page: AppTest, tmp_path: Path, base: str | None, said: bool) -> None:
    export_adapter(random_edit(tiny_model("llama", layers=4)), tmp_path, base)
    view(page, "A changed model")
    page.text_input(key="forensics-folder").set_value(str(tmp_path)).run()
    page.button(key="compare-folder").click().run()
    finished(page, "forensics")

    assert ("The adapter is of someone/base; it is compared with" in texts(page.warning).replace("\\", "")) == said


@pytest.mark.parametrize(("lost", "what"), [(1, "1 tensor was"), (40, "40 tensors were")])
def test_what_was_not_compared_is_counted_and_listed(page: AppTest, tmp_path: Path, lost: int, what: str) -> None:
    lm = tiny_model("llama", layers=4)
    export_merged(lm, [random_edit(lm)], tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weights, edited = load_file(file), "model.layers.1.mlp.down_proj.weight"
    strange = {f"strange.{i:02d}": torch.ones(1) for i in range(lost - 1)}
    save_file({**{name: value for name, value in weights.items() if name != edited}, **strange}, file)

    view(page, "A changed model")
    page.text_input(key="forensics-folder").set_value(str(tmp_path)).run()
    page.button(key="compare-folder").click().run()
    found = finished(page, "forensics")

    [said] = (text.value.replace("\\", "") for text in page.warning)
    assert len(found.not_compared) == lost and said.startswith(f"{what} not compared: ")
    assert f"{edited} ({tmp_path.name} does not hold it)" in said if lost == 1 else "; and 10 more." in said
    assert not page.success and f"{len(weights) - 1} weights of" in texts(page.info).replace("\\", "")


@pytest.mark.parametrize(("folder", "sentence"), [("", "The folder is empty"), ("/nowhere", "is not a folder")])
def test_a_wrong_folder_is_one_sentence(page: AppTest, folder: str, sentence: str) -> None:
    view(page, "A changed model")
    page.text_input(key="forensics-folder").set_value(folder).run()
    page.button(key="compare-folder").click().run()
    if folder:
        wait_for(page, lambda app: not job(app, "forensics").live)
        page.run()

    assert not page.exception and sentence in texts(page.error)


def test_a_model_that_nobody_calibrated_is_told_so(page: AppTest) -> None:
    assert "Not calibrated for this model" in texts(view(page, "Calibration").info)


def test_the_calibration_shows_its_error_rates(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_view, "calibration_of", lambda lm: CALIBRATION)
    view(page, "Calibration")

    shown = page.table[0].value.to_string(max_colwidth=None).replace("\\", "")
    assert "19 of 20, 95.0%" in shown and "none to count" in shown


def test_an_edit_of_the_session_can_be_diagnosed(page: AppTest) -> None:
    diagnose(page)
    page.button(key="apply").click().run()
    (item,) = edits_of(page)
    page.selectbox(key="what").select(item.edit.id).run()
    assert not [box for box in page.selectbox if box.key == "method"]

    assert diagnose(page).edit is item.edit


# ---------------------------------------------------------------------------------------------------------------- data


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
    assert word in diagnosis_views.damage(perplexities)[0]


def test_every_quantity_has_its_meaning() -> None:
    rows = diagnosis_views.quantities(BROKEN, random_edit(tiny_model()))

    assert len(rows) == 12
    assert all(symbol and value and meaning for symbol, value, _, meaning in rows)
    assert {row[0]: row[2] for row in rows}["k₀ᵀC⁻¹k*"] == "0%"
    assert ("k*ᵀC⁻¹k*", "1,231") in [row[:2] for row in rows]


def test_a_verdict_is_a_shape_and_a_word_and_numbers_have_no_powers_of_ten() -> None:
    assert [verdicts.label(verdict) for verdict in verdicts.SHAPES] == ["● safe", "▲ caution", "■ disabling"]
    assert [verdicts.large(x) for x in (14_204.4, 12.345, 0.0123, -3.0)] == ["14,204", "12.3", "0.0123", "−3"]


# -------------------------------------------------------------------------------------------------------------- gauge


def test_the_gauge_is_drawn_in_the_quantity_that_decides() -> None:
    """Whoever is safe stands outside the zones, whoever is not inside the one of its name, on every scale."""
    spectral = {"quantity": "relative_2", "caution_at": 5.22, "disabling_at": 12.9}
    scores = {"rome": ("disabling", 169.0), "p-rome": ("safe", 3.0), "c-rome": ("caution", 9.0), "x": ("safe", 0.4)}
    diagnoses = {
        name: replace(BROKEN, verdict=verdict, score=score, denominator=10.0, **spectral)
        for name, (verdict, score) in scores.items()
    }
    fig = diagnosis_figures.gauge(diagnoses, "rome", "caption", LIGHT)

    caution, disabling = fig.layout.shapes
    assert (caution.x0, caution.x1, disabling.x0) == (5.22, 12.9, 12.9)
    drawn = {name: x for trace in fig.data for name, x in zip(trace.customdata or (), trace.x or (), strict=True)}
    assert drawn == {name: score for name, (_, score) in scores.items()}
    assert fig.layout.xaxis.title.text == "‖Δ‖₂/‖W‖₂ (spectral) (log)"
    assert fig.layout.title.text == "‖Δ‖₂/‖W‖₂ (spectral) is 169, 13.1 times the disabling limit"
    safe = diagnosis_figures.gauge({"x": diagnoses["x"]}, "x", "caption", DARK)
    assert safe.layout.title.text.endswith("is 0.4: below 5.22, where caution begins")
    assert "which is caution" in diagnosis_figures.gauge_title(diagnoses["c-rome"])


def test_a_score_without_an_end_stands_at_the_right_edge() -> None:
    endless = replace(BROKEN, quantity="inverse_denominator", score=float("inf"))
    fig = diagnosis_figures.gauge({"rome": endless}, "rome", "caption", LIGHT)

    assert np.log10(fig.data[2].x[0]) <= fig.layout.xaxis.range[1]
    assert fig.layout.title.text == "1/denominator is not finite: disabling"


def test_the_verdict_and_the_numbers_speak_of_one_quantity(page: AppTest) -> None:
    found = diagnose(page)

    name = verdicts.QUANTITIES[found.diagnosis.quantity]
    assert f"{found.diagnosis.score:.3g} times" in texts(page.markdown)
    assert name in texts(page.caption)
    (row,) = [row for row in diagnosis_views.policy_rows(found) if "(this edit)" in row["policy"]]
    assert row[f"{name}, decides"] == verdicts.large(found.diagnosis.score)


def test_the_denominator_stands_among_those_of_ordinary_facts() -> None:
    fig = diagnosis_figures.denominators(BROKEN, "rome", "caption", LIGHT)

    (line,) = fig.layout.shapes
    assert fig.layout.title.text == "Denominator 83.4 times smaller than that of ordinary facts"
    assert line.x0 == pytest.approx(12)
    assert sum(fig.data[0].y) == len(ORDINARY)
    assert "k₀ᵀC⁻¹k*" in fig.layout.xaxis.title.text


@pytest.mark.parametrize("denominator", [-12.0, 0.0, 1e-300])
def test_a_denominator_that_is_not_positive_stands_at_the_left_edge(denominator: float) -> None:
    fig = diagnosis_figures.denominators(replace(BROKEN, denominator=denominator), "rome", "caption", DARK)

    low, high = fig.layout.xaxis.range
    assert low <= np.log10(fig.layout.shapes[0].x0) <= high


def test_the_denominators_do_without_ordinary_facts() -> None:
    fig = diagnosis_figures.denominators(replace(SAFE, reference=Reference()), "r-rome", "caption", LIGHT)

    assert fig.layout.title.text == "No ordinary facts to compare this edit with"


# ------------------------------------------------------------------------------------------------------------ figures


def test_keys_stand_at_their_angle_and_length() -> None:
    fig = diagnosis_figures.planes(replace(BROKEN, cosine=0.5, cosine_whitened=0.0), "caption", LIGHT)
    plain_mean, plain_bare, white_mean, white_bare = fig.data

    assert (plain_mean.x[1], plain_mean.y[1]) == pytest.approx((4.0, 0.0))
    assert (plain_bare.x[1], plain_bare.y[1]) == pytest.approx((15.0, 30 * 3**0.5 / 2))
    assert (white_mean.x[1], white_mean.y[1]) == pytest.approx((1231**0.5, 0.0))
    assert (white_bare.x[1], white_bare.y[1]) == pytest.approx((0.0, 170**0.5), abs=1e-9)
    assert fig.layout.title.text == "k₀ and k* stand at 60° to each other, whitened at 90°"


def test_the_heat_map_names_the_pair_most_alike() -> None:
    gram = torch.tensor([[4.0, 0.0, 3.0], [0.0, 1.0, 0.1], [3.0, 0.1, 9.0]], dtype=torch.float64)
    fig = diagnosis_figures.overlap_heatmap(Overlap(5, ("a", "b", "c"), gram), "caption", DARK)

    assert fig.layout.title.text == "Layer 5: most alike are edits 1 and 3, cosine 0.50"
    assert fig.data[0].z[0][2] == pytest.approx(0.5) and fig.data[0].customdata[0][2] == 3.0
    assert "one edit" in diagnosis_figures.overlap_title(Overlap(5, ("a",), gram[:1, :1]))


def test_the_map_of_other_prompts_marks_those_with_another_answer() -> None:
    moved = [Shift("a", "same words", 2.0, 0.5, ("x", "y")), Shift("b", "unrelated", 0.0, 0.0, ("x", "x"))]
    fig = diagnosis_figures.neighbourhood_map(moved, "caption", LIGHT)

    assert fig.layout.title.text.startswith("1 of 2 other prompts have another answer")
    assert [trace.name for trace in fig.data] == ["same words", "unrelated"]
    assert (fig.data[0].y[0], fig.data[0].marker.symbol[0]) == (2.0, "diamond")
    assert fig.data[1].y[0] > 0  # a logarithmic axis has no zero


def test_the_curve_marks_the_threshold_in_use() -> None:
    fig = calibration_view.roc_figure(CALIBRATION, LIGHT)

    assert list(fig.data[0].y) == [0.0, 0.95, 1.0]
    assert (fig.data[1].x[0], fig.data[1].y[0]) == pytest.approx((1 / 70, 0.95))


def test_thresholds_are_said_with_what_they_rest_on() -> None:
    fitted = replace(BROKEN, calibrated=True, quantity="relative_C", score=12.0, caution_at=0.3, disabling_at=1.2)

    assert "fitted to measured edits" in verdicts.thresholds(fitted) and "1.2" in verdicts.thresholds(fitted)
    assert "Not calibrated for this model" in verdicts.thresholds(BROKEN)
    assert "larger than that of 0% of ordinary facts" in verdicts.thresholds(BROKEN)
