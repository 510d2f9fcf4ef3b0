"""Figures of one edit: its search, and probabilities before and after it. Result -> plotly, pure."""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import AFTER, BEFORE, Theme, frame_figure
from pages.shared.text import count, number, shorten
from rome_core.editing.edit import Step
from rome_core.evaluation.answers import Change, Question

TERMS = (("nll", "−log p(target)", "#6B7785"), ("kl", "KL term", "#A9B2BC"), ("decay", "‖δ‖ term", "#D3D8DD"))


# ---------------------------------------------------------------------------------------------- while v* is optimised


def steps_figure(steps: Sequence[Step], target: str, planned: int, caption: str, theme: Theme) -> go.Figure:
    """The search for v*, a point an evaluation: the loss by its terms, p(target), ‖δ‖ with its clamp, the rank."""
    titles = (
        "loss (nats), by term",
        f"p({html.escape(target)})",
        "‖δ‖ and its clamp",
        f"rank of {html.escape(target)}",
    )
    fig = make_subplots(rows=2, cols=2, horizontal_spacing=0.08, vertical_spacing=0.16, subplot_titles=titles)
    x = [step.index + 1 for step in steps]
    for field, name, colour in TERMS:
        fig.add_scatter(
            x=x,
            y=[getattr(step, field) for step in steps],
            name=name,
            stackgroup="loss",
            line={"width": 1, "color": colour},
            fillcolor=colour,
            hovertemplate=f"{name}: %{{y:.3g}}<extra></extra>",
            row=1,
            col=1,
        )
    for field, row, col in (("p_target", 1, 2), ("delta_norm", 2, 1), ("rank", 2, 2)):
        fig.add_scatter(
            x=x,
            y=[getattr(step, field) for step in steps],
            mode="lines+markers",
            line={"color": AFTER, "width": 2},
            marker={"size": 6},
            showlegend=False,
            hovertemplate="evaluation %{x}: %{y:.3g}<extra></extra>",
            row=row,
            col=col,
        )
    if steps and np.isfinite(steps[-1].limit):
        limit = {
            "x": [0, planned + 1],
            "y": [steps[-1].limit] * 2,
            "line": {"color": theme.ink, "dash": "dot", "width": 1.5},
        }
        fig.add_scatter(**limit, name="clamp", mode="lines", hoverinfo="skip", row=2, col=1)
    frame_figure(fig, steps_title(steps, target), caption, 400, theme, legend_rows=1)
    fig.update_xaxes(range=[0.5, planned + 0.5])
    fig.update_xaxes(title_text="evaluation of the loss", row=2)
    fig.update_yaxes(rangemode="tozero")
    fig.update_yaxes(range=[0, 1.03], row=1, col=2)
    ranks = [step.rank for step in steps] or [1]
    span = [np.log10(max(ranks)) + 0.3, -0.15]
    return fig.update_yaxes(type="log", range=span, rangemode="normal", dtick=1, row=2, col=2)


def steps_title(steps: Sequence[Step], target: str) -> str:
    if not steps:
        return f"Which value makes the model say {target}?"
    first, last = steps[0], steps[-1]
    return f"p({target}) {number(first.p_target)} → {number(last.p_target)} in {count(len(steps), 'evaluation')}"


# --------------------------------------------------------------------------------------------------- before and after

PROMPT_ROW = 46  # px


def dumbbell(changes: Sequence[Change], names: Sequence[str], caption: str, theme: Theme) -> go.Figure:
    """Probabilities before and after, a row a prompt, a panel an answer."""
    panels = [f"p({html.escape(name)})" for name in names]
    fig = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=panels)
    rows = list(range(len(changes)))[::-1]
    for panel, name in enumerate(names):
        # A reversed prompt asks for one answer only, the subject.
        before, after = (
            [answer.probabilities[panel] if panel < len(answer.probabilities) else None for answer in answers]
            for answers in ([change.before for change in changes], [change.after for change in changes])
        )
        _bridges(fig, rows, before, after, panel, theme)
        for when, values, colour in (("before", before, BEFORE), ("after", after, AFTER)):
            fig.add_scatter(
                x=values,
                y=rows,
                name=when,
                mode="markers",
                marker={"color": colour, "size": 12},
                showlegend=panel == 0,
                # What somebody wrote is data: in a template %{x} would be a number.
                customdata=[(html.escape(shown_prompt(change.question)), html.escape(name)) for change in changes],
                hovertemplate=f"%{{customdata[0]}}<br>p(%{{customdata[1]}}) {when}: %{{x:.3g}}<extra></extra>",
                row=1,
                col=panel + 1,
            )
    for y, question in zip(rows, (change.question for change in changes), strict=True):
        words = f"<i>{question.kind}</i>  {html.escape(shorten(shown_prompt(question)))}"
        row_style = {"showarrow": False, "xanchor": "left", "font": {"size": 12, "color": theme.grey}}
        fig.add_annotation(x=0, xref="x domain", y=y + 0.38, text=words, **row_style)
    title, height = dumbbell_title(changes, names[0]), PROMPT_ROW * len(changes) + 20
    frame_figure(fig, title, caption, height, theme, left=8, legend_rows=1, grid="")
    fig.update_xaxes(range=[-0.03, 1.03], tickvals=[0, 0.25, 0.5, 0.75, 1])
    return fig.update_yaxes(range=[-0.5, len(changes) - 0.2], showticklabels=False)


Values = Sequence[float | None]


def _bridges(fig: go.Figure, rows: Sequence[int], before: Values, after: Values, panel: int, theme: Theme) -> None:
    """The lines between the two dots of every row, as one broken line."""
    x = [value for a, b in zip(before, after, strict=True) for value in (a, b, None)]
    y = [value for row in rows for value in (row, row, None)]
    line = {"color": theme.rule, "width": 4}
    fig.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=1, col=panel + 1)


def dumbbell_title(changes: Sequence[Change], target: str) -> str:
    parts = [f"p({target}) {number(changes[0].before.new.p_joint)} → {number(changes[0].after.new.p_joint)}"]
    for kind in ("paraphrase", "neighbour"):  # a longer title is cut off on narrow screens
        values = [change.after.new.p_joint for change in changes if change.question.kind == kind]
        if values:
            parts.append(f"{kind}s {number(fmean(values))}")
    return ", ".join(parts)


def shown_prompt(question: Question) -> str:
    """The prompt, with the answer where it is not the object."""
    return question.text + (" … (the subject)" if question.kind == "reversed" else "")
