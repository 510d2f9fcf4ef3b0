"""The page of averages on a tiny model: a run that grows, stops and goes on; files; figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.averages.figures import average_curves, average_heatmaps, heatmap_title, strongest
from pages.shared import fact_sets
from pages.shared.style import DARK, LIGHT, Theme
from pages.shared.text import literal
from rome_core.facts.datasets import Fact, Facts
from rome_core.tracing import average_records
from rome_core.tracing.average_records import About, Inquiry, Source, describe, write_records
from rome_core.tracing.averages import Averages, average
from tests.core.tracing.test_average_records import LAYERS, QUICK, facts, rows
from tests.pages.conftest import end_of_jobs, goto, texts
from tests.tiny import tiny_model


@pytest.fixture
def averages_page(app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AppTest:
    """The page with five facts and no shipped study."""
    monkeypatch.setattr(fact_sets, "load_facts", lambda *args: Facts(facts()))
    monkeypatch.setattr(average_records, "STUDY", tmp_path / "study.jsonl")
    settings = {"average-samples": "2", "average-window": "2", "average-noise_from": "vocabulary"}
    return goto(app, "averages", facts="3", **settings)


def run_job(app: AppTest) -> AppTest:
    return end_of_jobs(app.button(key="run-averages").click().run())


# ---------------------------------------------------------------------------------------------------------------- page


def test_an_empty_page_says_what_will_appear(averages_page: AppTest) -> None:
    assert "Press **Run**" in texts(averages_page.caption)
    assert "5 facts to choose from" in texts(averages_page.caption)
    assert "GPT-2 XL, 1,000 facts" in texts(averages_page.markdown)


def test_a_run_ends_with_numbers_figures_and_what_was_dropped(averages_page: AppTest) -> None:
    run_job(averages_page)

    assert not averages_page.error, texts(averages_page.error)
    values = {metric.label: metric.value for metric in averages_page.metric}
    assert values["Facts"] == "3"
    assert " to " in next(m.delta for m in averages_page.metric if m.label == "Average total effect (ATE)")
    assert len(averages_page.get("plotly_chart")) == 2
    assert [b.proto.label for b in averages_page.get("download_button")] == [
        *("CSV, one row a cell", "Records (JSON), to go on later")
    ]


def test_more_facts_use_the_finished_ones_again(averages_page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    run_job(averages_page)
    averages_page.number_input(key="facts").set_value(10)
    traced = list[str]()
    real = average_records.fact_effects

    def watch(lm: Any, chosen: list[Fact], *args: Any, **options: Any) -> Any:
        traced.extend(fact.id for fact in chosen)
        return real(lm, chosen, *args, **options)

    monkeypatch.setattr(average_records, "fact_effects", watch)
    run_job(averages_page)

    assert len(traced) <= 2, "three of the five were there"
    assert "All 5 facts were tried; the model knows 4 of them." in texts(averages_page.info)
    assert "Dropped 1 fact: the model's answer is another one." in texts(averages_page.caption)


def test_a_shipped_study_is_shown_at_once_and_labelled(averages_page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = json.loads(write_records(Source("x", rows())))["rows"]
    average_records.STUDY.write_text("\n".join(map(json.dumps, lines)) + '\n{"fact": "cut')

    averages_page.run()
    averages_page.segmented_control(key="average-source").set_value("The shipped study").run()

    assert not averages_page.error, texts(averages_page.error)
    assert "Source: docs/studies/study.jsonl" in texts(averages_page.caption)
    assert "5 facts tried, 4 used" in texts(averages_page.caption)
    assert averages_page.button(key="go-on").disabled, "made with other settings, by another model"
    assert "another" in texts(averages_page.caption)


def test_saved_records_are_opened_and_gone_on_from(averages_page: AppTest) -> None:
    lm = tiny_model("llama", layers=LAYERS)
    inquiry = Inquiry(facts(), 3, config=QUICK)
    saved = write_records(Source("x", rows()[:3], describe(lm, inquiry)))
    averages_page.file_uploader(key="average-file").upload("saved.json", saved.encode(), "application/json").run()
    averages_page.segmented_control(key="average-source").set_value("saved.json").run()

    averages_page.button(key="go-on").click().run()

    assert averages_page.segmented_control(key="average-source").value == "This session's run"
    assert f"3 facts tried, {sum(not row.dropped for row in rows()[:3])} used" in texts(averages_page.caption)


def test_a_fact_file_with_bad_records_says_which(averages_page: AppTest) -> None:
    good = {"known_id": 1, "prompt": "Paris is in", "subject": "Paris", "attribute": "France"}
    data = json.dumps([good, {"known_id": 2, "prompt": "no subject"}]).encode()

    averages_page.file_uploader(key="set-file").upload("mine.json", data, "application/json").run()

    said = literal("mine.json, record 2: 'subject' is not among its fields (known_id, prompt).")
    assert said in texts(averages_page.warning)
    assert "1 fact of mine.json" in texts(averages_page.caption)

    averages_page.file_uploader(key="set-file").upload("mine.json", b"[", "application/json").run()
    assert "is not JSON" in texts(averages_page.error)


# ------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_say_what_they_rest_on(theme: Theme) -> None:
    averages = average(rows())
    about = About("tiny", config=QUICK, order_seed=7)
    for figure in (average_heatmaps(averages, about, theme), average_curves(averages, about, theme)):
        caption = figure.layout.annotations[0].text.replace("<br>", " ")
        assert "tiny · 4 facts that it knows" in caption
        assert "2 noise draws of 3 σ" in caption and "noise seed 1" in caption and "order seed 7" in caption


def test_the_title_is_the_finding() -> None:
    def effects(group: int, layer: int) -> Any:
        mean = np.zeros((6, 4))
        mean[group, layer] = 0.5
        return type(average(rows()).effects["mlp_out"])(mean, mean, mean)

    averages = replace_effects(average(rows()), {"resid_post": effects(5, 3), "mlp_out": effects(2, 1)})
    averages = replace_effects(averages, {"attn_out": effects(5, 3)})

    assert heatmap_title(averages) == (
        "MLP: strongest at the last subject token, layer 1 (up to 0.500)\n"
        "Attention: strongest at the last token, layer 3 (up to 0.500)"
    )
    assert strongest(averages, "resid_post")[2] == 0, "the answer's own state says nothing about where a fact is"


def test_a_title_names_no_winner_that_intervals_do_not_separate() -> None:
    def effects(*peaks: tuple[int, int, float, float]) -> Any:
        mean = np.zeros((6, 4))
        low, high = mean.copy(), mean.copy()
        for group, layer, value, half in peaks:
            mean[group, layer], low[group, layer], high[group, layer] = value, value - half, value + half
        return type(average(rows()).effects["mlp_out"])(mean, low, high)

    apart = effects((2, 1, 0.5, 0.1), (2, 2, 0.45, 0.1), (5, 3, 0.2, 0.1))
    alike = effects((2, 1, 0.5, 0.2), (5, 3, 0.4, 0.2))
    first, second = heatmap_title(replace_effects(average(rows()), {"mlp_out": apart, "attn_out": alike})).split("\n")

    assert first == "MLP: strongest at the last subject token, layers 1–2 (up to 0.500)"
    assert second == "Attention: no token is clearly the strongest (at most 0.500, at the last subject token, layer 1)"


def replace_effects(averages: Averages, effects: dict[str, Any]) -> Averages:
    return replace(averages, effects={**averages.effects, **effects})


def test_one_scale_or_each_its_own() -> None:
    averages, about = average(rows()), About("tiny", config=QUICK)

    one = {heatmap.zmax for heatmap in average_heatmaps(averages, about).data}
    own = [heatmap.zmax for heatmap in average_heatmaps(averages, about, scale="own").data]

    assert len(one) == 1
    assert max(own) == one.pop()
