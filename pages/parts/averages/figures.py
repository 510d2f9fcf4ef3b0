"""Average effects as figures (Meng et al. 2022, figures 2 and 7): averages in, a plotly figure out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import LIGHT, ROW, SITE_COLOURS, Theme, colour_bar, colour_scale, frame_figure, layer_axis
from pages.shared.text import count, number
from pages.shared.winners import contenders
from rome_core.evaluation import Score
from rome_core.tracing.average_records import About
from rome_core.tracing.averages import GROUPS, AverageEffect, Averages
from rome_core.tracing.runs import KINDS, SITES

SITES_OF_INTEREST = ("last subject token", "first subsequent token", "last token")
LABEL_WIDTH = 164  # px, of the token groups
GAP = 46  # px between two panels
PANEL = 150  # px, height of a line plot
LAYERS = "layer (centre of the window for MLP and attention)"


def caption(averages: Averages, about: About) -> str:
    """Model, facts, settings and seeds in one line."""
    parts = [about.model or "model not told", f"{count(averages.n, 'fact')} that it knows"]
    if about.edits:
        parts[0] += f" with {count(len(about.edits), 'edit')}"
    if config := about.config:
        parts += [
            f"MLP and attention over a window of {count(config.window, 'layer')}",
            f"{count(config.samples, 'noise draw')} of {config.noise_scale:g} σ ({config.noise_from})",
            f"noise seed {config.seed}",
        ]
    else:
        parts.append("settings not told")
    if about.order_seed is not None:
        parts.append(f"order seed {about.order_seed}")
    return " · ".join(parts)


def effect_name(about: About) -> str:
    metric = about.config.metric if about.config else "p"
    return f"AIE in {metric}(answer)"


def strongest(averages: Averages, site: str) -> tuple[str, int, float]:
    """Token group, layer and size of the largest average effect. Of the residual stream within the subject only: at
    the last token its last layer is the answer itself."""
    mean = np.nan_to_num(averages.effects[site].mean, nan=-np.inf)
    if site == "resid_post":
        mean = mean[:3]
    group, layer = (int(i) for i in np.unravel_index(mean.argmax(), mean.shape))
    return GROUPS[group], layer, float(mean[group, layer])


def heatmap_title(averages: Averages) -> str:
    """The finding, in two short lines."""
    if not averages.n:
        return "Where do facts live on average?"
    return "\n".join(f"{KINDS[site]}: {_peak(averages, site)}" for site in ("mlp_out", "attn_out"))


def _peak(averages: Averages, site: str) -> str:
    """Where the strongest effect is: the token group where its interval stands above all others', and the layers that
    cannot be told from the best one."""
    effect, (group, layer, value) = averages.effects[site], strongest(averages, site)
    cells = {
        (name, at): _score(effect, row, at, averages.n)
        for row, name in enumerate(GROUPS)
        for at in range(effect.mean.shape[1])
    }
    alike = contenders(cells)
    if any(name != group for name, _ in alike):
        return f"no token is clearly the strongest (at most {number(value)}, at the {group}, layer {layer})"
    layers = sorted(at for _, at in alike)
    span = f"layer {layer}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}"
    return f"strongest at the {group}, {span} (up to {number(value)})"


def average_heatmaps(
    averages: Averages, about: About, theme: Theme = LIGHT, scale: Literal["one", "own"] = "one"
) -> go.Figure:
    """AIE of six token groups × layers: residual stream, MLP, attention, one above the other. Below 0 is drawn as 0.

    scale: one for all three, or each its own.
    """
    effects = averages.effects
    height = 3 * len(GROUPS) * ROW + 2 * GAP
    fig = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=GAP / height)
    tops = {site: _top(effect.mean) for site, effect in effects.items()}
    if scale == "one":
        tops = dict.fromkeys(tops, max(tops.values()))
    for row, site in enumerate(SITES, 1):
        mean, low, high = effects[site].mean, effects[site].low, effects[site].high
        fig.add_heatmap(
            z=mean,
            zmin=0,
            zmax=tops[site],
            colorscale=colour_scale(site, theme),
            colorbar=_colour_bar(tops[site], row, height, theme),
            customdata=np.dstack([low, high]),
            text=np.broadcast_to(np.array(GROUPS)[:, None], mean.shape),
            hovertemplate=(
                f"<b>{KINDS[site]}</b> · %{{text}} · layer %{{x}}<br>AIE %{{z:.3g}}"
                "<br>95 % interval %{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>"
            ),
            row=row,
            col=1,
        )
    _add_headings(fig, [KINDS[site] for site in SITES], theme, x=-LABEL_WIDTH)
    conditions = caption(averages, about)
    frame_figure(fig, heatmap_title(averages), conditions, height, theme, left=LABEL_WIDTH, grid="")
    fig.update_xaxes(**layer_axis(mean.shape[1]))
    fig.update_xaxes(title_text=LAYERS, row=3, col=1)
    rows = list(range(len(GROUPS)))
    fig.update_yaxes(range=[len(GROUPS) - 0.5, -0.5], tickvals=rows, ticktext=list(GROUPS))
    return fig.update_layout(plot_bgcolor=theme.empty)


def _top(mean: np.ndarray) -> float:
    """The upper end of a colour scale."""
    return max(float(np.nan_to_num(mean).max()), 1e-6)


def _colour_bar(top: float, row: int, height: int, theme: Theme) -> dict[str, object]:
    share = len(GROUPS) * ROW / height
    middle = 1 - share / 2 - (row - 1) * (share + GAP / height)
    marks = {0.0: "≤ 0", top / 2: number(top / 2), top: number(top)}
    return colour_bar(theme, marks) | {"y": middle, "len": share, "lenmode": "fraction"}


def average_curves(averages: Averages, about: About, theme: Theme = LIGHT) -> go.Figure:
    """AIE by layer of the three kinds, with 95 % bootstrap bands, at the tokens where something happens."""
    effects = averages.effects
    n = len(SITES_OF_INTEREST)
    height = n * PANEL + (n - 1) * GAP
    fig = make_subplots(n, 1, shared_xaxes=True, vertical_spacing=GAP / height)
    for row, group in enumerate(SITES_OF_INTEREST, 1):
        at = GROUPS.index(group)
        for site in SITES:
            effect = effects[site]
            x = list(range(effect.mean.shape[1]))
            for trace in _banded(x, effect.mean[at], effect.low[at], effect.high[at], site, row == 1):
                fig.add_trace(trace, row=row, col=1)
    _add_headings(fig, [f"At the {group}" for group in SITES_OF_INTEREST], theme, x=0)
    conditions = caption(averages, about) + " · bands: 95 % bootstrap"
    frame_figure(fig, _curve_title(averages), conditions, height, theme, left=64, legend_rows=1)
    fig.update_xaxes(**layer_axis(len(x)))
    fig.update_xaxes(title_text=LAYERS, row=n, col=1)
    zero = {"zeroline": True, "zerolinecolor": theme.grey}
    fig.update_yaxes(**zero, nticks=5, range=_limits(averages), title_text=effect_name(about))
    return fig.update_layout(hovermode="x unified", hoverlabel_bgcolor=theme.empty)


def _limits(averages: Averages) -> list[float]:
    """One vertical range for all panels, so that what is small looks small."""
    rows = [GROUPS.index(group) for group in SITES_OF_INTEREST]
    ends = [values[rows] for e in averages.effects.values() for values in (e.low, e.high, e.mean)]
    low, high = min(0.0, float(np.nanmin(ends))), max(0.0, float(np.nanmax(ends)))
    margin = 0.05 * (high - low) or 1e-6
    return [low - margin, high + margin]


def _banded(
    x: Sequence[int], mean: np.ndarray, low: np.ndarray, high: np.ndarray, site: str, legend: bool
) -> list[go.Scatter]:
    """A line over its interval."""
    there = ~np.isnan(mean)
    xs = [i for i, ok in zip(x, there, strict=True) if ok]
    colour = SITE_COLOURS[site]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    band = go.Scatter(
        x=[*xs, *xs[::-1]],
        y=[*high[there], *low[there][::-1]],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=site,
        showlegend=False,
    )
    line = go.Scatter(
        x=xs,
        y=mean[there],
        name=KINDS[site],
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 5},
        customdata=np.stack([low[there], high[there]], -1),
        hovertemplate="%{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})",
        legendgroup=site,
        showlegend=legend,
    )
    return [band, line]


def _curve_title(averages: Averages) -> str:
    """Which of MLP and attention weighs more at the two sites, where their intervals tell."""
    lines = []
    for group in ("last subject token", "last token"):
        row, peaks = GROUPS.index(group), {}
        for site in ("mlp_out", "attn_out"):
            effect = averages.effects[site]
            at = int(np.nan_to_num(effect.mean[row]).argmax())
            peaks[site] = _score(effect, row, at, averages.n)
        more, less = sorted(peaks, key=lambda site: peaks[site].value, reverse=True)
        sizes = f"{number(peaks[more].value)} against {number(peaks[less].value)}"
        apart = len(contenders(peaks)) == 1
        told = f"{_word(more)} above {_word(less)}" if apart else "MLP and attention cannot be told apart"
        lines.append(f"{group.capitalize()}: {told}, {sizes}")
    return "\n".join(lines)


def _score(effect: AverageEffect, row: int, at: int, n: int) -> Score:
    """One cell with its interval; what was not measured counts as nothing."""
    mean, low, high = (float(np.nan_to_num(values[row, at])) for values in (effect.mean, effect.low, effect.high))
    return Score(mean, low, high, n)


def _word(site: str) -> str:
    return KINDS[site] if site == "mlp_out" else KINDS[site].lower()


def _add_headings(fig: go.Figure, titles: Sequence[str], theme: Theme, x: int) -> None:
    """A small heading above each panel, `x` pixels from the plot's left edge."""
    for i, title in enumerate(titles, 1):
        axis = fig.layout[f"yaxis{i if i > 1 else ''}"]
        fig.add_annotation(
            text=f"<b>{title}</b>",
            x=0,
            xref="paper",
            xshift=x,
            xanchor="left",
            y=axis.domain[1],
            yref="paper",
            yanchor="bottom",
            yshift=3,
            showarrow=False,
            font={"size": 13, "color": theme.ink},
        )
