"""The page of averages on a tiny model: a run that grows, stops and goes on; files; figures."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from pages.parts.averages import form as average_form
from pages.parts.averages import run as average_run
from pages.parts.averages.figures import average_curves, average_heatmaps, heatmap_title, strongest
from pages.parts.averages.run import About, Inquiry, Source, about_run, as_csv, as_json, collect, finished, read_rows
from pages.shared.track import Job
from rome_core import Prompt, TraceConfig
from rome_core.errors import DataError
from rome_core.evaluation import known_facts
from rome_core.facts.datasets import Fact, Facts
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.tokens import encode
from rome_core.progress import Stopped, silent
from rome_core.tracing.averages import GROUPS, Averages, FactEffect, average
from rome_core.tracing.runs import SITES
from tests.pages.conftest import SECONDS, goto, texts
from tests.tiny import tiny_model

QUICK = TraceConfig(samples=2, window=2, noise_from="vocabulary")
LAYERS = 4


@cache
def facts() -> tuple[Fact, ...]:
    """Four facts of two relations that the random model "knows", because its own next word is the object, and one
    that it does not."""
    lm = tiny_model("llama", layers=LAYERS)
    known = list[Fact]()
    templates = ("The {} is in", "{} is the capital of", "The home of {} is", "The city of {} is far", "{}, too, is")
    for template, subject in product(templates, ("Paris", "Rome", "Lyon", "Milan", "Zürich", "Köln", "Japan")):
        prompt = Prompt(template, subject)
        token = int(next_logits(lm, batch_of(lm, [encode(lm.tokenizer, prompt).ids]))[0].argmax())
        if word := lm.tokenizer.decode([token]).strip():
            fact = Fact(f"f{len(known)}", f"r{len(known) % 2}", prompt, word, "Rome")
            known += [fact] if known_facts(lm, [fact])[0] else []
        if len(known) == 4:
            break
    assert len(known) == 4
    return (Fact("unknown", "r0", Prompt("The {} is in", "Paris"), "dragon", "Rome"), *known)


@cache
def rows() -> tuple[FactEffect, ...]:
    done: dict[str, FactEffect] = {}
    inquiry = Inquiry(facts(), 4, config=QUICK)
    list(collect(tiny_model("llama", layers=LAYERS), inquiry, done, silent))
    return tuple(finished(inquiry, done))


@pytest.fixture
def averages_page(app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AppTest:
    """The page with five facts and no shipped study."""
    monkeypatch.setattr(average_form, "load_facts", lambda *args: Facts(facts()))
    monkeypatch.setattr(average_run, "STUDY", tmp_path / "study.jsonl")
    settings = {"average-samples": "2", "average-window": "2", "average-noise_from": "vocabulary"}
    return goto(app, "averages", facts="3", **settings)


def run_job(app: AppTest) -> AppTest:
    return end_of_jobs(app.button(key="run-averages").click().run())


def end_of_jobs(app: AppTest) -> AppTest:
    """Wait without drawing the page again and again, then draw it."""
    deadline = time.monotonic() + SECONDS
    for job in app.session_state["_jobs"]:
        while job.live and time.monotonic() < deadline:
            time.sleep(0.02)
    return app.run()


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
    real = average_run.fact_effects

    def watch(lm: Any, chosen: list[Fact], *args: Any, done: Any, **options: Any) -> Any:
        traced.extend(fact.id for fact in chosen if fact.id not in done)
        return real(lm, chosen, *args, done=done, **options)

    monkeypatch.setattr(average_run, "fact_effects", watch)
    run_job(averages_page)

    assert len(traced) <= 2, "three of the five were there"
    assert "All 5 facts were tried; the model knows 4 of them." in texts(averages_page.info)
    assert "Dropped 1 fact: the model's answer is another one." in texts(averages_page.caption)


def test_a_shipped_study_is_shown_at_once_and_labelled(averages_page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = json.loads(as_json(Source("x", rows())))["rows"]
    average_run.STUDY.write_text("\n".join(map(json.dumps, lines)) + '\n{"fact": "cut')

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
    saved = as_json(Source("x", rows()[:3], about_run(lm, inquiry)))
    averages_page.file_uploader(key="average-file").upload("saved.json", saved.encode(), "application/json").run()
    averages_page.segmented_control(key="average-source").set_value("saved.json").run()

    averages_page.button(key="go-on").click().run()

    assert averages_page.segmented_control(key="average-source").value == "This session's run"
    assert f"3 facts tried, {sum(not row.dropped for row in rows()[:3])} used" in texts(averages_page.caption)


def test_a_fact_file_with_bad_records_says_which(averages_page: AppTest) -> None:
    good = {"known_id": 1, "prompt": "Paris is in", "subject": "Paris", "attribute": "France"}
    data = json.dumps([good, {"known_id": 2, "prompt": "no subject"}]).encode()

    averages_page.file_uploader(key="fact-file").upload("mine.json", data, "application/json").run()

    assert "mine.json, record 2: the field 'subject' is missing." in texts(averages_page.warning)
    assert "1 fact of mine.json" in texts(averages_page.caption)

    averages_page.file_uploader(key="fact-file").upload("mine.json", b"[", "application/json").run()
    assert "is not JSON" in texts(averages_page.error)


# ----------------------------------------------------------------------------------------------------------------- run


def test_a_stopped_run_goes_on_where_it_was() -> None:
    lm = tiny_model("llama", layers=LAYERS)
    done: dict[str, FactEffect] = {}
    inquiry = Inquiry(facts(), 4, config=QUICK)
    job = Job("test")
    steps = collect(lm, inquiry, done, job.track)
    first = next(steps)
    job.stop()
    with pytest.raises(Stopped):
        next(steps)
    before = dict(done)

    known = list(collect(lm, inquiry, done, silent))

    assert known[0] is first
    assert [row.fact for row in known] == [fact.id for fact in inquiry.order if fact.id != "unknown"]
    assert all(done[fact] is row for fact, row in before.items())


def test_relations_and_seed_choose_the_facts() -> None:
    inquiry = Inquiry(facts(), 4, relations=("r1",), config=QUICK)

    assert {fact.relation for fact in inquiry.order} == {"r1"}
    orders = {tuple(fact.id for fact in replace(inquiry, relations=(), order_seed=s).order) for s in range(20)}
    assert len(orders) > 10
    assert replace(inquiry, order_seed=3).rows_key == inquiry.rows_key
    assert replace(inquiry, config=TraceConfig()).rows_key != inquiry.rows_key


# --------------------------------------------------------------------------------------------------------------- files


def test_records_survive_a_file() -> None:
    lm = tiny_model("llama", layers=LAYERS)
    about = about_run(lm, Inquiry(facts(), 3, config=QUICK))

    opened = read_rows(as_json(Source("x", rows(), about)), "saved.json")

    assert opened.about == about
    for before, after in zip(rows(), opened.rows, strict=True):
        assert (before.fact, before.dropped) == (after.fact, after.dropped)
        for site in before.effects:
            torch.testing.assert_close(before.effects[site], after.effects[site], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no records"),
        ("nonsense\n{}", "is not JSON"),
        ("[]", "holds no records"),
        ('[{"fact": "a"}]', "x, record 1 cannot be read"),
        ('{"rows": [{"fact": "a", "clean": 1, "corrupted": 0, "dropped": "", "effects": {}}]}', "are needed"),
        ('{"about": {"config": {"colour": 1}}, "rows": [1]}', "description cannot be read"),
    ],
)
def test_a_bad_file_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_rows(text, "x")


def test_the_csv_has_a_row_a_cell() -> None:
    averages = average(rows())
    table = list(csv.DictReader(io.StringIO(as_csv(averages, "p(answer)"))))

    assert len(table) == len(SITES) * len(GROUPS) * LAYERS
    row = next(r for r in table if (r["kind"], r["token_group"], r["layer"]) == ("mlp_out", "last token", "2"))
    assert float(row["aie"]) == pytest.approx(averages.effects["mlp_out"].mean[5, 2])


# ------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figures_say_what_they_rest_on(dark: bool) -> None:
    averages = average(rows())
    about = About("tiny", config=QUICK, order_seed=7)
    for figure in (average_heatmaps(averages, about, dark), average_curves(averages, about, dark)):
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
        "MLP: strongest at the last subject token, layer 1 (0.500)<br>"
        "Attention: strongest at the last token, layer 3 (0.500)"
    )
    assert strongest(averages, "resid_post")[2] == 0, "the answer's own state says nothing about where a fact is"


def replace_effects(averages: Averages, effects: dict[str, Any]) -> Averages:
    return replace(averages, effects={**averages.effects, **effects})


def test_one_scale_or_each_its_own() -> None:
    averages, about = average(rows()), About("tiny", config=QUICK)

    one = {heatmap.zmax for heatmap in average_heatmaps(averages, about).data}
    own = [heatmap.zmax for heatmap in average_heatmaps(averages, about, one_scale=False).data]

    assert len(one) == 1
    assert max(own) == one.pop()
