"""Two further studies of a traced prompt: what flows through which modules, and how much noise is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from plotly.subplots import make_subplots

from pages.shared import session, track
from pages.shared.figures import COLOURS, MARGIN_TOP, Theme, _axis, caption, frame, metric_name, safe, theme
from pages.shared.text import number
from pages.shared.trace_run import Question, TraceRun
from rome_core import LanguageModel, Trace
from rome_core.noise import SCALES, NoiseLevel, noise_study
from rome_core.severed import Severed, severed_steps

LITTLE = 0.1  # of the clean probability: below it, the noise has done its work
PANEL, GAP = 200, 70  # px
CURVES = {"plain": "resid_post", "without_mlp": "mlp_out", "without_attention": "attn_out"}
NAMES = {"plain": "plain", "without_mlp": "without MLP", "without_attention": "without attention"}


@dataclass(frozen=True)
class Study:
    """What a panel asks, how its job goes on, and how its result is drawn and told."""

    name: str
    label: str
    question: str
    why: str
    button: str
    steps: Callable[[LanguageModel, Question, track.Job], Iterator[Any]]
    figure: Callable[[Trace, Any, bool], go.Figure]
    says: Callable[[Trace, Any], str]


def panels(lm: LanguageModel, run: TraceRun, id: str, config: Callable[[str], dict[str, Any]]) -> None:
    """Both studies of a run that has ended. A closed panel costs nothing. config: of a chart, by its name."""
    for study in (SEVERED, NOISE):
        panel = st.expander(study.question, key=f"open-{study.name}-{id}", on_change="rerun")
        if panel.open:
            with panel:
                st.caption(study.why)
                _show(lm, run, study, config)


def _show(lm: LanguageModel, run: TraceRun, study: Study, config: Callable[[str], dict[str, Any]]) -> None:
    """A button, then the job that it started."""
    trace, asked = run.first, run.question
    assert trace is not None
    key = (study.name, lm.fingerprint, asked.key)
    job: track.Job | None = session.recall(key)
    again = job is None or job.state in ("stopped", "error")
    if again and st.button(study.button, key=f"run-{study.name}"):

        def work(job: track.Job) -> Any:
            for so_far in study.steps(lm, asked, job):
                job.partial = so_far
            return job.partial

        session.remember(key, track.submit(f"{study.label}: “{asked.prompt.text}”", work))
        st.rerun()  # the whole page, so that the sidebar shows the job as well

    def draw(job: track.Job) -> None:
        if job.partial:
            figure = study.figure(trace, job.partial, st.context.theme.type == "dark")
            st.plotly_chart(figure, key=f"figure-{study.name}", theme=None, config=config(f"trace-{study.name}"))
            st.caption(study.says(trace, job.partial))

    if job is not None:
        track.panel(job, draw)


def _severed(lm: LanguageModel, question: Question, job: track.Job) -> Iterator[Severed]:
    yield from severed_steps(lm, question.prompt, question.config, **question.options, track=job.track)


def _levels(lm: LanguageModel, question: Question, job: track.Job) -> Iterator[list[NoiseLevel]]:
    found = list[NoiseLevel]()
    scales = sorted({*SCALES, question.config.noise_scale})
    options: dict[str, Any] = {"answer": question.answer, "edits": question.edits, "track": job.track}
    for level in noise_study(lm, question.prompt, question.config, scales=scales, **options):
        found.append(level)
        yield list(found)


# ------------------------------------------------------------------------------------------------------------- severed


def shares(result: Severed) -> tuple[int, float, float] | None:
    """The layer where severing costs most, and which shares of its effect flow through MLPs and attention."""
    plain, mlp, attention = (
        values.double().nan_to_num(nan=0.0) for values in (result.plain, result.through_mlp, result.through_attention)
    )
    lost = mlp.maximum(attention).where(plain > 0, -1.0)
    layer = int(lost.argmax())
    if plain[layer] <= 0:
        return None
    return layer, float(mlp[layer] / plain[layer]), float(attention[layer] / plain[layer])


def severed_title(result: Severed) -> str:
    if bool(result.plain.isnan().any()):
        return "Through which modules does the effect flow?"
    found = shares(result)
    if found is None:
        return "Restoring this token has no effect in any layer"
    layer, mlp, attention = found
    needs_mlp, needs_attention = (f"{share:.0%}" if share > 0 else "none" for share in (mlp, attention))
    return (
        f"Restored at layer {layer}: {needs_mlp} of the effect needs the MLPs<br>above, {needs_attention} the attention"
    )


def severed_words(trace: Trace, result: Severed) -> str:
    """What the title leaves out: where the two shares are taken, and why they need not add up to one."""
    return (
        "Shares are those of the layer where severing costs most. They need not add up to 100 %: an effect may need "
        "both paths, or go through the residual stream and other tokens."
    )


def severed_figure(trace: Trace, result: Severed, dark: bool = False) -> go.Figure:
    """Above, the indirect effect by layer: whole, and with either path severed. Below, what flows through each."""
    look = theme(dark)
    height = 2 * PANEL + GAP
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=GAP / height, row_heights=[0.6, 0.4])
    for name, site in CURVES.items():
        line = {"color": COLOURS[site], "width": 2}
        fig.add_scatter(
            y=_listed(getattr(result, name)),
            name=NAMES[name],
            mode="lines+markers",
            line=line,
            marker={"color": COLOURS[site], "size": 6},
            hovertemplate="%{y:.3g}",
            row=1,
            col=1,
        )
    for name, site in (("through_mlp", "mlp_out"), ("through_attention", "attn_out")):
        fig.add_bar(
            y=_listed(getattr(result, name)),
            name=name.replace("_", " ").replace("mlp", "MLP"),
            showlegend=False,  # the same two colours as above
            marker={"color": COLOURS[site], "opacity": 0.55, "line": {"width": 0}},
            hovertemplate="%{y:.3g}",
            row=2,
            col=1,
        )
    n_layers = len(result.plain)
    grid = _axis(look) | {"showgrid": True, "gridcolor": look.rule, "zeroline": True, "zerolinecolor": look.grey}
    fig.update_xaxes(**_axis(look), range=[-0.6, n_layers - 0.4], dtick=1 if n_layers <= 16 else 5, showticklabels=True)
    fig.update_yaxes(**grid, nticks=5)
    fig.update_yaxes(title_text="indirect effect", row=1, col=1)
    fig.update_yaxes(title_text="flows through", row=2, col=1)
    where = f"restored layer, at {safe(trace.labels[result.token])}; effects in {metric_name(trace)}"
    fig.update_xaxes(title_text=where, row=2, col=1)
    _finish(fig, severed_title(result), _caption(trace), height, look)
    fig.update_layout(hovermode="x unified", hoverlabel_bgcolor=look.empty, barmode="group")
    return fig


def _listed(values: Any) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values.tolist()]


def _caption(trace: Trace) -> str:
    """The trace's caption; windows play no part here."""
    parts = caption(replace(trace, config=replace(trace.config, site="resid_post"))).split(" · ")
    return " · ".join(part.removeprefix("one layer each, ") for part in parts)


# --------------------------------------------------------------------------------------------------------------- noise


def sufficient(trace: Trace, levels: Sequence[NoiseLevel]) -> list[float]:
    """The levels that leave less than a tenth of the clean probability."""
    return [level.scale for level in levels if level.p < LITTLE * trace.clean]


def enough(trace: Trace, levels: Sequence[NoiseLevel]) -> str:
    """One sentence: which levels are enough, and whether the chosen one is."""
    good = sufficient(trace, levels)
    bar = f"less than {LITTLE:.0%} of the clean probability ({number(LITTLE * trace.clean)})"
    told = ", ".join(f"{scale:g} σ" for scale in good) or "none of the measured levels"
    chosen = next((level for level in levels if level.scale == trace.config.noise_scale), None)
    verdict = ""
    if chosen:
        verdict = f" The chosen {chosen.scale:g} σ leaves {chosen.p / trace.clean:.0%}."
    return f"These leave {bar}: {told}.{verdict}"


def noise_title(trace: Trace, levels: Sequence[NoiseLevel]) -> str:
    good = sufficient(trace, levels)
    if len(levels) < len({*SCALES, trace.config.noise_scale}):
        return "How much noise is enough?"
    if not good:
        return f"Even {levels[-1].scale:g} σ leaves more than {LITTLE:.0%} of the clean probability"
    above = [level.scale for level in levels if level.scale >= good[0]]
    if good == above:
        return f"From {good[0]:g} σ on, less than {LITTLE:.0%} of the clean probability is left"
    return f"Less than {LITTLE:.0%} of the clean probability is left at {len(good)} of {len(levels)} levels"


def noise_figure(trace: Trace, levels: Sequence[NoiseLevel], dark: bool = False) -> go.Figure:
    """p(answer) of the corrupted run against the noise, with its spread over the draws."""
    look = theme(dark)
    x = [level.scale for level in levels]
    p, spread = (np.array([getattr(level, name) for level in levels]) for name in ("p", "spread"))
    fig = go.Figure()
    fig.add_scatter(
        x=[*x, *x[::-1]],
        y=[*np.minimum(p + spread, 1), *np.maximum(p - spread, 0)[::-1]],
        fill="toself",
        fillcolor="rgba(128,134,145,0.25)",
        line={"width": 0},
        mode="lines",
        name="± one standard deviation over the draws",
        hoverinfo="skip",
    )
    fig.add_scatter(
        x=x,
        y=p,
        customdata=[[level.spread, level.low, level.high, level.p / trace.clean] for level in levels],
        hovertemplate="%{x:g} σ: p = %{y:.3g} ± %{customdata[0]:.3g}, from %{customdata[1]:.3g} to %{customdata[2]:.3g}"
        "<br>%{customdata[3]:.1%} of the clean probability<extra></extra>",
        mode="lines+markers",
        line={"color": look.ink, "width": 2},
        marker={"color": look.ink, "size": 7},
        name="corrupted, mean",
    )
    ticks = [s for s in SCALES if s not in (1.5,)]
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{s:g}" for s in ticks], "range": _log_range(trace)}
    fig.update_xaxes(**_axis(look) | axis, title_text=f"noise on the subject, in σ of the {trace.config.noise_from}")
    top = max(1.12 * max(trace.clean, float((p + spread).max())), 1e-6)
    grid = _axis(look) | {"showgrid": True, "gridcolor": look.rule}
    fig.update_yaxes(**grid, title_text=f"p({safe(trace.answer)})", range=[0, top])
    _finish(fig, noise_title(trace, levels), _caption(trace), 1.4 * PANEL, look)
    _mark(fig, "y", trace.clean, f"clean {number(trace.clean)}", look, "solid")
    _mark(fig, "y", LITTLE * trace.clean, f"{LITTLE:.0%} of it", look, "dot")
    _mark(fig, "x", trace.config.noise_scale, f"chosen: {trace.config.noise_scale:g} σ", look, "dash")
    fig.update_layout(hovermode="closest")
    return fig


def _log_range(trace: Trace) -> list[float]:
    ends = (*SCALES, trace.config.noise_scale)
    return [float(np.log10(min(ends) * 0.9)), float(np.log10(max(ends) * 1.1))]


def _mark(fig: go.Figure, axis: str, value: float, text: str, look: Theme, dash: str) -> None:
    """A thin line across the plot with a word at its end."""
    font = {"color": look.grey, "size": 12}
    line = {"color": look.grey, "width": 1, "dash": dash}
    if axis == "x":
        fig.add_vline(x=value, line=line)
        where = {"x": float(np.log10(value)), "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 4}
    else:
        fig.add_hline(y=value, line=line)
        where = {"x": 1, "xref": "paper", "y": value, "xanchor": "right", "yanchor": "bottom"}
    fig.add_annotation(text=text, showarrow=False, font=font, **where)


def _finish(fig: go.Figure, title: str, caption_text: str, height: float, look: Theme) -> None:
    frame(fig, title, caption_text, int(height), look, left=64)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": look.ink}}
    fig.update_layout(legend=legend, dragmode=False, height=fig.layout.height + 44, margin_t=MARGIN_TOP + 44)


# ------------------------------------------------------------------------------------------------------------- studies


SEVERED = Study(
    name="severed",
    label="Severed paths",
    question="Severed paths: through which modules does the effect flow?",
    why="The residual state at the subject's last token is restored at one layer, as above; then again while that "
    "token's MLP (or attention) outputs in the layers above stay corrupted. What is lost flowed through them.",
    button="Sever the paths",
    steps=_severed,
    figure=severed_figure,
    says=severed_words,
)
NOISE = Study(
    name="noise",
    label="Noise study",
    question="Noise study: how much noise is enough?",
    why="Too little noise leaves the answer standing; too much takes the states far from any text. A level is enough "
    f"once less than {LITTLE:.0%} of the clean probability is left.",
    button="Measure the levels",
    steps=_levels,
    figure=noise_figure,
    says=enough,
)
