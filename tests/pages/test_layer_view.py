"""Where to edit: a sweep on the page, the shipped study, and the figure beside the tracing effects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit import layer_figure, layer_view
from pages.shared.recommendation import recommend
from pages.shared.style import LIGHT
from rome_core import DEFAULT_METHOD, METHODS
from rome_core.editing.shared_search import policies
from rome_core.evaluation import Score
from rome_core.evaluation.answers import Pairs
from rome_core.evaluation.layer_sweep import Swept, as_record
from rome_core.tracing.average_records import shipped_records
from rome_core.tracing.averages import average
from tests.pages.conftest import finish, goto, texts
from tests.tiny import tiny_model

GOOD: Pairs = {"edit": [(0.9, 0.1)], "paraphrase": [(0.8, 0.1)], "neighbour": [(0.1, 0.8)]}


@pytest.mark.usefixtures("random_moments")
def test_a_sweep_is_run_drawn_and_its_layer_taken(
    app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layer_view, "STUDY", tmp_path / "none.jsonl")
    goto(app, "edit", view="Where to edit")
    assert "No sweep of" in texts(app.info)
    app.number_input(key="edit-steps").set_value(2).run()
    app.number_input(key="sweep-facts").set_value(2).run()
    app.button(key="sweep-run").click().run()
    rows = finish(app, layer_view.JOB).rows

    assert {row.layer for row in rows} == {0} and len(rows) == 2
    (spec,) = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    assert spec["layout"]["title"]["text"].startswith("S is largest at layer 0")
    app.number_input(key="layer").set_value(3).run()
    assert "layer 1 is not in it" in texts(app.caption)
    assert "The form has changed" not in texts(app.caption), "the sweep has all layers"
    app.number_input(key="sweep-seed").set_value(5).run()
    assert "The form has changed since this run" in texts(app.caption)
    app.button(key=f"sweep-use-{layer_view.HERE}").click().run()
    assert app.number_input(key="layer").value == recommend(tiny_model("llama", layers=4)).layer == 1


def test_the_shipped_study_is_shown_for_its_own_model_only(
    app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = tmp_path / "layers.jsonl"
    record = Swept(3, "a", 1.5, 0.1, {DEFAULT_METHOD: GOOD}, {DEFAULT_METHOD: 0.2})
    study.write_text(json.dumps(as_record(record)) + '\n{"layer": 4, "fa', encoding="utf-8")
    monkeypatch.setattr(layer_view, "STUDY", study)
    goto(app, "edit", view="Where to edit")
    assert not app.get("plotly_chart")  # the model under test is another one

    monkeypatch.setattr(layer_view, "DEFAULT_MODEL", "tiny-llama")
    app.run()
    (spec,) = [json.loads(c.proto.spec) for c in app.get("plotly_chart")]
    words = " ".join(str(note.get("text")) for note in spec["layout"]["annotations"])
    assert "1 fact" in words and "average_effects.jsonl" in words


def test_the_search_takes_the_settings_of_the_form() -> None:
    found = layer_view.search_like(METHODS["emmet"](layer=3, steps=7))
    assert type(found) in policies().values() and found.steps == 7 and found.at_layer(5).layers == [5]
    assert layer_view.search_like(METHODS["memit"](layer=3, steps=7)).steps is None  # type: ignore[attr-defined]
    assert layer_view.search_like(METHODS["h-rome"](steps=3)).name == "h-rome"


def test_the_figure_has_both_curves() -> None:
    one = {name: Score(0.5, 0.4, 0.6, 8) for name in ("ES", "PS", "NS", "S")}
    two = {**one, "S": Score(0.7, 0.61, 0.8, 8)}
    source = shipped_records()
    assert source is not None
    effects = average(source.rows)
    fig = layer_figure.layers_figure({0: one, 8: two}, effects, "caption", LIGHT)

    assert fig.layout.title.text == "S is largest at layer 8: 0.700"
    alike = {**one, "S": Score(0.7, 0.55, 0.8, 8)}
    assert layer_figure.title({0: one, 8: alike}) == "No clear winner by S: intervals of all layers overlap"
    assert "intervals do not tell apart" in layer_view.compare_with_sweep(0, {0: one, 8: alike})
    assert "clearly less" in layer_view.compare_with_sweep(0, {0: one, 8: two})
    assert layer_view.compare_with_sweep(8, {0: one, 8: two}).endswith("the recommended one.")
    assert "is not in it" in layer_view.compare_with_sweep(3, {0: one, 8: two})
    traced = next(trace for trace in fig.data if trace.name == "MLP")
    assert np.allclose(traced.y, effects.effects["mlp_out"].mean[layer_figure.LAST_SUBJECT])
    assert layer_figure.layers_figure({}, None, "caption", LIGHT).layout.title.text.endswith("?")
