"""How figures look on every page: one palette, one light and one dark theme, one frame. Pure: no streamlit in here.

The paper's colours (Meng et al. 2022, figure 1): residual stream purple, MLP green, attention red. Before an edit is
grey-blue, after it is amber; everything else is ink or grey.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

SITE_COLOURS = {"resid_post": "#6A51A3", "mlp_out": "#238B45", "attn_out": "#CB181D"}
BEFORE, AFTER = "#5B7083", "#D9822B"
MONO = "'Source Code Pro', 'DejaVu Sans Mono', Menlo, Consolas, monospace"
SANS = "'Source Sans', 'Source Sans Pro', sans-serif"
ROW = 24  # px: a line of text in a figure, as a token's row in a heat map
CAPTION_WIDTH = 78  # characters: fits the narrowest page
TITLE_LINE, LEGEND_ROW, HEADING, CAPTION_LINE = 22, 22, 24, 15  # px
ABOVE_TITLE, BELOW_PLOT = 12, 77  # px: below the plot are tick labels and an axis title, then the caption


@dataclass(frozen=True)
class Theme:
    """Neutral colours of a light or a dark page, and both ends of a scale of a site's colour."""

    paper: str  # the page's own ground: a saved figure has it, too, and can be read wherever it is put
    ink: str
    grey: str
    rule: str
    empty: str
    faint: str  # a scale's lower end
    strong: dict[str, str]  # its upper end, by site


LIGHT = Theme(
    *("#FFFFFF", "#1F2933", "#66717E", "#D5DAE0", "#EEF0F3"),
    faint="",
    strong={"resid_post": "Purples", "mlp_out": "Greens", "attn_out": "Reds"},  # plotly's own scales, from white
)
DARK = Theme(
    *("#14181D", "#E6E9ED", "#A3ADB8", "#3A424D", "#262B33"),
    faint="#171B22",
    strong={"resid_post": "#C4B8E8", "mlp_out": "#8FD6A5", "attn_out": "#F5A08E"},
)


def colour_scale(site: str, theme: Theme) -> object:
    """From what can hardly be told from the ground to the strongest shade of a site's colour."""
    if not theme.faint:
        return theme.strong[site]
    return [[0, theme.faint], [0.5, SITE_COLOURS[site]], [1, theme.strong[site]]]


def colour_bar(theme: Theme, marks: Mapping[float, str] | None = None) -> dict[str, object]:
    """The legend of a scale. marks: the values that are named, with what they are called."""
    look = {"thickness": 12, "outlinewidth": 0, "xpad": 8, "tickfont": {"color": theme.ink, "size": 12}}
    if marks is None:
        return look
    return {**look, "ticks": "outside", "ticklen": 4, "tickvals": list(marks), "ticktext": list(marks.values())}


def layer_axis(n_layers: int) -> dict[str, object]:
    """All layers of a model, every one of them named where there is room."""
    return {"range": [-0.5, n_layers - 0.5], "dtick": 1 if n_layers <= 16 else 5, "showticklabels": True}


def log_ticks(low: float, high: float) -> dict[str, object]:
    """Marks of a logarithmic axis from 10^low to 10^high, all written in one way: powers of ten, more where few fit."""
    digits = (1,) if high - low >= 2 else (1, 2, 5)
    marks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    return {"tickvals": marks, "ticktext": [f"{mark:,.12g}" if mark >= 1e-4 else f"{mark:.0e}" for mark in marks]}


def frame_figure(
    fig: go.Figure,
    title: str,
    caption: str,
    height: int,
    theme: Theme,
    *,
    left: int = 44,
    legend_rows: int = 0,
    grid: Literal["", "x", "y", "xy"] = "y",
) -> go.Figure:
    """Give a figure what all have: the finding as its title, its conditions as caption, axes, and margins for both.

    title: plain text; a line break begins its second line.
    height: of the plots, px; left: room for tick labels and axis title, px.
    legend_rows: how many the legend needs below the title on the narrowest page.
    grid: the axes that have grid lines.

    What is annotated already counts as headings above the plots. What differs on one axis is set after this.
    """
    headings = [_heading(annotation, theme) for annotation in fig.layout.annotations]
    fig.layout.annotations = ()  # plotly would merge the caption into the first of them
    title_bottom = ABOVE_TITLE + TITLE_LINE * (title.count("\n") + 1)
    top = title_bottom + 12 + LEGEND_ROW * legend_rows + HEADING * bool(headings)
    lines = textwrap.wrap(caption, CAPTION_WIDTH)
    bottom = BELOW_PLOT + CAPTION_LINE * len(lines)
    total = height + top + bottom
    fig.update_layout(
        title={
            "text": html.escape(title, quote=False).replace("\n", "<br>"),
            "x": 0,
            "xref": "container",
            "y": 1 - ABOVE_TITLE / total,
            "yref": "container",
            "yanchor": "top",
            "font": {"size": 16, "color": theme.ink},
        },
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1 - title_bottom / total,
            "yref": "container",
            "yanchor": "top",
            "traceorder": "normal",
            "font": {"color": theme.ink, "size": 12},
        },
        height=total,
        margin={"l": left, "r": 16, "t": top, "b": bottom},
        paper_bgcolor=theme.paper,
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": SANS, "color": theme.ink},
        hoverlabel={"align": "left", "font": {"family": SANS, "size": 13}},
        dragmode=False,
        annotations=[_caption(lines, left, theme), *headings],
    )
    for letter, update_axes in (("x", fig.update_xaxes), ("y", fig.update_yaxes)):
        update_axes(showgrid=letter in grid, gridcolor=theme.rule, zeroline=False, linecolor=theme.rule, ticks="")
        update_axes(tickfont={"color": theme.ink, "size": 12}, title_font={"color": theme.grey, "size": 13})
        update_axes(title_standoff=6, automargin=False)
    return fig


def _heading(annotation: go.layout.Annotation, theme: Theme) -> dict[str, object]:
    """What stands above a plot, in its own colour if it has one."""
    coloured = annotation.font.color is not None
    return annotation.to_plotly_json() | ({} if coloured else {"font": {"size": 13, "color": theme.ink}})


def _caption(lines: list[str], left: int, theme: Theme) -> dict[str, object]:
    return {
        "text": "<br>".join(html.escape(line, quote=False) for line in lines),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "xshift": -left,
        "y": 0,
        "yref": "paper",
        "yanchor": "top",
        "yshift": -48,
        "align": "left",
        "showarrow": False,
        "font": {"size": 12, "color": theme.grey},
    }
