"""Two further studies of a traced prompt: what flows through which modules, and how much noise is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from pages.parts.tracing.study_figures import LITTLE, enough, noise_figure, severed_figure
from pages.shared import session, track
from pages.shared.charts import draw_chart, page_theme
from pages.shared.style import Theme
from rome_core import LanguageModel, Trace
from rome_core.progress import Track
from rome_core.tracing.kinds import TraceRun
from rome_core.tracing.noise import SCALES, NoiseLevel, noise_study
from rome_core.tracing.path_severing import path_severing_steps
from rome_core.tracing.runs import TraceRequest, prepare


@dataclass(frozen=True)
class Study:
    """What a panel asks, how its job goes on, and how its result is drawn and told."""

    name: str
    label: str
    question: str
    why: str
    button: str
    steps: Callable[[LanguageModel, TraceRequest, Track], Iterator[Any]]
    figure: Callable[[Trace, Any, Theme], go.Figure]
    says: Callable[[Trace, Any], str]


def draw_panels(lm: LanguageModel, run: TraceRun, id: str) -> None:
    """Both studies of a run that has ended. A closed panel costs nothing."""
    for study in (SEVERED, NOISE):
        panel = st.expander(study.question, key=f"open-{study.name}-{id}", on_change="rerun")
        if panel.open:
            with panel:
                st.caption(study.why)
                _draw_study(lm, run, study)


def _draw_study(lm: LanguageModel, run: TraceRun, study: Study) -> None:
    """A button, then the job that it started."""
    trace, request = run.first, run.request
    assert trace is not None
    key = (study.name, lm.fingerprint, request.key)
    job: track.Job[Any, None] | None = session.find_job(key)
    again = job is None or job.state in ("stopped", "error")
    if again and st.button(study.button, key=f"run-{study.name}"):

        def work(job: track.Job[Any, None]) -> None:
            for so_far in study.steps(lm, request, job.track):
                job.partial = so_far

        session.start_job(key, f"{study.label}: “{request.prompt.text}”", work)
        st.rerun()  # the whole page, so that the sidebar shows the job as well

    def draw(job: track.Job[Any, None]) -> None:
        if job.partial:
            figure = study.figure(trace, job.partial, page_theme())
            draw_chart(figure, f"figure-{study.name}", f"trace-{study.name}")
            st.caption(study.says(trace, job.partial))

    if job is not None:
        track.panel(job, draw)


def _measure_levels(lm: LanguageModel, request: TraceRequest, track: Track) -> Iterator[list[NoiseLevel]]:
    levels = list[NoiseLevel]()
    scales = sorted({*SCALES, request.config.noise_scale})
    for level in noise_study(lm, prepare(lm, request), scales=scales, track=track):
        levels.append(level)
        yield list(levels)


# ------------------------------------------------------------------------------------------------------------- studies


SEVERED = Study(
    name="severed",
    label="Severed paths",
    question="Severed paths: through which modules does the effect flow?",
    why="The residual state at the subject's last token is restored at one layer, as above; then again while that "
    "token's MLP (or attention) outputs in the layers above stay corrupted. What is lost flowed through them.",
    button="Sever the paths",
    steps=lambda lm, request, track: path_severing_steps(lm, prepare(lm, request), track=track),
    figure=severed_figure,
    # What the title leaves out: where the two shares are taken, and why they need not add up to one.
    says=lambda trace, result: (
        "Shares are those of the layer where severing costs most. They need not add up to 100 %: an effect may need "
        "both paths, or go through the residual stream and other tokens."
    ),
)
NOISE = Study(
    name="noise",
    label="Noise study",
    question="Noise study: how much noise is enough?",
    why="Too little noise leaves the answer standing; too much takes the states far from any text. A level is enough "
    f"once less than {LITTLE:.0%} of the clean probability is left.",
    button="Measure the levels",
    steps=_measure_levels,
    figure=noise_figure,
    says=enough,
)
