"""The figures of docs/tracing.md from the studies' results: `python -m studies.figures`. Needs the extra `export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_core.tracing.average_records import read_records
from rome_core.tracing.averages import GROUPS, average
from studies import preview as study
from studies.common import RESULTS, Record, read

IMAGES = RESULTS.parent / "images"
KINDS = {
    "resid_post": ("Residual stream", "Purples"),
    "mlp_out": ("MLP, window of 10", "Greens"),
    "attn_out": ("Attention, window of 10", "Reds"),
}


def average_effects(path: Path) -> go.Figure:
    """AIE by token group and layer, the three kinds on one scale."""
    result = average(read_records(path.read_text(encoding="utf-8"), path.name).rows)
    high = max(float(np.nanmax(effect.mean)) for effect in result.effects.values())
    titles = []
    for site, (name, _) in KINDS.items():
        mean = np.nan_to_num(result.effects[site].mean, nan=-1)
        group, layer = np.unravel_index(mean.argmax(), mean.shape)
        titles.append(f"{name}: largest at the {GROUPS[group]}, layer {layer} ({mean.max():.3f})")
    figure = make_subplots(rows=3, cols=1, subplot_titles=titles, vertical_spacing=0.09)
    for row, (site, (_, colours)) in enumerate(KINDS.items(), 1):
        mean = result.effects[site].mean
        bar = {"title": "AIE", "len": 0.26, "y": 1.0 - (row - 1) * 0.363 - 0.135, "thickness": 12}
        figure.add_heatmap(z=mean, colorscale=colours, zmin=0, zmax=high, colorbar=bar, row=row, col=1)
        figure.update_yaxes(tickvals=list(range(6)), ticktext=list(GROUPS), autorange="reversed", row=row, col=1)
    figure.update_xaxes(title="layer (of the window: its centre)", row=3, col=1)
    total, low, top = result.total_effect
    dropped = sum(result.dropped.values())
    caption = (
        f"SmolLM2-135M-Instruct · {result.n} facts that it knows ({dropped} others tried) · noise 3 σ, 10 draws, seed 1"
        f" · total effect {total:.3f} [{low:.3f}, {top:.3f}]"
    )
    figure.update_layout(
        title={"text": "Average indirect effect on p(answer)", "subtitle": {"text": caption}},
        template="plotly_white",
        width=1000,
        height=820,
        margin={"t": 110, "l": 170, "r": 20, "b": 50},
        font={"size": 13},
    )
    return figure


FLOOR = 1e-4  # what is smaller, or has the wrong sign, is drawn here


def preview_sizes(records: list[Record]) -> go.Figure:
    """The ten strongest cells of each fact: exact effect against what was said of it before and what a preview says."""
    methods = {study.BEFORE: "Before: gradient of p at the corrupted run", study.PREVIEW: "Now: a few cells measured"}
    titles = []
    for method, name in methods.items():
        found = [study.hits(record, site, method) for record in records for site in study.SITES]
        tokens, near = (sum(hit[at] for hit in found) / len(found) for at in (0, 2))
        said = f"token right in {tokens:.0%}, size within a factor of two in {near / study.TOP:.0%}"
        titles.append(f"{name}<br>{said}")
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.06)
    for column, method in enumerate(methods, 1):
        for factor, dash in ((1.0, "solid"), (study.FACTOR, "dot"), (1 / study.FACTOR, "dot")):
            line = {"color": "#9AA5B1", "width": 1, "dash": dash}
            ends = {"x": [FLOOR, 1.0], "y": [FLOOR * factor, factor], "mode": "lines", "line": line}
            figure.add_scatter(**ends, showlegend=False, hoverinfo="skip", row=1, col=column)
        for site, colour in (("mlp_out", "#238B45"), ("attn_out", "#CB181D")):
            x = [value for record in records for value in record[site]["exact"]["top"]]
            y = [max(FLOOR, value) for record in records for value in record[site][method]["top"]]
            marker = {"color": colour, "size": 5, "opacity": 0.55}
            name, shown = KINDS[site][0].split(",")[0], column == 1
            figure.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, showlegend=shown, row=1, col=column)
    ticks = {"tickvals": [1e-4, 1e-3, 1e-2, 0.1, 1], "ticktext": ["≤ 0.0001", "0.001", "0.01", "0.1", "1"]}
    figure.update_xaxes(type="log", range=[-2.5, 0.05], title="exact indirect effect", **ticks)
    figure.update_yaxes(type="log", range=[-4.1, 0.4], **ticks)
    figure.update_yaxes(title="estimated", row=1, col=1)
    caption = (
        f"SmolLM2-135M-Instruct · {len(records)} facts, ten strongest cells of each kind · window of 10 · noise 3 σ, "
        "10 draws, seed 1 · dotted: a factor of two"
    )
    figure.update_annotations(font={"size": 13})
    figure.update_layout(
        title={"text": "How large a preview says that an effect is", "subtitle": {"text": caption}},
        template="plotly_white",
        width=1000,
        height=540,
        margin={"t": 150, "l": 80, "r": 20, "b": 60},
        font={"size": 13},
        legend={"orientation": "h", "y": -0.16, "x": 0.0},
    )
    return figure


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    average_effects(RESULTS / "average_effects.jsonl").write_image(IMAGES / "average_effects.png", scale=2)
    preview_sizes(read(RESULTS / "preview.jsonl")).write_image(IMAGES / "preview.png", scale=2)


if __name__ == "__main__":
    main()
