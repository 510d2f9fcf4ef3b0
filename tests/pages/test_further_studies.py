"""Severed paths and the noise study of a traced prompt, on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from streamlit.testing.v1 import AppTest

from pages.parts.tracing import further_studies as trace_more
from pages.parts.tracing import study_figures
from pages.parts.tracing.view import LATEST
from pages.shared.style import DARK, LIGHT, Theme
from rome_core import Prompt, Trace, TraceConfig, trace
from rome_core.progress import silent
from rome_core.tracing.noise import SCALES, NoiseLevel
from rome_core.tracing.path_severing import Severed
from rome_core.tracing.runs import TraceRequest
from tests.pages.conftest import end_of_jobs, goto, job_of, texts
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is located in the city of", "Colosseum")
QUICK = TraceConfig(samples=2, window=2, site="resid_post")


@pytest.fixture(scope="module")
def traced() -> Trace:
    return trace(tiny_model("llama", layers=4), PROMPT, QUICK)


def severed(plain: list[float], mlp: list[float], attention: list[float]) -> Severed:
    return Severed(PROMPT, QUICK, 2, *(torch.tensor(values) for values in (plain, mlp, attention)))


def levels(*p: float) -> list[NoiseLevel]:
    return [NoiseLevel(scale, value, 0.01, value, value) for scale, value in zip(SCALES, p, strict=True)]


def test_closed_panels_cost_nothing_and_open_ones_run_their_study(app: AppTest) -> None:
    goto(app, "tracing", **{"trace-samples": "2", "trace-window": "2"})
    end_of_jobs(app.button(key="run").click().run())
    charts, id = len(app.get("plotly_chart")), job_of(app, LATEST).id
    assert not [b for b in app.button if b.key in ("run-severed", "run-noise")]

    for name in ("severed", "noise"):
        app.session_state[f"open-{name}-{id}"] = True
        app.run()
        end_of_jobs(app.button(key=f"run-{name}").click().run())
        charts += 1

    assert not app.error and not app.exception, texts(app.error)
    assert len(app.get("plotly_chart")) == charts
    assert "of the clean probability" in texts(app.caption)
    assert not [b for b in app.button if b.key in ("run-severed", "run-noise")], "done: nothing to press"


def test_studies_ask_what_the_run_asked(traced: Trace) -> None:
    lm = tiny_model("llama", layers=4)
    request = TraceRequest(PROMPT, replace(QUICK, noise_scale=2.5), answer=" Paris")

    *_, curves = trace_more.SEVERED.steps(lm, request, silent)
    *_, found = trace_more.NOISE.steps(lm, request, silent)

    same = trace(lm, PROMPT, request.config, answer=" Paris")
    torch.testing.assert_close(curves.plain, same.indirect_effect[curves.token], atol=1e-5, rtol=0)
    assert [level.scale for level in found] == sorted({*SCALES, 2.5})
    chosen = next(level for level in found if level.scale == 2.5)
    assert chosen.p == pytest.approx(same.corrupted, abs=1e-6)


def test_the_severed_title_states_the_shares() -> None:
    result = severed([0.4, 0.5, 0.2], [0.1, 0.4, 0.2], [0.3, 0.45, 0.2])

    assert study_figures.shares(result) == pytest.approx((0, 0.75, 0.25))
    assert study_figures.severed_title(result) == (
        "Restored at layer 0: 75% of the effect needs the MLPs\nabove, 25% the attention"
    )
    against = study_figures.severed_title(severed([0.4, 0.1], [0.1, 0.1], [0.5, 0.1]))
    assert against.endswith("above, none the attention"), "severing it helps: nothing needs it"
    assert "no effect" in study_figures.severed_title(severed([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]))
    assert study_figures.severed_title(severed([0.1, torch.nan], [0.1, 0.1], [0.1, 0.1])).endswith("?")


def test_which_levels_are_enough(traced: Trace) -> None:
    sure = replace(traced, clean=0.8)
    found = levels(0.8, 0.7, 0.5, 0.3, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01)

    assert study_figures.sufficient(sure, found) == [3.0, 4.0, 6.0, 8.0, 12.0]
    assert study_figures.noise_title(sure, found) == "From 3 σ on, less than 10% of the clean probability is left"
    assert "The chosen 3 σ leaves 6%." in study_figures.enough(sure, found)
    assert study_figures.noise_title(sure, levels(*[0.8] * 10)).startswith("Even 12 σ leaves more than 10%")
    assert "at 2 of 10 levels" in study_figures.noise_title(sure, levels(*[0.8, 0.05] * 2, *[0.8] * 6))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_say_what_they_rest_on(traced: Trace, theme: Theme) -> None:
    sure = replace(traced, clean=0.8)
    found = levels(0.8, 0.7, 0.5, 0.3, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01)
    for figure in (
        study_figures.severed_figure(traced, severed([0.4] * 4, [0.1] * 4, [0.3] * 4), theme),
        study_figures.noise_figure(sure, found, theme),
    ):
        told = " ".join(a.text for a in figure.layout.annotations).replace("<br>", " ")
        assert "tiny-llama" in told and "2 noise draws of 3 σ" in told and "seed 1" in told
        assert "one layer each" not in told
    assert "chosen: 3 σ" in told and "clean 0.800" in told
