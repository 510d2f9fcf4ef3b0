"""Figures of an edit's parts, the key k*, the value v* and the update Δ: result -> plotly, pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import AFTER, BEFORE, MONO, Theme, colour_bar, frame_figure
from pages.shared.text import escape_token, number, show_token
from rome_core.editing.edit import Delta


def neurons_figure(strongest: Sequence[tuple[int, float]], caption: str, theme: Theme) -> go.Figure:
    """The neurons that are loudest in the key, signed."""
    rows = list(range(len(strongest)))
    values = [value for _, value in strongest]
    fig = go.Figure(go.Bar(x=values, y=rows, orientation="h", marker_color=theme.grey))
    fig.update_traces(hovertemplate="%{x:.3g}<extra></extra>")
    title = f"Neuron {strongest[0][0]} is the loudest in k*"
    frame_figure(fig, title, caption, 26 * len(rows) + 30, theme, left=92)
    fig.update_yaxes(tickvals=rows, ticktext=[f"neuron {index}" for index, _ in strongest], autorange="reversed")
    return fig.update_xaxes(title_text="activation in k*")


def cosines_figure(cosines: np.ndarray, caption: str, theme: Theme) -> go.Figure:
    """How alike the subject's key is behind the different prefixes; number 0 is the bare prompt."""
    apart = cosines[~np.eye(len(cosines), dtype=bool)] if len(cosines) > 1 else np.ones(1)
    fig = go.Figure(
        go.Heatmap(
            z=cosines,
            zmin=np.floor(float(cosines.min()) * 10) / 10,
            zmax=1,
            colorscale=[[0, theme.empty], [1, theme.ink]],
            colorbar=colour_bar(theme),
            hovertemplate="prefixes %{y} and %{x}: %{z:.3f}<extra></extra>",
        )
    )
    title = f"Cosine between keys behind different prefixes: {apart.min():.2f} to {apart.max():.2f}"
    frame_figure(fig, title, caption, 290, theme, left=56, grid="")
    fig.update_xaxes(title_text="prefix (0: none)", dtick=5)
    return fig.update_yaxes(title_text="prefix (0: none)", dtick=5, autorange="reversed")


Tokens = Sequence[tuple[str, float]]


def promoted_figure(before: Tokens, after: Tokens, caption: str, theme: Theme) -> go.Figure:
    """Tokens that the value promotes through the head, before (v₀) and after (v*)."""
    titles = ("v₀, before", "v*, after")
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.2, subplot_titles=titles)
    for col, (tokens, colour) in enumerate(((before, BEFORE), (after, AFTER)), start=1):
        bars = {"x": [logit for _, logit in tokens], "y": list(range(len(tokens))), "orientation": "h"}
        fig.add_bar(
            **bars, marker_color=colour, showlegend=False, hovertemplate="%{x:.3g}<extra></extra>", row=1, col=col
        )
    widest = 16 + 8 * max(len(token) for token, _ in before)  # px, in the fixed-width face
    title = f"v* promotes “{show_token(after[0][0])}” most; v₀ promotes “{show_token(before[0][0])}”"
    frame_figure(fig, title, caption, 26 * len(after) + 30, theme, left=widest, grid="")
    for col, tokens in ((1, before), (2, after)):
        # Numbers on the axis and tokens as their labels: two tokens that read alike must not share a bar.
        labels = [escape_token(token) for token, _ in tokens]
        fig.update_yaxes(tickvals=list(range(len(tokens))), ticktext=labels, row=1, col=col)
    fig.update_yaxes(tickfont={"family": MONO, "size": 13}, autorange="reversed")
    return fig.update_xaxes(title_text="logit")


def factors_figure(delta: Delta, caption: str, theme: Theme) -> go.Figure:
    """The two factors of a rank-one update, entry by entry: what it writes (U) and what it listens to (V)."""
    u, v = delta.U[:, 0].cpu().double().numpy(), delta.V[0].cpu().double().numpy()
    titles = (f"U: what is written, {len(u):,} entries", f"V: what is listened to, {len(v):,} neurons")
    fig = make_subplots(rows=2, cols=1, vertical_spacing=0.2, subplot_titles=titles)
    for row, (factor, colour) in enumerate(((u, AFTER), (v, theme.grey)), start=1):
        fig.add_bar(y=factor, marker={"color": colour, "line": {"width": 0}}, showlegend=False, row=row, col=1)
    fig.update_traces(hovertemplate="entry %{x}: %{y:.3g}<extra></extra>")
    share = float(np.sort(v**2)[::-1][:20].sum() / max(float((v**2).sum()), 1e-30))
    title = f"20 of {len(v):,} neurons carry {share:.0%} of what Δ listens to"
    frame_figure(fig, title, caption, 360, theme, left=60)
    fig.update_layout(bargap=0)
    fig.update_xaxes(title_text="entry", row=2)
    return fig.update_yaxes(title_text="value", nticks=5, exponentformat="power")


def spectrum_figure(before: Sequence[float], after: Sequence[float], caption: str, theme: Theme) -> go.Figure:
    """Singular values of W and of W + Δ, largest first."""
    fig = go.Figure()
    for name, values, colour, width in (("W", before, BEFORE, 5), ("W + Δ", after, AFTER, 2)):
        line = {"color": colour, "width": width}
        fig.add_scatter(x=list(range(1, len(values) + 1)), y=list(values), name=name, mode="lines", line=line)
    fig.update_traces(hovertemplate="number %{x}: %{y:.4g}")
    title = f"Largest singular value {number(before[0])} → {number(after[0])}"
    frame_figure(fig, title, caption, 260, theme, left=60, legend_rows=1)
    fig.update_xaxes(type="log", title_text="number of the singular value (log)", dtick=1)
    return fig.update_yaxes(type="log", title_text="singular value (log)", dtick=1)
