"""Results of causal tracing as figures: a trace in, a plotly figure out. Nothing is computed here that a trace holds.

The paper's colours: residual stream purple, MLP green, attention red.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.text import count, number, show_token
from rome_core import Trace
from rome_core.tracing.heat_map import peak, restored_layers
from rome_core.tracing.runs import KINDS

COLOURS = {"resid_post": "#6A51A3", "mlp_out": "#238B45", "attn_out": "#CB181D"}
SCALES = {"resid_post": "Purples", "mlp_out": "Greens", "attn_out": "Reds"}
LIGHTER = {"resid_post": "#C4B8E8", "mlp_out": "#8FD6A5", "attn_out": "#F5A08E"}  # the bright end on dark ground
MONO = "'Source Code Pro', 'DejaVu Sans Mono', Menlo, Consolas, monospace"
ROW, MARGIN_TOP, MARGIN_BOTTOM = 24, 46, 92  # px
LEGEND_ROW = 20  # px
CAPTION_WIDTH = 78  # characters: fits the narrowest page
LABEL_LENGTH = 16  # characters of a token on an axis


@dataclass(frozen=True)
class Theme:
    """Neutral colours of a light or a dark page."""

    ink: str
    grey: str
    rule: str
    empty: str
    veil: str


LIGHT = Theme("#1F2933", "#66717E", "#D5DAE0", "#EEF0F3", "rgba(255,255,255,0.5)")
DARK = Theme("#E6E9ED", "#A3ADB8", "#3A424D", "#262B33", "rgba(14,17,23,0.5)")


def safe(label: str) -> str:
    """A token as plotly may draw it: visible spaces, no accidental markup."""
    return html.escape(show_token(label), quote=False)


def theme(dark: bool) -> Theme:
    return DARK if dark else LIGHT


def colour_scale(site: str, dark: bool) -> object:
    if not dark:
        return SCALES[site]
    return [[0, "#171B22"], [0.5, COLOURS[site]], [1, LIGHTER[site]]]


def scores(trace: Trace) -> np.ndarray:
    """The heat map in the config's metric: corrupted value + indirect effect, [pos, layer]."""
    return trace.corrupted_score + trace.indirect_effect.double().cpu().numpy()


def metric_name(trace: Trace) -> str:
    answer = safe(trace.answer)
    if trace.config.metric == "logit difference":
        return f"logit {answer} − {safe(trace.foil or '')}"
    return f"{trace.config.metric}({answer})"


def caption(trace: Trace) -> str:
    """Model, prompt, settings and seed in one line."""
    config = trace.config
    window = "one layer each" if config.site == "resid_post" else f"window of {count(config.window, 'layer')}"
    parts = [
        trace.model + (f" with {count(len(trace.edits), 'edit')}" if trace.edits else ""),
        f"“{trace.prompt.text}” → “{show_token(trace.answer)}”",
        f"{window}, {count(config.samples, 'noise draw')} of {config.noise_scale:g} σ ({config.noise_from})",
        f"seed {config.seed}",
    ]
    return " · ".join(parts)


# ---------------------------------------------------------------------------------------------------------- heat maps


def trace_heatmap(
    trace: Trace,
    vmin: float,
    vmax: float,
    dark: bool = False,
    preview: Trace | None = None,
    picked: tuple[int, int] | None = None,
) -> go.Figure:
    """One kind's heat map, tokens by layers. Cells that are only previewed are veiled; `picked` is outlined.

    Plotly's heat maps report no clicks in Streamlit: an invisible marker on every cell does, and carries the hover.
    """
    exact = scores(trace)
    approximate = np.isnan(exact)
    if preview is not None:
        exact = np.where(approximate, scores(preview), exact)
    if trace.approximate:
        approximate[trace.subject[0] :] = True
    look = theme(dark)
    fig = go.Figure()
    fig.add_heatmap(
        z=exact,
        zmin=vmin,
        zmax=vmax,
        colorscale=colour_scale(trace.config.site, dark),
        colorbar=_colour_bar(trace, vmin, vmax, look),
        hoverinfo="skip",
    )
    veiled = approximate & ~np.isnan(exact)
    if veiled.any():
        veil = np.where(veiled, 1.0, np.nan)
        fig.add_heatmap(z=veil, colorscale=[[0, look.veil], [1, look.veil]], showscale=False, hoverinfo="skip")
    fig.add_scatter(**_overlay(trace, exact, approximate))
    if picked:
        _outline(fig, picked, look)
    _layout(fig, trace, look)
    return fig


def _overlay(trace: Trace, values: np.ndarray, approximate: np.ndarray) -> dict[str, object]:
    cells = [(int(i), int(j)) for i, j in np.argwhere(~np.isnan(values))]
    nothing = {"marker": {"opacity": 0}}
    return {
        "x": [layer for _, layer in cells],
        "y": [token for token, _ in cells],
        "text": [hover(trace, i, j, float(values[i, j]), bool(approximate[i, j])) for i, j in cells],
        "hovertemplate": "%{text}<extra></extra>",
        "mode": "markers",
        "marker": {"size": 18, "symbol": "square", "opacity": 0, "color": COLOURS[trace.config.site]},
        "selected": nothing,
        "unselected": nothing,
        "showlegend": False,
    }


def hover(trace: Trace, token: int, layer: int, value: float, approximate: bool) -> str:
    """What a cell says: token, layers, value with its spread, effect, share of the gap."""
    first, last = restored_layers(trace, layer)
    where = f"layer {layer}" if first == last else f"layers {first}–{last} (centre {layer})"
    effect = value - trace.corrupted_score
    gap = trace.clean_score - trace.corrupted_score
    name = safe(trace.labels[token])
    lines = [f"<b>{name}</b> (token {token}) · {where}", f"{metric_name(trace)} = {number(value)}"]
    if approximate:
        lines[1] += ", approximate"
    elif trace.config.metric == "p":
        lines[1] += f" ± {number(float(trace.spread[token, layer]))} over the draws"
    else:
        lines.append(f"p = {number(float(trace.probabilities[token, layer]))}")
    lines.append(f"indirect effect {effect:+.3g}" + (f", {effect / gap:.0%} of the gap" if gap else ""))
    return "<br>".join(lines)


def _colour_bar(trace: Trace, vmin: float, vmax: float, look: Theme) -> dict[str, object]:
    clean, corrupted = trace.clean_score, trace.corrupted_score
    marks = {vmin: number(vmin), vmax: number(vmax), (vmin + vmax) / 2: number((vmin + vmax) / 2)}
    for value, word in ((corrupted, "corrupted"), (clean, "clean")):
        if vmin <= value <= vmax:
            marks = {at: label for at, label in marks.items() if abs(at - value) > 0.12 * (vmax - vmin)}
            marks[value] = f"{number(value)} {word}"
    return {
        "thickness": 12,
        "outlinewidth": 0,
        "ticks": "outside",
        "ticklen": 4,
        "tickvals": list(marks),
        "ticktext": list(marks.values()),
        "tickfont": {"color": look.ink, "size": 12},
        "title": {"text": metric_name(trace), "font": {"color": look.ink, "size": 12}},
        "len": 1,
        "xpad": 8,
    }


def _outline(fig: go.Figure, cell: tuple[int, int], look: Theme) -> None:
    token, layer = cell
    corners = {"x0": layer - 0.5, "x1": layer + 0.5, "y0": token - 0.5, "y1": token + 0.5}
    fig.add_shape(type="rect", **corners, line={"color": look.ink, "width": 2})


def token_labels(trace: Trace) -> list[str]:
    """Tokens for an axis: visible spaces, a star on those of the subject."""
    first, stop = trace.subject
    shown = (t if len(t) <= LABEL_LENGTH else t[: LABEL_LENGTH - 1] + "…" for t in trace.labels)
    return [safe(t) + ("*" if first <= i < stop else "") for i, t in enumerate(shown)]


def _token_axis(trace: Trace, look: Theme) -> dict[str, object]:
    """One row a token, the first on top. Numbered, because equal tokens used as categories would be merged."""
    n = len(trace.labels)
    font = {"family": MONO, "size": 13, "color": look.ink}
    rows = {"range": [n - 0.5, -0.5], "tickvals": list(range(n)), "ticktext": token_labels(trace)}
    return _axis(look) | rows | {"tickfont": font}


def _label_width(trace: Trace) -> int:
    """Pixels that the token labels need, star and gap included."""
    return 24 + 8 * min(LABEL_LENGTH, max(len(label) for label in trace.labels))


def heatmap_title(trace: Trace) -> str:
    """What the heat map shows, or asks while it is not finished."""
    kind = KINDS[trace.config.site]
    if trace.approximate or not trace.complete:
        return f"{kind}: which state brings {safe(trace.answer)} back?"
    token, layer = peak(trace)
    value = trace.corrupted_score + float(trace.indirect_effect[token, layer])
    return f"{kind}: ‘{safe(trace.labels[token])}’ at layer {layer} restores {trace.config.metric} to {number(value)}"


def _layout(fig: go.Figure, trace: Trace, look: Theme) -> None:
    n_tokens, n_layers = trace.indirect_effect.shape
    row = ROW if n_tokens <= 30 else 16
    single = trace.config.site == "resid_post" or trace.config.window == 1
    fig.update_xaxes(
        range=[-0.5, n_layers - 0.5],
        dtick=1 if n_layers <= 16 else 5,
        title="restored layer" if single else f"centre of the {trace.config.window} restored layers",
        **_axis(look),
    )
    fig.update_yaxes(**_token_axis(trace, look))
    frame(fig, heatmap_title(trace), caption(trace), n_tokens * row, look, _label_width(trace))
    fig.update_layout(clickmode="event+select", dragmode=False, hovermode="closest", plot_bgcolor=look.empty)


# ---------------------------------------------------------------------------------------------------------- marginals


def trace_marginals(traces: Mapping[str, Trace], dark: bool = False) -> go.Figure:
    """The strongest effect in every layer and at every token, the three kinds together."""
    look, one = theme(dark), next(iter(traces.values()))
    fig = make_subplots(1, 2, horizontal_spacing=0.2, column_widths=[0.6, 0.4])
    for site, trace in traces.items():
        effects = trace.indirect_effect.double().nan_to_num(nan=-np.inf).cpu().numpy()
        style = {"name": KINDS[site], "legendgroup": site, "marker": {"color": COLOURS[site], "size": 6}}
        style |= {"line": {"color": COLOURS[site], "width": 2}, "mode": "lines+markers"}
        fig.add_scatter(y=_finite(effects.max(0)), **style, row=1, col=1)
        tokens = list(range(len(effects)))
        fig.add_scatter(x=_finite(effects.max(1)), y=tokens, showlegend=False, **style, row=1, col=2)
    grid = {"showgrid": True, "gridcolor": look.rule}
    effect = f"indirect effect, {metric_name(one)}"
    fig.update_xaxes(title="layer (strongest token)", **_axis(look), row=1, col=1)
    fig.update_xaxes(title=effect, **_axis(look) | grid, row=1, col=2)
    fig.update_yaxes(title=effect, **_axis(look) | grid, row=1, col=1)
    fig.update_yaxes(**_token_axis(one, look), row=1, col=2)
    frame(fig, _marginal_title(traces), caption(list(traces.values())[-1]), 260, look, left=60)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": look.ink}}
    fig.update_layout(legend=legend, hovermode="closest", dragmode=False, margin_t=MARGIN_TOP + 26)
    return fig


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _marginal_title(traces: Mapping[str, Trace]) -> str:
    if not all(trace.complete and not trace.approximate for trace in traces.values()):
        return "In which layers, at which tokens is the effect?"
    layers = (f"{KINDS[site]} {peak(trace)[1]}" for site, trace in traces.items() if site != "resid_post")
    return "Strongest layer: " + ", ".join(layers)


# --------------------------------------------------------------------------------------------------------------- look


def _axis(look: Theme) -> dict[str, object]:
    return {
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "linecolor": look.rule,
        "tickfont": {"color": look.ink, "size": 12},
        "title_font": {"color": look.grey, "size": 13},
        "title_standoff": 6,
    }


def frame(fig: go.Figure, title: str, caption_text: str, height: int, look: Theme, left: int) -> None:
    """Title above, caption below, margins in between: the same on every figure."""
    lines = textwrap.wrap(caption_text, CAPTION_WIDTH)
    bottom = MARGIN_BOTTOM - 15 + 15 * len(lines)
    fig.update_layout(
        title={
            "text": title,
            "x": 0,
            "xref": "container",
            "font": {"size": 16, "color": look.ink},
            "y": 0.98,
            "yanchor": "top",
        },
        height=height + MARGIN_TOP + bottom,
        margin={"l": left, "r": 8, "t": MARGIN_TOP, "b": bottom},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "'Source Sans', 'Source Sans Pro', sans-serif", "color": look.ink},
        hoverlabel={"align": "left", "font": {"family": "'Source Sans', sans-serif", "size": 13}},
        annotations=[
            {
                "text": "<br>".join(html.escape(line, quote=False) for line in lines),
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": 0,
                "yref": "paper",
                "yanchor": "top",
                "xshift": -left,
                "yshift": -48,
                "align": "left",
                "showarrow": False,
                "font": {"size": 12, "color": look.grey},
            }
        ],
    )


def colour_range(trace: Trace) -> tuple[float, float]:
    """One scale for all kinds: from the corrupted to the clean value."""
    low, high = sorted((trace.corrupted_score, trace.clean_score))
    return (low, high) if high > low else (low, low + 1e-6)
