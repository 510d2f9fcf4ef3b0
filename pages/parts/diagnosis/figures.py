"""Figures of a diagnosis, pure: where edits stand in the quantity that decides, the denominator among those of ordinary
facts, k_0 and k* in their plane, edits against each other, and how far other prompts move."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import AFTER, BEFORE, ROW, Theme, colour_bar, frame_figure, log_ticks
from pages.shared.text import number, shorten
from pages.shared.verdicts import COLOURS, QUANTITIES, SYMBOLS, label, large
from rome_core import METHODS
from rome_core.diagnosis.interference import Overlap
from rome_core.diagnosis.neighbourhood import Shift
from rome_core.diagnosis.verdict import Diagnosis

BARS_A_DECADE = 8
KINDS = {"same words": AFTER, "same answer": "#7A5FA8", "unrelated": BEFORE}


def gauge(diagnoses: Mapping[str, Diagnosis], name: str, caption: str, theme: Theme) -> go.Figure:
    """Where this edit and the same δ by other policies stand in the quantity that decides, log axis, with its zones.

    diagnoses: by policy; name: this edit's.
    """
    order = [name, *(other for other in diagnoses if other != name)]
    own, rows = diagnoses[name], list(range(len(order)))
    scores = [diagnoses[policy].score for policy in order]
    low, high = _span([*filter(math.isfinite, scores), own.caution_at, 5 * own.disabling_at])
    fig = go.Figure()
    for verdict, colour in COLOURS.items():
        at = [row for row in rows if diagnoses[order[row]].verdict == verdict]
        fig.add_scatter(
            x=[min(max(scores[row], 10**low * 1.1), 10**high / 1.1) for row in at],
            y=at,
            mode="markers+text",
            marker={"symbol": SYMBOLS[verdict], "size": 13, "color": colour},
            text=[f"  {large(scores[row])}" for row in at],
            textposition="middle right",
            textfont={"color": theme.ink, "size": 12},
            customdata=[order[row] for row in at],
            hovertemplate=f"%{{customdata}}: %{{text}}, {verdict}<extra></extra>",
            cliponaxis=False,
        )
    zones = (("caution", own.caution_at, own.disabling_at), ("disabling", own.disabling_at, 10.0**high))
    for verdict, begin, end in zones:
        fig.add_vrect(x0=begin, x1=end, fillcolor=COLOURS[verdict], opacity=0.12, line_width=0, layer="below")
        words = {"text": f"{label(verdict)} from {begin:.3g}", "font": {"color": COLOURS[verdict], "size": 12}}
        side = "right" if verdict == "caution" else "left"  # of the text: the two limits may be near each other
        place = {"x": math.log10(begin), "yref": "paper", "yanchor": "bottom", "xanchor": side, "showarrow": False}
        fig.add_annotation(y=1.0, **place, **words)
    frame_figure(fig, gauge_title(own), caption, ROW * len(order) + 40, theme, left=100, grid="x")
    fig.update_xaxes(
        type="log", range=[low, high], title_text=f"{QUANTITIES[own.quantity]} (log)", **log_ticks(low, high)
    )
    names = [f"<b>{policy}</b>" if policy == name else policy for policy in order]
    fig.update_yaxes(tickvals=rows, ticktext=names, range=[len(order) - 0.5, -0.5])
    return fig.update_layout(showlegend=False)


def _span(values: Sequence[float]) -> tuple[int, int]:
    """Whole powers of ten around what is drawn, with room for a number on the right."""
    positive = [value for value in values if value > 0]
    return math.floor(math.log10(min(positive) / 1.5)), math.ceil(math.log10(max(positive) * 3))


def gauge_title(diagnosis: Diagnosis) -> str:
    """The finding in one line: where the deciding quantity stands between its limits."""
    name, score = QUANTITIES[diagnosis.quantity], large(diagnosis.score)
    if not math.isfinite(diagnosis.score):
        return f"{name} is not finite: disabling"
    if diagnosis.verdict == "disabling":
        times = large(diagnosis.score / diagnosis.disabling_at)
        return f"{name} is {score}, {times} times the disabling limit"
    if diagnosis.verdict == "caution":
        return (
            f"{name} is {score}: between {diagnosis.caution_at:.3g} and {diagnosis.disabling_at:.3g}, which is caution"
        )
    return f"{name} is {score}: below {diagnosis.caution_at:.3g}, where caution begins"


# ------------------------------------------------------------------------------------------------- the denominator


def denominators(diagnosis: Diagnosis, method: str, caption: str, theme: Theme) -> go.Figure:
    """This edit's denominator on the distribution of ordinary facts, log axis: where a large update comes from."""
    reference = np.array([value for value in diagnosis.reference.k0_kstar if value > 0])
    low, high = decades(reference, diagnosis.denominator)
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
    _this_edit(fig, diagnosis, low, high, theme)
    frame_figure(fig, denominators_title(diagnosis, reference), caption, 200, theme, left=56)
    axis = f"denominator {METHODS[method].divides_by} (log)"
    fig.update_xaxes(type="log", range=[low, high], title_text=axis, **log_ticks(low, high))
    return fig.update_yaxes(title_text="ordinary facts")


def denominators_title(diagnosis: Diagnosis, reference: np.ndarray) -> str:
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


def _this_edit(fig: go.Figure, diagnosis: Diagnosis, low: int, high: int, theme: Theme) -> None:
    at = max(np.log10(max(diagnosis.denominator, 1e-300)), low + 0.03)  # a negative one stands at the left edge
    fig.add_vline(x=10**at, line={"color": AFTER, "width": 3})
    fig.add_annotation(
        x=at,
        y=1.01,
        yref="paper",
        yanchor="bottom",
        xanchor="left" if at < (low + high) / 2 else "right",
        showarrow=False,
        text=f"<b>this edit: {large(diagnosis.denominator)}</b>",
        font={"color": theme.ink, "size": 14},
    )


def decades(reference: np.ndarray, *marks: float) -> tuple[int, int]:
    """Whole powers of ten around the ordinary facts and what is marked beside them, at most six below the former."""
    ordinary = reference if len(reference) else np.array([mark for mark in marks if mark > 0] or [1.0])
    near = [mark for mark in marks if mark > ordinary.min() / 1e6]
    low, high = min(ordinary.min(), *near, ordinary.max()), max(ordinary.max(), *near, ordinary.min())
    return int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high * 1.2)))


# ------------------------------------------------------------------------------------------------- keys, other prompts


def angle(cosine: float) -> float:
    """Degrees between two vectors."""
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def planes(diagnosis: Diagnosis, caption: str, theme: Theme) -> go.Figure:
    """k_0 and k* in the plane that they span: as the model has them, and after C^(−1/2), as the update sees them."""
    d = diagnosis
    titles = ("as they are", "whitened by C^(−1/2)")
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.12, subplot_titles=titles)
    panels = (
        (d.k0_norm, d.kstar_norm, d.cosine),
        (math.sqrt(max(d.k0_k0, 0.0)), math.sqrt(max(d.kstar_kstar, 0.0)), d.cosine_whitened),
    )
    for column, (bare, mean, cosine) in enumerate(panels, 1):
        turn = math.radians(angle(cosine))
        ends = (
            ("k*, mean of the prefixed prompts", mean, 0.0, AFTER),
            ("k₀, bare prompt", bare * math.cos(turn), bare * math.sin(turn), BEFORE),
        )
        for name, x, y, colour in ends:
            fig.add_scatter(
                x=[0, x],
                y=[0, y],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 3},
                marker={"size": [0, 12], "symbol": "arrow", "angleref": "previous", "opacity": 1},
                showlegend=column == 1,
                hovertemplate=f"{name}, length {number(math.hypot(x, y))}<extra></extra>",
                row=1,
                col=column,
            )
        size = 1.1 * max(mean, bare, 1e-12)
        fig.update_xaxes(range=[min(0.0, bare * math.cos(turn)) * 1.1 - 0.03 * size, size], row=1, col=column)
        fig.update_yaxes(range=[-0.06 * size, size], row=1, col=column)
    title = f"k₀ and k* stand at {angle(d.cosine):.0f}° to each other, whitened at {angle(d.cosine_whitened):.0f}°"
    frame_figure(fig, title, caption, 240, theme, left=56, legend_rows=1)
    fig.update_xaxes(title_text="along k*")
    return fig.update_yaxes(title_text="across", col=1)


def overlap_heatmap(overlap: Overlap, caption: str, theme: Theme) -> go.Figure:
    """KᵀC⁻¹K of the edits of one layer as cosines, with the value itself on the cell."""
    cosine, gram = overlap.cosine.numpy(), overlap.gram.numpy()
    names = [f"{html.escape(shorten(label, 28))}  {n}" for n, label in enumerate(overlap.labels, 1)]
    at = list(range(len(names)))
    fig = go.Figure(
        go.Heatmap(
            z=cosine,
            x=at,
            y=at,
            zmin=-1,
            zmax=1,
            colorscale=[[0, BEFORE], [0.5, theme.empty], [1, AFTER]],
            customdata=gram,
            texttemplate="%{z:.2f}" if len(at) <= 12 else None,
            hovertemplate="cosine %{z:.3f}<br>kᵀC⁻¹k %{customdata:,.4g}<extra></extra>",
            colorbar=colour_bar(theme) | {"title": {"text": "cosine"}},
        )
    )
    frame_figure(fig, overlap_title(overlap), caption, 40 * len(at) + 130, theme, left=200, grid="")
    fig.update_xaxes(tickvals=at, ticktext=[str(n + 1) for n in at], tickangle=0)
    return fig.update_yaxes(tickvals=at, ticktext=names, autorange="reversed")


def overlap_title(overlap: Overlap) -> str:
    cosine = overlap.cosine
    if len(cosine) < 2:
        return f"Layer {overlap.layer}: one edit, nothing to be in its way"
    apart = cosine.abs().fill_diagonal_(-1.0)
    i, j = divmod(int(apart.argmax()), len(cosine))
    return f"Layer {overlap.layer}: most alike are edits {i + 1} and {j + 1}, cosine {cosine[i, j]:.2f}"


def neighbourhood_map(shifts: Sequence[Shift], caption: str, theme: Theme) -> go.Figure:
    """How far the next token of other prompts moved, against how strongly the update answers their subjects' keys."""
    fig = go.Figure()
    floor = 1e-7  # a KL of rounding alone; the axis is a logarithm
    for kind, colour in KINDS.items():
        of_kind = [shift for shift in shifts if shift.kind == kind]
        if not of_kind:
            continue
        words = [
            f"{html.escape(s.prompt)}<br>{html.escape(s.top[0])} → {html.escape(s.top[1])}<br>KL {number(s.kl)} nats"
            for s in of_kind
        ]
        fig.add_scatter(
            x=[max(s.response, floor) for s in of_kind],
            y=[max(s.kl, floor) if s.kl == s.kl else None for s in of_kind],
            name=kind,
            mode="markers",
            marker={
                "color": colour,
                "size": 10,
                "symbol": ["diamond" if s.changed else "circle-open" for s in of_kind],
                "line": {"width": 2},
            },
            text=words,
            hovertemplate="%{text}<extra></extra>",
        )
    changed = sum(shift.changed for shift in shifts)
    title = f"{changed} of {len(shifts)} other prompts have another answer (◆)"
    frame_figure(fig, title, caption, 300, theme, left=72, legend_rows=1)
    drawn = {letter: [math.log10(v) for trace in fig.data for v in trace[letter] if v] or [0.0] for letter in "xy"}
    marks = {letter: log_ticks(min(logs), max(logs)) for letter, logs in drawn.items()}
    fig.update_xaxes(type="log", title_text="‖Δk‖/‖Wk‖ at the subject (log)", **marks["x"])
    return fig.update_yaxes(type="log", title_text="KL of the next token, nats (log)", **marks["y"])
