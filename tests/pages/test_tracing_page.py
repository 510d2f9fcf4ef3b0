"""The tracing page on a tiny model: its inputs and what it says about bad ones, its run, and its pure parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from pages.parts.tracing import figures
from pages.parts.tracing.view import LATEST, strongest
from pages.shared.style import DARK, LIGHT, Theme
from pages.shared.text import read_prompt, show_token
from rome_core import Prompt, Trace, TraceConfig
from rome_core.progress import Stopped
from rome_core.tracing import kinds
from rome_core.tracing.heat_map import peak
from rome_core.tracing.kinds import TraceRun, trace_kinds
from rome_core.tracing.runs import SITES, TraceRequest
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


# -------------------------------------------------------------------------------------------------------------- a stop


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Runs, here of one kind after the other, stop as by a press of the button after so many rows of a kind."""

    def stop_in(site: str, rows: int) -> None:
        whole, begun = kinds.restored_states, list[str]()
        monkeypatch.setattr(kinds, "promising", lambda maps: [(kind, row) for kind in SITES for row in rows_of(maps)])

        def stopping(lm: Any, runs: Any, cells: Any) -> Iterator[Any]:
            begun.append("resid_post" if cells[0].resid is not None else cells[0].windows[0].site)
            if begun.count(site) > rows:
                raise Stopped
            yield from whole(lm, runs, cells)

        monkeypatch.setattr(kinds, "restored_states", stopping)

    return stop_in


def rows_of(maps: Mapping[str, Trace]) -> range:
    (first, _), n = maps["mlp_out"].subject, len(maps["mlp_out"].labels)
    return range(first, n)


@pytest.mark.parametrize(("site", "rows"), [("resid_post", 0), ("resid_post", 2), ("mlp_out", 2)])
def test_a_stopped_run_shows_the_maps_and_concludes_nothing_from_estimates(
    tracing: AppTest, halt: Callable[[str, int], None], site: str, rows: int
) -> None:
    halt(site, rows)
    run_job(tracing)

    said = texts(tracing.caption)
    job = job_of(tracing, LATEST)
    assert job.state == "stopped" and not tracing.error, texts(tracing.error)
    exact, cells = job.partial.n_exact
    assert 0 < exact < cells
    assert f"**Not finished:** {exact} of {cells} cells are exact" in said
    maps = [chart for chart in tracing.get("plotly_chart") if "heat-" in chart.proto.id]
    assert len(maps) == 3, "the preview stays to be looked at"
    curves = [chart for chart in tracing.get("plotly_chart") if "curves-" in chart.proto.id]
    assert len(curves) == (site == "mlp_out"), "of the residual stream, which was finished"
    links = [link.proto.label for link in tracing.get("page_link")]
    assert len(links) == (site == "mlp_out")
    for metric in tracing.metric[3:]:
        assert metric.value.startswith(("≈", "…"))
    assert "Click a cell above" in said or site == "mlp_out"


def test_after_a_stop_a_cell_that_is_clicked_is_measured_but_no_layer_is_offered(
    tracing: AppTest, halt: Callable[[str, int], None]
) -> None:
    halt("mlp_out", 2)
    run_job(tracing)
    job = job_of(tracing, LATEST)
    assert job.partial is not None and set(job.partial.finished) == {"resid_post"}

    tracing.session_state[f"kind-{job.id}"] = "mlp_out"
    tracing.run()

    assert not tracing.get("page_link")
    assert "MLP is not exact throughout: no layer is offered for an edit" in texts(tracing.caption)
    assert any("Restored: MLP" in str(block.proto.body) for block in tracing.get("html"))


def test_while_it_runs_a_cell_is_named_only_as_measured(finished: TraceRun) -> None:
    first, last = TraceRun(finished.request), finished
    gradients = replace(finished, exact={}, preview={"mlp_out": estimated(finished.exact["mlp_out"])})
    measured = replace(finished, exact={})

    assert strongest(first, "mlp_out")[:2] == ("…", "")
    assert strongest(gradients, "mlp_out")[:2] == ("…", "")
    n = int(finished.preview["mlp_out"].exact.sum())
    why = f"The strongest of {n} measured cells; the others are estimated to be weaker."
    assert strongest(measured, "mlp_out") == ("≈ ·of", "layer 1", why)
    token, layer = peak(finished.exact["mlp_out"])
    label = show_token(finished.exact["mlp_out"].labels[token])
    assert strongest(last, "mlp_out")[:2] == (label, f"layer {layer}")


def estimated(trace: Trace) -> Trace:
    """The same numbers, none of them measured."""
    return replace(trace, spread=torch.full_like(trace.spread, torch.nan), engine="preview")


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

    monkeypatch.setattr(kinds, "preview_steps", fail)
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
    text = figures.hover(trace, 3, 2, float(trace.probabilities[3, 2]), estimated=False)

    assert "(token 3) · layers 1–2 (centre 2)" in text
    assert "±" in text
    assert "indirect effect" in text
    assert "% of the gap" in text


def test_estimates_are_dotted_and_exact_cells_are_not(finished: TraceRun) -> None:
    exact = finished.exact["mlp_out"]
    rows = exact.subject[0] + 1
    mixed = replace(finished, exact={"mlp_out": cut(exact, rows)}).best("mlp_out")
    assert mixed is not None

    figure = figures.trace_heatmap(mixed, 0.0, 1.0)

    cells, dots, overlay = figure.data
    assert not np.isnan(np.array(cells.z, dtype=float)).any()
    dotted = np.zeros_like(cells.z, dtype=bool)
    dotted[list(dots.y), list(dots.x)] = True
    assert not dotted[:rows].any()
    measured = finished.preview["mlp_out"].exact.numpy()[rows:]
    assert measured.any() and not measured.all()
    assert (dotted[rows:] == ~measured).all()
    assert len([text for text in overlay.text if "estimated" in text]) == dotted.sum()
    assert figure.layout.title.text.endswith("?"), "no cell is named in a title"
    assert len(figures.trace_heatmap(exact, 0.0, 1.0).data) == 2, "no dots"


def cut(trace: Trace, rows: int) -> Trace:
    """A trace of which only the first rows are finished."""
    grids = {name: getattr(trace, name).clone() for name in ("probabilities", "spread", "indirect_effect")}
    for grid in grids.values():
        grid[rows:] = torch.nan
    return replace(trace, **grids)


def test_curves_name_strongest_layers_only_where_both_kinds_are_there(finished: TraceRun) -> None:
    some = {"resid_post": finished.exact["resid_post"], "mlp_out": finished.exact["mlp_out"]}

    assert figures.trace_marginals(finished.exact).layout.title.text.startswith("Strongest layer: MLP")
    assert "Strongest" not in figures.trace_marginals(some).layout.title.text


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


@pytest.mark.parametrize("installed", [True, False])
def test_what_the_zip_of_figures_needs_is_said(
    tracing: AppTest, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("pages.parts.tracing.view.find_spec", lambda name: object() if installed else None)
    run_job(tracing)

    offered = "Figures (zip)" in [button.proto.label for button in tracing.get("download_button")]
    assert offered == installed
    assert ("need kaleido" in texts(tracing.caption)) != installed
