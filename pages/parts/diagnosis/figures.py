"""Figure of a diagnosis: where one edit's denominator stands among those of ordinary facts. Pure: result -> plotly."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from pages.shared.style import Theme, frame_figure
from pages.shared.verdicts import COLOURS, SHAPES, large
from rome_core import METHODS
from rome_core.diagnosis.verdict import Diagnosis

BARS_A_DECADE = 8


def gauge(diagnosis: Diagnosis, method: str, caption: str, theme: Theme) -> go.Figure:
    """This edit's denominator on the distribution of ordinary facts, log axis, with the danger zone marked."""
    reference = np.array([value for value in diagnosis.reference.k0_kstar if value > 0])
    low, high = decades(reference, diagnosis.denominator, diagnosis.disabling_below)
    edges = np.logspace(low, high, (high - low) * BARS_A_DECADE + 1)
    fig = go.Figure(
        go.Bar(
            x=np.sqrt(edges[:-1] * edges[1:]),
            y=np.histogram(reference, edges)[0],
            width=np.diff(edges) * 0.92,
            marker_color=theme.grey,
            customdata=np.stack([edges[:-1], edges[1:]], axis=1),
            hovertemplate="%{y} ordinary facts from %{customdata[0]:,.3g} to %{customdata[1]:,.3g}<extra></extra>",
        )
    )
    _danger_zone(fig, diagnosis, 10.0**low, theme)
    _this_edit(fig, diagnosis, low, high)
    frame_figure(fig, gauge_title(diagnosis, reference), caption, 240, theme, left=56)
    axis = f"denominator {METHODS[method].divides_by} (log)"
    fig.update_xaxes(type="log", range=[low, high], title_text=axis, dtick=1)
    return fig.update_yaxes(title_text="ordinary facts")


def gauge_title(diagnosis: Diagnosis, reference: np.ndarray) -> str:
    """The finding in one line: how far this denominator is from the ordinary ones."""
    if diagnosis.denominator <= 0:
        return "Denominator not positive: the update points the wrong way"
    if not len(reference):
        return "No ordinary facts to compare this edit with"
    ratio = float(np.median(reference)) / diagnosis.denominator
    if ratio > 2:
        return f"Denominator {large(ratio)} times smaller than that of ordinary facts"
    if ratio < 1 / 2:
        return f"Denominator {large(1 / ratio)} times larger than that of ordinary facts"
    return "Denominator like those of ordinary facts"


def _this_edit(fig: go.Figure, diagnosis: Diagnosis, low: int, high: int) -> None:
    at = max(np.log10(max(diagnosis.denominator, 1e-300)), low + 0.03)  # a negative one stands at the left edge
    colour = COLOURS[diagnosis.verdict]
    fig.add_vline(x=10**at, line={"color": colour, "width": 3})
    fig.add_annotation(
        x=at,
        y=1.01,
        yref="paper",
        yanchor="bottom",
        xanchor="left" if at < (low + high) / 2 else "right",
        showarrow=False,
        text=f"<b>{SHAPES[diagnosis.verdict]} this edit: {large(diagnosis.denominator)}</b>",
        font={"color": colour, "size": 14},
    )


def _danger_zone(fig: go.Figure, diagnosis: Diagnosis, left: float, theme: Theme) -> None:
    limit = diagnosis.disabling_below
    if limit <= left:
        return
    fig.add_vrect(x0=left, x1=limit, fillcolor=COLOURS["disabling"], opacity=0.12, line_width=0, layer="below")
    words = {"text": "danger zone", "showarrow": False, "font": {"color": theme.ink, "size": 12}}
    middle = (np.log10(left) + np.log10(limit)) / 2
    fig.add_annotation(x=middle, y=0.98, yref="paper", yanchor="top", **words)


def decades(reference: np.ndarray, *marks: float) -> tuple[int, int]:
    """Whole powers of ten around the ordinary facts and what is marked beside them, at most six below the former."""
    ordinary = reference if len(reference) else np.array([mark for mark in marks if mark > 0] or [1.0])
    near = [mark for mark in marks if mark > ordinary.min() / 1e6]
    low, high = min(ordinary.min(), *near, ordinary.max()), max(ordinary.max(), *near, ordinary.min())
    return int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high * 1.2)))
