"""Every method on one request, measure by measure: rows -> plotly, pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import AFTER, BEFORE, ROW, Theme, frame_figure
from pages.shared.text import number
from rome_core.evaluation.comparison import COLUMNS as MEASURED
from rome_core.evaluation.comparison import MethodRow

COLUMNS = 3


def methods_figure(rows: Sequence[MethodRow], caption: str, theme: Theme) -> go.Figure:
    """A panel a measure, a line a method, the same order everywhere; the model before the edit as a dotted line."""
    before, done = rows[0], [row for row in rows if row.edit]
    names = [name for name in MEASURED if any(name in row.values for row in done)]
    height = -(-len(names) // COLUMNS)
    fig = make_subplots(
        rows=height,
        cols=COLUMNS,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        vertical_spacing=0.22 if height > 1 else 0,
        subplot_titles=[MEASURED[name].label for name in names],
    )
    lines = list(range(len(done)))
    for panel, name in enumerate(names):
        row, col = panel // COLUMNS + 1, panel % COLUMNS + 1
        values = [row.values.get(name) for row in done]
        fig.add_scatter(
            x=values,
            y=lines,
            mode="markers",
            marker={"color": AFTER, "size": 11},
            customdata=[row.method for row in done],
            hovertemplate="%{customdata}: %{x:.3g}<extra></extra>",
            showlegend=False,
            row=row,
            col=col,
        )
        if MEASURED[name].scale == "log":
            fig.update_xaxes(type="log", dtick=1, exponentformat="power", range=decades(values), row=row, col=col)
        else:
            fig.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1], row=row, col=col)
        if name in before.values:
            fig.add_vline(x=before.values[name], line={"color": BEFORE, "dash": "dot", "width": 2}, row=row, col=col)
    frame_figure(fig, title(done), caption, height * (ROW * max(3, len(done)) + 60), theme, left=84)
    fig.update_yaxes(tickvals=lines, ticktext=[row.method for row in done], range=[len(done) - 0.5, -0.5])
    return fig


def decades(values: Sequence[float | None]) -> list[float]:
    """A logarithmic range of whole decades around the values, so that there are always two marks to read by."""
    logs = [math.log10(value) for value in values if value and math.isfinite(value)] or [0.0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return [low - 0.1, max(high, low + 1) + 0.1]


def title(done: Sequence[MethodRow]) -> str:
    """The finding: who reaches the new object, and who of those leaves the neighbours most alone."""
    if not done:
        return "Which method edits, and which leaves the rest alone?"
    reached = [row for row in done if row.values["efficacy"] > 0.5]
    words = f"{len(reached)} of {len(done)} reach p(new) above 0.5"
    measured = [row for row in reached if "nkl" in row.values]
    if measured:
        least = min(measured, key=lambda row: row.values["nkl"])
        words += f"; of these {least.method} changes neighbours least ({number(least.values['nkl'])} nats)"
    return words
