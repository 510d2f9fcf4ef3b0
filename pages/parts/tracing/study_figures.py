"""The further studies of a trace as figures: through which modules the effect of a restored state flows, and how much
of the answer each noise level leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.parts.tracing.figures import caption_without_window, finite, metric_name
from pages.shared.style import LIGHT, SITE_COLOURS, Theme, frame_figure, layer_axis
from pages.shared.text import escape_token, number
from rome_core import Trace
from rome_core.tracing.noise import SCALES, NoiseLevel
from rome_core.tracing.path_severing import Severed

PANEL, GAP = 200, 70  # px
CURVES = {"plain": "resid_post", "without_mlp": "mlp_out", "without_attention": "attn_out"}
NAMES = {"plain": "plain", "without_mlp": "without MLP", "without_attention": "without attention"}
LITTLE = 0.1  # of the clean probability: below it, the noise has done its work


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


def severed_figure(trace: Trace, result: Severed, theme: Theme = LIGHT) -> go.Figure:
    """Above, the indirect effect by layer: whole, and with either path severed. Below, what flows through each."""
    height = 2 * PANEL + GAP
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=GAP / height, row_heights=[0.6, 0.4])
    for name, site in CURVES.items():
        line = {"color": SITE_COLOURS[site], "width": 2}
        fig.add_scatter(
            y=finite(getattr(result, name).numpy()),
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
            y=finite(getattr(result, name).numpy()),
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


# --------------------------------------------------------------------------------------------------------------- noise


def sufficient(trace: Trace, levels: Sequence[NoiseLevel]) -> list[float]:
    """The levels that leave less than a tenth of the clean probability."""
    return [level.scale for level in levels if level.p < LITTLE * trace.clean]


def enough(trace: Trace, levels: Sequence[NoiseLevel]) -> str:
    """One sentence: which levels are enough, and whether the chosen one is."""
    good = sufficient(trace, levels)
    bar = f"less than {LITTLE:.0%} of the clean probability ({number(LITTLE * trace.clean)})"
    names = ", ".join(f"{scale:g} σ" for scale in good) or "none of the measured levels"
    chosen = next((level for level in levels if level.scale == trace.config.noise_scale), None)
    verdict = ""
    if chosen:
        verdict = f" The chosen {chosen.scale:g} σ leaves {chosen.p / trace.clean:.0%}."
    return f"These leave {bar}: {names}.{verdict}"


def noise_title(trace: Trace, levels: Sequence[NoiseLevel]) -> str:
    good = sufficient(trace, levels)
    if len(levels) < len({*SCALES, trace.config.noise_scale}):
        return "How much noise is enough?"
    if not good:
        return f"Even {levels[-1].scale:g} σ leaves more than {LITTLE:.0%} of the clean probability"
    above = [level.scale for level in levels if level.scale >= good[0]]
    if good == above:
        return f"From {good[0]:g} σ on, less than {LITTLE:.0%} of the clean probability is left"
    return f"Less than {LITTLE:.0%} of the clean probability is left at {len(good)} of {len(levels)} levels"


def noise_figure(trace: Trace, levels: Sequence[NoiseLevel], theme: Theme = LIGHT) -> go.Figure:
    """p(answer) of the corrupted run against the noise, with its spread over the draws."""
    x = [level.scale for level in levels]
    p, spread = (np.array([getattr(level, name) for level in levels]) for name in ("p", "spread"))
    fig = go.Figure()
    fig.add_scatter(
        x=[*x, *x[::-1]],
        y=[*np.minimum(p + spread, 1), *np.maximum(p - spread, 0)[::-1]],
        fill="toself",
        fillcolor="rgba(128,134,145,0.25)",
        line={"width": 0},
        mode="lines",
        name="± one standard deviation over the draws",
        hoverinfo="skip",
    )
    fig.add_scatter(
        x=x,
        y=p,
        customdata=[[level.spread, level.low, level.high, level.p / trace.clean] for level in levels],
        hovertemplate="%{x:g} σ: p = %{y:.3g} ± %{customdata[0]:.3g}, from %{customdata[1]:.3g} to %{customdata[2]:.3g}"
        "<br>%{customdata[3]:.1%} of the clean probability<extra></extra>",
        mode="lines+markers",
        line={"color": theme.ink, "width": 2},
        marker={"color": theme.ink, "size": 7},
        name="corrupted, mean",
    )
    title, conditions = noise_title(trace, levels), caption_without_window(trace)
    frame_figure(fig, title, conditions, 280, theme, left=64, legend_rows=2)
    ticks = [scale for scale in SCALES if scale != 1.5]  # too near to 1 and 2 to be named
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{scale:g}" for scale in ticks], "range": _log_range(trace)}
    fig.update_xaxes(**axis, title_text=f"noise on the subject, in σ of the {trace.config.noise_from}")
    top = max(1.12 * max(trace.clean, float((p + spread).max())), 1e-6)
    fig.update_yaxes(title_text=f"p({escape_token(trace.answer)})", range=[0, top])
    _mark(fig, "y", trace.clean, f"clean {number(trace.clean)}", theme, "solid")
    _mark(fig, "y", LITTLE * trace.clean, f"{LITTLE:.0%} of it", theme, "dot")
    _mark(fig, "x", trace.config.noise_scale, f"chosen: {trace.config.noise_scale:g} σ", theme, "dash")
    return fig.update_layout(hovermode="closest")


def _log_range(trace: Trace) -> list[float]:
    ends = (*SCALES, trace.config.noise_scale)
    return [float(np.log10(min(ends) * 0.9)), float(np.log10(max(ends) * 1.1))]


def _mark(fig: go.Figure, axis: str, value: float, text: str, theme: Theme, dash: str) -> None:
    """A thin line across the plot with a word at its end."""
    font = {"color": theme.grey, "size": 12}
    line = {"color": theme.grey, "width": 1, "dash": dash}
    if axis == "x":
        fig.add_vline(x=value, line=line)
        where = {"x": float(np.log10(value)), "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "xshift": 4}
    else:
        fig.add_hline(y=value, line=line)
        where = {"x": 1, "xref": "paper", "y": value, "xanchor": "right", "yanchor": "bottom"}
    fig.add_annotation(text=text, showarrow=False, font=font, bgcolor=theme.paper, borderpad=1, **where)
