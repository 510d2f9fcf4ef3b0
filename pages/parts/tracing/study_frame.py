"""What the figures of the further studies of a trace share: their frame and caption."""

from __future__ import annotations

from dataclasses import replace

import plotly.graph_objects as go

from pages.parts.tracing.figures import MARGIN_TOP, Theme, caption, frame
from rome_core import Trace

PANEL, GAP = 200, 70  # px


def study_caption(trace: Trace) -> str:
    """The trace's caption; windows play no part here."""
    parts = caption(replace(trace, config=replace(trace.config, site="resid_post"))).split(" · ")
    return " · ".join(part.removeprefix("one layer each, ") for part in parts)


def finish(fig: go.Figure, title: str, caption_text: str, height: float, look: Theme) -> None:
    frame(fig, title, caption_text, int(height), look, left=64)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": look.ink}}
    fig.update_layout(legend=legend, dragmode=False, height=fig.layout.height + 44, margin_t=MARGIN_TOP + 44)
