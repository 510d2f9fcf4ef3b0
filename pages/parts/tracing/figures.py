"""Results of causal tracing as figures: a trace in, a plotly figure out. Nothing that a trace holds is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import LIGHT, MONO, ROW, SITE_COLOURS, Theme, colour_bar, colour_scale, frame_figure, layer_axis
from pages.shared.text import count, escape_token, number, show_token
from rome_core import Trace
from rome_core.tracing.heat_map import peak, restored_layers
from rome_core.tracing.runs import KINDS

LABEL_LENGTH = 16  # characters of a token on an axis
MANY = 30  # tokens; a longer prompt has lower rows


def scores(trace: Trace) -> np.ndarray:
    """The heat map in the config's metric: corrupted value + indirect effect, [pos, layer]."""
    return trace.corrupted_score + trace.indirect_effect.cpu().double().numpy()


def metric_name(trace: Trace) -> str:
    answer = escape_token(trace.answer)
    if trace.config.metric == "logit difference":
        return f"logit {answer} − {escape_token(trace.foil or '')}"
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


def caption_without_window(trace: Trace) -> str:
    """The conditions of a further study of a trace: windows play no part in it."""
    parts = caption(replace(trace, config=replace(trace.config, site="resid_post"))).split(" · ")
    return " · ".join(part.removeprefix("one layer each, ") for part in parts)


# ---------------------------------------------------------------------------------------------------------- heat maps


def trace_heatmap(
    trace: Trace,
    vmin: float,
    vmax: float,
    theme: Theme = LIGHT,
    picked: tuple[int, int] | None = None,
) -> go.Figure:
    """One kind's heat map, tokens by layers. Estimates of a preview are dotted; `picked` is outlined.

    Plotly's heat maps report no clicks in Streamlit: an invisible marker on every cell does, and carries the hover.
    """
    values, estimated = scores(trace), estimates(trace)
    fig = go.Figure()
    fig.add_heatmap(
        z=values,
        zmin=vmin,
        zmax=vmax,
        colorscale=colour_scale(trace.config.site, theme),
        colorbar=_colour_bar(trace, vmin, vmax, theme),
        hoverinfo="skip",
    )
    if estimated.any():
        y, x = np.nonzero(estimated)
        dot = {"size": 3, "color": theme.grey, "opacity": 0.6}
        fig.add_scatter(x=x, y=y, mode="markers", marker=dot, showlegend=False, hoverinfo="skip")
    fig.add_scatter(**_overlay(trace, values, estimated))
    _layout(fig, trace, theme)
    if picked:
        _outline(fig, picked, theme)
    return fig


def estimates(trace: Trace) -> np.ndarray:
    """Which cells hold a value that is only estimated, [pos, layer]."""
    estimated = ~(trace.exact | trace.indirect_effect.isnan()).cpu().numpy()
    estimated[: trace.subject[0]] = False  # nothing there can differ from the corrupted run
    return estimated


def _overlay(trace: Trace, values: np.ndarray, estimated: np.ndarray) -> dict[str, object]:
    cells = [(int(i), int(j)) for i, j in np.argwhere(~np.isnan(values))]
    nothing = {"marker": {"opacity": 0}}
    return {
        "x": [layer for _, layer in cells],
        "y": [token for token, _ in cells],
        "text": [hover(trace, i, j, float(values[i, j]), bool(estimated[i, j])) for i, j in cells],
        "hovertemplate": "%{text}<extra></extra>",
        "mode": "markers",
        "marker": {"size": 18, "symbol": "square", "opacity": 0, "color": SITE_COLOURS[trace.config.site]},
        "selected": nothing,
        "unselected": nothing,
        "showlegend": False,
    }


def hover(trace: Trace, token: int, layer: int, value: float, estimated: bool) -> str:
    """What a cell says: token, layers, value with its spread, effect, share of the gap."""
    first, last = restored_layers(trace, layer)
    where = f"layer {layer}" if first == last else f"layers {first}–{last} (centre {layer})"
    effect = value - trace.corrupted_score
    gap = trace.clean_score - trace.corrupted_score
    name = escape_token(trace.labels[token])
    lines = [f"<b>{name}</b> (token {token}) · {where}", f"{metric_name(trace)} = {number(value)}"]
    if estimated:
        lines[1] += ", estimated"
    elif trace.config.metric == "p":
        lines[1] += f" ± {number(float(trace.spread[token, layer]))} over the draws"
    else:
        lines.append(f"p = {number(float(trace.probabilities[token, layer]))}")
    lines.append(f"indirect effect {effect:+.3g}" + (f", {effect / gap:.0%} of the gap" if gap else ""))
    return "<br>".join(lines)


def _colour_bar(trace: Trace, vmin: float, vmax: float, theme: Theme) -> dict[str, object]:
    clean, corrupted = trace.clean_score, trace.corrupted_score
    marks = {vmin: number(vmin), vmax: number(vmax), (vmin + vmax) / 2: number((vmin + vmax) / 2)}
    for value, word in ((corrupted, "corrupted"), (clean, "clean")):
        if vmin <= value <= vmax:
            marks = {at: label for at, label in marks.items() if abs(at - value) > 0.12 * (vmax - vmin)}
            marks[value] = f"{number(value)} {word}"
    title = {"text": metric_name(trace), "font": {"color": theme.ink, "size": 12}}
    return colour_bar(theme, marks) | {"title": title, "len": 1}


def _outline(fig: go.Figure, cell: tuple[int, int], theme: Theme) -> None:
    token, layer = cell
    corners = {"x0": layer - 0.5, "x1": layer + 0.5, "y0": token - 0.5, "y1": token + 0.5}
    fig.add_shape(type="rect", **corners, line={"color": theme.ink, "width": 2})


def token_labels(trace: Trace) -> list[str]:
    """Tokens for an axis: visible spaces, a star on those of the subject."""
    first, stop = trace.subject
    short = (t if len(t) <= LABEL_LENGTH else t[: LABEL_LENGTH - 1] + "…" for t in trace.labels)
    return [escape_token(t) + ("*" if first <= i < stop else "") for i, t in enumerate(short)]


def _token_axis(trace: Trace, theme: Theme) -> dict[str, object]:
    """One row a token, the first on top. Numbered, because equal tokens used as categories would be merged."""
    n = len(trace.labels)
    font = {"family": MONO, "size": 13, "color": theme.ink}
    rows = {"range": [n - 0.5, -0.5], "tickvals": list(range(n)), "ticktext": token_labels(trace)}
    return {**rows, "tickfont": font, "showgrid": False}


def _label_width(trace: Trace) -> int:
    """Pixels that the token labels need, star and gap included."""
    return 24 + 8 * min(LABEL_LENGTH, max(len(label) for label in trace.labels))


def heatmap_title(trace: Trace) -> str:
    """What the heat map shows, or asks while it is not finished."""
    kind = KINDS[trace.config.site]
    if not trace.complete:
        return f"{kind}: which state brings {show_token(trace.answer)} back?"
    token, layer = peak(trace)
    value = trace.corrupted_score + float(trace.indirect_effect[token, layer])
    where = f"‘{show_token(trace.labels[token])}’ at layer {layer}"
    return f"{kind}: {where} restores {trace.config.metric} to {number(value)}"


def _layout(fig: go.Figure, trace: Trace, theme: Theme) -> None:
    n_tokens, n_layers = trace.indirect_effect.shape
    row = ROW if n_tokens <= MANY else 16
    height, left = n_tokens * row, _label_width(trace)
    frame_figure(fig, heatmap_title(trace), caption(trace), height, theme, left=left, grid="")
    single = trace.config.site == "resid_post" or trace.config.window == 1
    title = "restored layer" if single else f"centre of the {trace.config.window} restored layers"
    fig.update_xaxes(title_text=title, **layer_axis(n_layers))
    fig.update_yaxes(**_token_axis(trace, theme))
    fig.update_layout(clickmode="event+select", hovermode="closest", plot_bgcolor=theme.empty)


# ---------------------------------------------------------------------------------------------------------- marginals


def trace_marginals(traces: Mapping[str, Trace], theme: Theme = LIGHT) -> go.Figure:
    """The strongest effect in every layer and at every token, the kinds together. Takes finished heat maps only."""
    last = list(traces.values())[-1]
    fig = make_subplots(1, 2, horizontal_spacing=0.2, column_widths=[0.6, 0.4])
    for site, trace in traces.items():
        effects = trace.indirect_effect.double().nan_to_num(nan=-np.inf).cpu().numpy()
        style = {"name": KINDS[site], "legendgroup": site, "marker": {"color": SITE_COLOURS[site], "size": 6}}
        style |= {"line": {"color": SITE_COLOURS[site], "width": 2}, "mode": "lines+markers"}
        fig.add_scatter(y=finite(effects.max(0)), **style, row=1, col=1)
        tokens = list(range(len(effects)))
        fig.add_scatter(x=finite(effects.max(1)), y=tokens, showlegend=False, **style, row=1, col=2)
    frame_figure(fig, _marginal_title(traces), caption(last), 260, theme, left=60, legend_rows=1)
    effect = f"indirect effect, {metric_name(last)}"
    fig.update_xaxes(title_text="layer (strongest token)", row=1, col=1)
    fig.update_xaxes(title_text=effect, showgrid=True, row=1, col=2)
    fig.update_yaxes(title_text=effect, row=1, col=1)
    fig.update_yaxes(**_token_axis(last, theme), row=1, col=2)
    return fig.update_layout(hovermode="closest")


def finite(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _marginal_title(traces: Mapping[str, Trace]) -> str:
    layers = [f"{KINDS[site]} {peak(trace)[1]}" for site, trace in traces.items() if site != "resid_post"]
    if len(layers) < len(KINDS) - 1:
        return "In which layers, at which tokens is the effect?"
    return "Strongest layer: " + ", ".join(layers)


def colour_range(trace: Trace) -> tuple[float, float]:
    """One scale for all kinds: from the corrupted to the clean value."""
    low, high = sorted((trace.corrupted_score, trace.clean_score))
    return (low, high) if high > low else (low, low + 1e-6)
