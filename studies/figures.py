"""The figure of docs/tracing.md from the study's results: `python -m studies.figures`. Needs the extra `export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_core.tracing.average_records import read_records
from rome_core.tracing.averages import GROUPS, average
from studies.common import RESULTS

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


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    average_effects(RESULTS / "average_effects.jsonl").write_image(IMAGES / "average_effects.png", scale=2)


if __name__ == "__main__":
    main()
