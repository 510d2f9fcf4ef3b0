"""The frame of every figure: what it says stands apart, whatever the figure brings with it."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from pages.shared.style import DARK, LIGHT, Theme, colour_scale, frame_figure

CAPTION = "a model · a prompt · some settings · " * 6


@pytest.mark.parametrize(
    ("title", "legend_rows", "panels"), [("one line", 0, ()), ("two\nlines", 1, ("left", "right")), ("one", 3, ())]
)
def test_title_legend_headings_plots_and_caption_do_not_overlap(
    title: str, legend_rows: int, panels: tuple[str, ...]
) -> None:
    fig = make_subplots(1, max(1, len(panels)), subplot_titles=panels or None)

    layout = frame_figure(fig, title, CAPTION, 300, LIGHT, left=60, legend_rows=legend_rows).layout

    assert layout.height - layout.margin.t - layout.margin.b == 300
    title_top, legend_top = ((1 - at) * layout.height for at in (layout.title.y, layout.legend.y))
    lines = layout.title.text.count("<br>") + 1
    assert title_top + lines * 16 < legend_top, "letters are 16 px high"
    headings = 13 * bool(panels)
    assert legend_top + legend_rows * 20 + headings < layout.margin.t
    caption, *above = layout.annotations
    assert caption.text.replace("<br>", " ") == CAPTION.strip()
    assert 48 + 12 * (caption.text.count("<br>") + 1) < layout.margin.b
    assert [(heading.text, heading.font.size) for heading in above] == [(panel, 13) for panel in panels]


def test_user_text_is_no_markup_and_a_heading_keeps_its_colour() -> None:
    fig = go.Figure().add_annotation(text="this edit", font={"color": "#123456", "size": 20})

    layout = frame_figure(fig, "p(<b>)\nx", "<i>", 100, DARK).layout

    assert layout.title.text == "p(&lt;b&gt;)<br>x"
    assert layout.annotations[0].text == "&lt;i&gt;"
    assert (layout.annotations[1].font.color, layout.annotations[1].font.size) == ("#123456", 20)


@pytest.mark.parametrize("grid", ["", "y", "xy"])
def test_grid_lines_only_where_they_are_asked_for(grid: str) -> None:
    layout = frame_figure(make_subplots(1, 1), "t", "c", 100, LIGHT, grid=grid).layout  # type: ignore[arg-type]

    assert (layout.xaxis.showgrid, layout.yaxis.showgrid) == ("x" in grid, "y" in grid)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_a_scale_of_each_site_is_one_that_plotly_draws(theme: Theme) -> None:
    for site in ("resid_post", "mlp_out", "attn_out"):
        go.Heatmap(z=[[0, 1]], colorscale=colour_scale(site, theme))
