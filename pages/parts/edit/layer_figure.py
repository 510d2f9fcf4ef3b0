"""Scores of edits and effects of tracing by layer, one above the other: results -> plotly, pure."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import AFTER, BEFORE, SITE_COLOURS, Theme, frame_figure
from pages.shared.text import number
from pages.shared.winners import contenders
from rome_core.evaluation import Score
from rome_core.tracing.averages import GROUPS, Averages
from rome_core.tracing.runs import KINDS

LAST_SUBJECT = 2  # of GROUPS: where the edits act
NAMES = {
    "ES": "ES, the edited prompt",
    "PS": "PS, paraphrases",
    "NS": "NS, neighbours",
    "S": "S, harmonic mean",
}


def layers_figure(
    scores: Mapping[int, Mapping[str, Score]], effects: Averages | None, caption: str, theme: Theme
) -> go.Figure:
    """ES, PS, NS and S with the band of S; below them the mean indirect effect at the subject's last token."""
    rows = 1 if effects is None else 2
    titles = ["score", f"AIE at the {GROUPS[LAST_SUBJECT]}"][:rows]
    fig = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=titles)
    styles = {
        "ES": (AFTER, "solid", 2),
        "PS": (AFTER, "dash", 2),
        "NS": (BEFORE, "solid", 2),
        "S": (theme.ink, "solid", 3),
    }
    for name, (colour, dash, width) in styles.items():
        layers = [layer for layer in scores if name in scores[layer]]
        curve = [scores[layer][name] for layer in layers]
        if name == "S" and curve:
            band = [*(s.high for s in curve), *(s.low for s in reversed(curve))]
            fig.add_scatter(
                x=[*layers, *reversed(layers)],
                y=band,
                mode="lines",
                fill="toself",
                fillcolor="rgba(128,128,128,0.18)",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=1,
            )
        fig.add_scatter(
            x=layers,
            y=[s.value for s in curve],
            customdata=[f"{number(s.low)} to {number(s.high)}, {s.n} facts" for s in curve],
            hovertemplate=f"layer %{{x}}: {name} %{{y:.3f}} (%{{customdata}})<extra></extra>",
            name=NAMES[name],
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": width},
            marker={"size": 7},
            row=1,
            col=1,
        )
    if effects is not None:
        for site, effect in effects.effects.items():
            mean = effect.mean[LAST_SUBJECT]
            fig.add_scatter(
                x=list(range(len(mean))),
                y=[float(value) for value in mean],
                name=KINDS[site],
                mode="lines",
                line={"color": SITE_COLOURS[site], "width": 2},
                hovertemplate=f"layer %{{x}}: {KINDS[site]} %{{y:.3f}}<extra></extra>",
                row=2,
                col=1,
            )
    frame_figure(fig, title(scores), caption, 240 * rows, theme, left=52, legend_rows=4)
    fig.update_xaxes(title_text="layer", row=rows)
    fig.update_xaxes(showticklabels=True, dtick=2)
    return fig.update_yaxes(range=[-0.03, 1.03], row=1)


def title(scores: Mapping[int, Mapping[str, Score]]) -> str:
    """The layer with the largest S, where intervals separate it from all others; else which cannot be told apart."""
    complete = {layer: by_name["S"] for layer, by_name in scores.items() if "S" in by_name}
    if not complete:
        return "Which layer holds a new fact and leaves the others alone?"
    best, *alike = contenders(complete)
    if not alike:
        return f"S is largest at layer {best}: {number(complete[best].value)}"
    some = f"layers {', '.join(map(str, sorted([best, *alike])))}"
    return f"No clear winner by S: intervals of {some if len(alike) + 1 < len(complete) else 'all layers'} overlap"
