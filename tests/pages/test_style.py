"""The frame of every figure: what it says stands apart, whatever the figure brings with it."""

from __future__ import annotations

import tomllib
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from pages.shared.style import DARK, LIGHT, Theme, colour_scale, frame_figure, log_ticks
from tests.pages.conftest import ROOT

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


@pytest.mark.parametrize(("theme", "name"), [(LIGHT, "light"), (DARK, "dark")])
def test_a_saved_figure_stands_on_the_ground_of_its_page(theme: Theme, name: str) -> None:
    """A transparent one in the light ink of a dark page could not be read on paper."""
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))

    assert frame_figure(go.Figure(), "t", "c", 100, theme).layout.paper_bgcolor == theme.paper
    assert theme.paper == config["theme"][name]["backgroundColor"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0, 3, ["1", "10", "100", "1,000"]), (0.9, 1.4, ["1", "2", "5", "10", "20", "50", "100", "200", "500"])],
)
def test_marks_of_a_logarithm_are_written_in_one_way(low: float, high: float, words: list[str]) -> None:
    marks: Any = log_ticks(low, high)

    assert marks["ticktext"] == words and marks["tickvals"] == [float(word.replace(",", "")) for word in words]
