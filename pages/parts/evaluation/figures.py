"""Runs of an evaluation as figures: lines or rows in, a plotly figure out."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from pages.shared.style import AFTER, BEFORE, Theme, frame_figure
from pages.shared.text import count
from pages.shared.winners import contenders
from rome_core.evaluation.measures import MEASURES
from rome_core.evaluation.runs.store import Row
from rome_core.evaluation.runs.tables import Line

COLOURS = {"before": BEFORE, "after": AFTER, "end": "#8A5A1F"}
SHAPES = ("circle", "diamond", "square", "triangle-up", "star", "cross", "x")
SYMBOLS = (*SHAPES, *(f"{shape}-open" for shape in SHAPES))


def bars(runs: Mapping[str, Sequence[Line]], measure: str, caption: str, theme: Theme) -> go.Figure:
    """One measure: a bar a method and stage, with its 95 % interval. A second run is drawn hatched beside the first."""
    fig, factor = go.Figure(), MEASURES[measure].factor
    for i, (name, lines) in enumerate(runs.items()):
        for stage in dict.fromkeys(line.stage for line in lines):
            stage_lines = [line for line in lines if line.stage == stage and measure in line.scores]
            if not stage_lines:
                continue
            scores = [line.scores[measure] for line in stage_lines]
            fig.add_bar(
                x=[line.method for line in stage_lines],
                y=[factor * score.value for score in scores],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [factor * (score.high - score.value) for score in scores],
                    "arrayminus": [factor * (score.value - score.low) for score in scores],
                    "color": theme.ink,
                    "thickness": 1,
                    "width": 3,
                },
                name=stage if len(runs) == 1 else f"{stage}, {html.escape(name)}",
                marker={"color": COLOURS[stage], "pattern": {"shape": "/" if i else ""}},
                customdata=[(score.low * factor, score.high * factor, score.n) for score in scores],
                hovertemplate=(
                    f"<b>%{{x}}</b>, {stage}: %{{y:.3g}}<br>95 % interval %{{customdata[0]:.3g}} to "
                    "%{customdata[1]:.3g}<br>%{customdata[2]} facts<extra></extra>"
                ),
            )
    rows = _legend_rows(fig)
    frame_figure(fig, _finding(runs, measure), caption, 300, theme, left=64, legend_rows=rows)
    fig.update_yaxes(title_text=MEASURES[measure].title)
    if MEASURES[measure].mean == "geometric":
        fig.update_yaxes(type="log")
    return fig.update_layout(barmode="group", bargap=0.25)


def _legend_rows(fig: go.Figure) -> int:
    """How many rows the narrowest page needs."""
    return math.ceil(len(fig.data) / 4)


def _finding(runs: Mapping[str, Sequence[Line]], measure: str) -> str:
    """The method that is highest after its edits, where intervals separate it; else that none is.

    No judgement where higher is not better. Methods that begin from another baseline are named.
    """
    lines = {(f"{line.method}, {name}" if len(runs) > 1 else line.method): line for name, line in _after(runs, measure)}
    if not lines or MEASURES[measure].better != "higher":
        return f"{measure}, before and after the edits"
    values = {name: line.scores[measure].value * MEASURES[measure].factor for name, line in lines.items()}
    best, *alike = contenders({name: line.scores[measure] for name, line in lines.items()})
    if len(lines) == 1:
        found = f"{measure} of {best} after its edits: {values[best]:.1f}"
    elif not alike:
        found = f"{measure} is highest with {best}: {values[best]:.1f}"
    else:
        low = min(values[name] for name in (best, *alike))
        who = "all methods" if len(alike) == len(lines) - 1 else f"{best} and {count(len(alike), 'other')}"
        found = f"{measure}: no clear winner, intervals of {who} overlap ({low:.1f} to {values[best]:.1f})"
    return found + _baselines(runs, measure)


def _after(runs: Mapping[str, Sequence[Line]], measure: str) -> list[tuple[str, Line]]:
    return [(name, line) for name, lines in runs.items() for line in lines if _at(line, "after", measure)]


def _at(line: Line, stage: str, measure: str) -> bool:
    return line.stage == stage and measure in line.scores


def _baselines(runs: Mapping[str, Sequence[Line]], measure: str) -> str:
    """A second line of the title where methods begin from different numbers on the same facts."""
    factor = MEASURES[measure].factor
    before = {
        line.method: f"{line.scores[measure].value * factor:.1f}"
        for line in next(iter(runs.values()))
        if _at(line, "before", measure)
    }
    usual = max(before.values(), key=list(before.values()).count, default="")
    others = {method: value for method, value in before.items() if value != usual}
    if not others:
        return ""
    told = ", ".join(f"{method} from {value}" for method, value in others.items())
    return f"\nBaselines differ: {told}, the others from {usual}"


def scatter(rows: Sequence[Row], measure: str, caption: str, theme: Theme) -> go.Figure:
    """‖Δ‖/‖W‖ of every edit against one of its scores; a symbol a method. The points carry method and place."""
    fig, factor = go.Figure(), MEASURES[measure].factor
    for i, method in enumerate(dict.fromkeys(row.method for row in rows)):
        points = [row for row in rows if row.method == method and has(row, measure)]
        if not points:
            continue
        fig.add_scatter(
            x=[row.relative_norm for row in points],
            y=[factor * row.values[measure] for row in points],
            mode="markers",
            name=method,
            marker={
                "symbol": SYMBOLS[i % len(SYMBOLS)],
                "size": 8,
                "color": AFTER,
                "line": {"width": 1, "color": theme.ink},
            },
            customdata=[(row.method, row.position, html.escape(row.subject), row.delta_norm) for row in points],
            hovertemplate=(
                "<b>%{customdata[2]}</b>, %{customdata[0]}<br>‖Δ‖/‖W‖ %{x:.3g} (‖Δ‖ %{customdata[3]:.3g})"
                f"<br>{measure} %{{y:.3g}}<extra></extra>"
            ),
        )
    n = sum(len(trace.x) for trace in fig.data)
    title = f"Do larger updates cost more? {measure} of {count(n, 'edit')}"
    frame_figure(fig, title, caption, 320, theme, left=64, legend_rows=_legend_rows(fig), grid="xy")
    fig.update_xaxes(type="log", title_text="‖Δ‖ / ‖W‖ of the edit")
    fig.update_yaxes(title_text=MEASURES[measure].title)
    positive = all(y > 0 for trace in fig.data for y in trace.y)  # rounding may leave a KL of 0
    if MEASURES[measure].scale == "log" and positive:
        fig.update_yaxes(type="log", exponentformat="power")
    return fig


def has(row: Row, measure: str) -> bool:
    """Whether a row can be a point: after its edit, with a size and the measure."""
    finite = math.isfinite(row.values.get(measure, math.nan)) and math.isfinite(row.relative_norm)
    return row.stage == "after" and not row.error and finite and row.relative_norm > 0


def caption_of(about: Mapping[str, object], n: int, known_only: bool) -> str:
    """Model, facts, settings and seeds in one line."""
    parts = [
        str(about.get("model")),
        str(about.get("facts")),
        count(n, "fact") + (" that it knows" if known_only else ""),
    ]
    parts.append(f"order seed {about.get('order_seed')}")
    if about.get("prefixes"):
        parts.append(f"{about['prefixes']} prefixes")
    group = about.get("group")
    parts.append("each fact edited by itself" if group == 1 else f"groups of {group} edits")
    return " · ".join(parts)
