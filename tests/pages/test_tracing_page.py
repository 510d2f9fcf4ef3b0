"""The tracing page on a tiny model: its inputs and what it says about bad ones, its run, and its pure parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from pages.parts.tracing import figures
from pages.parts.tracing.view import LATEST
from pages.shared.style import DARK, LIGHT, Theme
from pages.shared.text import read_prompt
from rome_core import Prompt, Trace, TraceConfig
from rome_core.tracing import kinds
from rome_core.tracing.kinds import TraceRun, trace_kinds
from rome_core.tracing.runs import TraceRequest
from tests.pages.conftest import goto, job_of, texts, wait_for
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is located in the city of", "Colosseum")
QUICK = TraceConfig(samples=2, window=2)


@pytest.fixture
def tracing(app: AppTest) -> AppTest:
    return goto(app, "tracing", **{"trace-samples": "2", "trace-window": "2"})


@pytest.fixture(scope="module")
def finished() -> TraceRun:
    *_, run = trace_kinds(tiny_model("llama", layers=4), TraceRequest(PROMPT, QUICK))
    return run


def run_job(app: AppTest) -> AppTest:
    app.button(key="run").click().run()
    return wait_for(app, lambda app: not job_of(app, LATEST).live)


# --------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("template", "subject", "sentence"),
    [
        ("", "Colosseum", "The prompt is empty."),
        ("The Colosseum is located in", "Eiffel", "'Eiffel' is not in the prompt"),
        ("nothing here is a name", "", "No subject could be guessed in 'nothing here is a name'."),
        ("The {} is located in", "", "The subject is empty."),
    ],
)
def test_bad_input_is_one_sentence_and_cannot_be_run(
    tracing: AppTest, template: str, subject: str, sentence: str
) -> None:
    tracing.text_input(key="subject").set_value(subject)
    tracing.text_area(key="template").set_value(template).run()

    assert len(tracing.error) == 1
    assert sentence in tracing.error[0].value
    assert tracing.button(key="run").disabled


def test_the_logit_difference_asks_for_a_second_answer(tracing: AppTest) -> None:
    tracing.selectbox(key="trace-metric").set_value("logit difference").run()
    assert "needs a second answer" in texts(tracing.error)

    tracing.text_input(key="foil").set_value("Rome").run()
    assert not tracing.error


def test_the_page_says_what_it_guessed_and_what_the_model_answers(tracing: AppTest) -> None:
    tracing.text_input(key="subject").set_value("")
    tracing.text_area(key="template").set_value("The Colosseum is located in the city of").run()

    assert "Subject guessed: **Colosseum**" in texts(tracing.caption)
    assert "The model continues with" in texts(tracing.caption)


def test_doubtful_input_is_warned_about(tracing: AppTest) -> None:
    tracing.text_area(key="template").set_value("The Colosseum is loc{} in ")
    tracing.text_input(key="subject").set_value("ated").run()
    tracing.text_input(key="answer").set_value("Rome").run()

    said = texts(tracing.warning)
    assert "cut inside the token" in said
    assert "is not the model's first choice" in said
    assert "unsure" in said
    assert not tracing.button(key="run").disabled


def test_an_example_fills_the_form(tracing: AppTest) -> None:
    tracing.button(key="example-2").click().run()

    assert tracing.text_area(key="template").value == "The capital of {} is"
    assert tracing.text_input(key="subject").value == "France"


def test_a_deep_link_fills_the_form(app: AppTest) -> None:
    goto(app, "tracing", template="{} is in", subject="Köln", **{"trace-seed": "7"})

    assert app.text_area(key="template").value == "{} is in"
    assert app.text_input(key="subject").value == "Köln"
    assert app.number_input(key="trace-seed").value == 7


@pytest.mark.parametrize(("text", "subject"), [("The {} is in", "Colosseum"), ("The Colosseum is in", "")])
def test_template_and_full_text_mean_the_same(text: str, subject: str) -> None:
    assert read_prompt(text, subject) == Prompt("The {} is in", "Colosseum")


# ----------------------------------------------------------------------------------------------------------------- run


def test_a_run_ends_with_numbers_figures_and_one_cell_in_detail(tracing: AppTest) -> None:
    run_job(tracing)

    assert not tracing.error, texts(tracing.error)
    assert len(tracing.metric) == 5
    assert len(tracing.get("plotly_chart")) == 4
    assert "done in" in texts(tracing.caption)
    assert {link.proto.page for link in tracing.get("page_link")} == {"edit"}
    assert [button.proto.label for button in tracing.get("download_button")][:3] == [
        *("CSV, one row a cell", "Arrays (npz)", "Python")
    ]
    assert len(tracing.get("bidi_component")) == 2, "CircuitsVis: attention heads and coloured tokens"


def test_the_chosen_cell_is_carried_to_the_edit_page(tracing: AppTest) -> None:
    run_job(tracing)
    job = job_of(tracing, LATEST)

    at = {"layer": 3, "token": job.partial.first.subject[1] - 1}
    for name, value in at.items():
        tracing.number_input(key=f"{name}-{job.id}").set_value(value).run()
    recommended, own = (link.proto.query_string for link in tracing.get("page_link"))
    assert "layer=1" in recommended and "layer=3" in own
    assert "subject=Colosseum" in own and "target=Paris" in own

    tracing.number_input(key=f"token-{job.id}").set_value(0).run()
    assert len(tracing.get("page_link")) == 1 and "not into this cell" in texts(tracing.caption)
    assert "Attention of layer 3" in texts_of_expanders(tracing)


def texts_of_expanders(app: AppTest) -> str:
    return "\n".join(expander.label for expander in app.expander)


def test_the_same_question_is_not_computed_twice(tracing: AppTest) -> None:
    run_job(tracing)
    first = job_of(tracing, LATEST)

    tracing.number_input(key="trace-seed").set_value(2).run()
    assert "The form has changed since this run" in texts(tracing.caption)
    run_job(tracing)
    tracing.number_input(key="trace-seed").set_value(1).run()
    tracing.button(key="run").click().run()

    assert job_of(tracing, LATEST) is first


def test_a_failure_in_the_worker_is_one_sentence(tracing: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("by nobody")

    monkeypatch.setattr(kinds, "previews", fail)
    run_job(tracing)

    assert "Something unforeseen happened (ZeroDivisionError: by nobody)" in texts(tracing.error)
    assert not tracing.exception


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_heat_map_has_a_row_a_token_even_where_tokens_repeat(finished: TraceRun) -> None:
    trace = replace(finished.exact["mlp_out"], labels=("the",) * len(finished.exact["mlp_out"].labels))

    figure = figures.trace_heatmap(trace, 0.0, 1.0)

    assert len(figure.layout.yaxis.ticktext) == len(trace.labels)
    assert np.shape(figure.data[0].z) == tuple(trace.indirect_effect.shape)
    assert len(figure.data[-1].x) == trace.indirect_effect.numel(), "an invisible marker on every cell takes clicks"


def test_subject_tokens_are_starred_and_spaces_shown(finished: TraceRun) -> None:
    trace = finished.exact["mlp_out"]
    labels = figures.token_labels(trace)

    assert [label.endswith("*") for label in labels] == [
        trace.subject[0] <= i < trace.subject[1] for i in range(len(labels))
    ]
    assert not any(" " in label for label in labels)


def test_the_hover_names_token_layers_value_spread_effect_and_share(finished: TraceRun) -> None:
    trace = finished.exact["mlp_out"]
    text = figures.hover(trace, 3, 2, float(trace.probabilities[3, 2]), approximate=False)

    assert "(token 3) · layers 1–2 (centre 2)" in text
    assert "±" in text
    assert "indirect effect" in text
    assert "% of the gap" in text


def test_unfinished_cells_show_the_veiled_preview(finished: TraceRun) -> None:
    exact, preview = finished.exact["mlp_out"], finished.preview["mlp_out"]
    half = cut(exact, exact.subject[0] + 1)

    figure = figures.trace_heatmap(half, 0.0, 1.0, preview=preview)

    z, veil = (np.array(heatmap.z, dtype=float) for heatmap in figure.data[:2])
    assert not np.isnan(z).any()
    assert np.isnan(veil[: exact.subject[0] + 1]).all()
    assert (veil[exact.subject[0] + 1 :] == 1).all()


def cut(trace: Trace, rows: int) -> Trace:
    """A trace of which only the first rows are finished."""
    grids = {name: getattr(trace, name).clone() for name in ("probabilities", "spread", "indirect_effect")}
    for grid in grids.values():
        grid[rows:] = torch.nan
    return replace(trace, **grids)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_say_what_they_rest_on(finished: TraceRun, theme: Theme) -> None:
    for figure in (
        figures.trace_heatmap(finished.exact["attn_out"], 0.0, 1.0, theme, picked=(2, 1)),
        figures.trace_marginals(finished.exact, theme),
    ):
        caption = figure.layout.annotations[0].text.replace("<br>", " ")
        assert "tiny-llama" in caption
        assert "window of 2 layers, 2 noise draws of 3 σ" in caption
        assert "seed 1" in caption
        assert figure.layout.title.text


def test_marks_of_the_colour_bar(finished: TraceRun) -> None:
    trace = replace(finished.exact["mlp_out"], clean_score=0.8, corrupted_score=0.1)
    low, high = figures.colour_range(trace)
    marks = figures.trace_heatmap(trace, low, high).data[0].colorbar.ticktext

    assert (low, high) == (0.1, 0.8)
    assert {"0.100 corrupted", "0.800 clean"} <= set(marks)
