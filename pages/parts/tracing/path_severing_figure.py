"""Severed paths as a figure: through which modules the effect of a restored state flows."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.parts.tracing.figures import caption_without_window, metric_name
from pages.shared.style import LIGHT, SITE_COLOURS, Theme, frame_figure, layer_axis
from pages.shared.text import escape_token
from rome_core import Trace
from rome_core.tracing.path_severing import Severed

PANEL, GAP = 200, 70  # px
CURVES = {"plain": "resid_post", "without_mlp": "mlp_out", "without_attention": "attn_out"}
NAMES = {"plain": "plain", "without_mlp": "without MLP", "without_attention": "without attention"}


def shares(result: Severed) -> tuple[int, float, float] | None:
    """The layer where severing costs most, and which shares of its effect flow through MLPs and attention."""
    plain, mlp, attention = (
        values.double().nan_to_num(nan=0.0) for values in (result.plain, result.through_mlp, result.through_attention)
    )
    lost = mlp.maximum(attention).where(plain > 0, -1.0)
    layer = int(lost.argmax())
    if plain[layer] <= 0:
        return None
    return layer, float(mlp[layer] / plain[layer]), float(attention[layer] / plain[layer])


def severed_title(result: Severed) -> str:
    if bool(result.plain.isnan().any()):
        return "Through which modules does the effect flow?"
    parts = shares(result)
    if parts is None:
        return "Restoring this token has no effect in any layer"
    layer, mlp, attention = parts
    needs_mlp, needs_attention = (f"{share:.0%}" if share > 0 else "none" for share in (mlp, attention))
    return (
        f"Restored at layer {layer}: {needs_mlp} of the effect needs the MLPs\nabove, {needs_attention} the attention"
    )


def severed_words(trace: Trace, result: Severed) -> str:
    """What the title leaves out: where the two shares are taken, and why they need not add up to one."""
    return (
        "Shares are those of the layer where severing costs most. They need not add up to 100 %: an effect may need "
        "both paths, or go through the residual stream and other tokens."
    )


def severed_figure(trace: Trace, result: Severed, theme: Theme = LIGHT) -> go.Figure:
    """Above, the indirect effect by layer: whole, and with either path severed. Below, what flows through each."""
    height = 2 * PANEL + GAP
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=GAP / height, row_heights=[0.6, 0.4])
    for name, site in CURVES.items():
        line = {"color": SITE_COLOURS[site], "width": 2}
        fig.add_scatter(
            y=_listed(getattr(result, name)),
            name=NAMES[name],
            mode="lines+markers",
            line=line,
            marker={"color": SITE_COLOURS[site], "size": 6},
            hovertemplate="%{y:.3g}",
            row=1,
            col=1,
        )
    for name, site in (("through_mlp", "mlp_out"), ("through_attention", "attn_out")):
        fig.add_bar(
            y=_listed(getattr(result, name)),
            name=name.replace("_", " ").replace("mlp", "MLP"),
            showlegend=False,  # the same two colours as above
            marker={"color": SITE_COLOURS[site], "opacity": 0.55, "line": {"width": 0}},
            hovertemplate="%{y:.3g}",
            row=2,
            col=1,
        )
    title, conditions = severed_title(result), caption_without_window(trace)
    frame_figure(fig, title, conditions, height, theme, left=64, legend_rows=1)
    fig.update_xaxes(**layer_axis(len(result.plain)))
    fig.update_yaxes(zeroline=True, zerolinecolor=theme.grey, nticks=5)
    fig.update_yaxes(title_text="indirect effect", row=1, col=1)
    fig.update_yaxes(title_text="flows through", row=2, col=1)
    where = f"restored layer, at {escape_token(trace.labels[result.token])}; effects in {metric_name(trace)}"
    fig.update_xaxes(title_text=where, row=2, col=1)
    return fig.update_layout(hovermode="x unified", hoverlabel_bgcolor=theme.empty, barmode="group")


def _listed(values: Any) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values.tolist()]
