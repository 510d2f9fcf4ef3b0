"""Sequential edits as figures: records in, a plotly figure out. One colour a run."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pages.shared.style import ROW, Theme, colour_bar, frame_figure
from pages.shared.text import count
from rome_core.evaluation.sequence.curves import COLLAPSED, collapse, curves, own_checks, retention_matrix
from rome_core.evaluation.sequence.folder import Record, SequenceRun

Runs = Mapping[str, Sequence[Record]]  # records by the run's name
PALETTE = ("#D9822B", "#3B7DB8", "#4C9F70", "#A05195", "#C8553D", "#6B7785", "#8C6D31", "#1F9E9E")
LATEST = 10  # facts whose efficacy is averaged for the curve
AT_ONCE = "at once"
DECADES = [digit * 10**power for power in range(13) for digit in (1, 2, 5)]
PANELS = ("perplexity", "‖ΔW‖ / ‖W‖", f"efficacy of the latest {LATEST} edits", "retention of all earlier edits")


def caption(run: SequenceRun) -> str:
    """Everything needed to repeat a run: model, method, settings, facts, seeds."""
    plan, config = run.plan, run.plan.config
    values = vars(config)
    named = "".join(f", {name} {values[name]}" for name in ("layer", "clamp", "span", "seed") if name in values)
    prefixes = values.get("prefixes")
    parts = [
        run.model,
        f"{config.name}{named}" + (f", {count(len(prefixes), 'prefix')[:-1]}es" if prefixes else ""),
        f"{count(plan.pace.batch, 'fact')} an edit",
        f"{count(len(plan.facts), 'fact')}, order seed {plan.order_seed}",
        f"perplexity on {count(plan.pace.passages, 'passage')}",
    ]
    return " · ".join(parts + ([f"branched off {run.parent[0]} at step {run.parent[1]}"] if run.parent else []))


def finding(runs: Runs, factor: float = COLLAPSED) -> str:
    """The title: where each run collapsed, if it did; runs that fared alike in one breath, counted if they are many."""
    alike: dict[tuple[str, int], list[str]] = {}
    for name, records in runs.items():
        if len(records) > 1:
            broken = collapse(records, factor)
            fate = ("collapse{s} at edit", broken.edited) if broken else ("hold{s} to edit", records[-1].edited)
            alike.setdefault(fate, []).append(name)
    parts = []
    for (verb, edit), names in alike.items():
        told = f"{len(names)} runs" if len(names) > 2 else " and ".join(names)
        parts.append(f"{told} {verb.format(s='' if len(names) > 1 else 's')} {edit}")
    return "; ".join(parts[:3]) + ("; …" if len(parts) > 3 else "") or "The unedited model"


def latest_efficacy(records: Sequence[Record]) -> list[float | None]:
    """At each step the share of the latest facts that held right after their own edit."""
    shares: list[float | None] = []
    holds: list[bool] = []
    for record in records:
        holds += [check.holds for check in own_checks(record)] if record.step else []
        width = max(LATEST, len(record.facts))
        shares.append(float(np.mean(holds[-width:])) if holds else None)
    return shares


def curves_figure(runs: Runs, words: str, theme: Theme, factor: float = COLLAPSED) -> go.Figure:
    """Perplexity, size, efficacy and retention by the number of edits; a cross where a run collapsed."""
    fig = make_subplots(2, 2, subplot_titles=PANELS, horizontal_spacing=0.09, vertical_spacing=0.17)
    for place, (name, records) in enumerate(runs.items()):
        colour = PALETTE[place % len(PALETTE)]
        _run(fig, name, records, colour, factor)
    limits = {factor * records[0].perplexity for records in runs.values() if records}
    if limits:
        fig.add_hline(min(limits), line={"color": theme.ink, "dash": "dot", "width": 1}, row=1, col=1)
    last = max((records[-1].edited for records in runs.values() if records), default=0)
    rows = -(-len(runs) // 2)  # a narrow page has room for two names a row
    frame_figure(fig, finding(runs, factor), words, 470, theme, left=52, legend_rows=rows, grid="xy")
    fig.update_xaxes(range=[-0.02 * max(1, last), 1.03 * max(1, last)])
    fig.update_xaxes(title_text="facts edited", row=2)
    fig.update_yaxes(type="log", tickvals=DECADES, tickformat="~s", row=1, col=1)
    fig.update_yaxes(rangemode="tozero", row=1, col=2)
    return fig.update_yaxes(range=[-0.04, 1.04], row=2)


def _run(fig: go.Figure, name: str, records: Sequence[Record], colour: str, factor: float) -> None:
    drawn = curves(records)
    x, broken = list(drawn.edited), collapse(records, factor)
    few = {"mode": "lines+markers", "marker": {"size": 5, "color": colour}}
    common = {
        "name": html.escape(name),
        "legendgroup": name,
        "line": {"color": colour, "width": 2},
        "connectgaps": True,
        **few,
    }
    said = "<b>%{fullData.name}</b>, %{x} facts: "  # a name is data: in a template %{x} would be a number
    for row, col, values in (
        (1, 1, [value if np.isfinite(value) else None for value in drawn.perplexity]),
        (1, 2, [value if np.isfinite(value) else None for value in drawn.norm]),
        (2, 1, latest_efficacy(records)),
    ):
        first = (row, col) == (1, 1)
        hover = said + "%{y:.3g}<extra></extra>"
        fig.add_scatter(x=x, y=values, hovertemplate=hover, showlegend=first, row=row, col=col, **common)
    kept = [(at, score) for at, score in zip(x, drawn.retention, strict=True) if score]
    fig.add_scatter(
        x=[at for at, _ in kept],
        y=[score.value for _, score in kept],
        error_y={
            "array": [score.high - score.value for _, score in kept],
            "arrayminus": [score.value - score.low for _, score in kept],
            "thickness": 1,
            "width": 0,
        },
        customdata=[score.n for _, score in kept],
        hovertemplate=said + "%{y:.3g} of %{customdata}<extra></extra>",
        showlegend=False,
        row=2,
        col=2,
        **common,
    )
    if broken:
        value = broken.perplexity if np.isfinite(broken.perplexity) else factor * records[0].perplexity
        fig.add_scatter(
            x=[broken.edited],
            y=[value],
            mode="markers",
            marker={"symbol": "x", "size": 13, "color": colour, "line": {"color": "white", "width": 1}},
            legendgroup=name,
            showlegend=False,
            name=html.escape(name),
            hovertemplate="<b>%{fullData.name}</b> collapses here: at %{x} facts<extra></extra>",
            row=1,
            col=1,
        )


def matrix_figure(records: Sequence[Record], words: str, theme: Theme) -> go.Figure:
    """Retention: p(new) − p(true) of fact i (column), right after its own edit (first row) and at every check (the
    others). Blue holds, red does not, empty: not edited yet, or not checked."""
    matrix = retention_matrix(records)
    checked = [row for row, record in enumerate(records[1:]) if len(record.checks) > len(record.facts)]
    first = np.full(matrix.shape[1], np.nan)
    for record in records[1:]:
        for check in own_checks(record):
            first[check.fact] = check.p_new - check.p_true
    fig = go.Figure()
    fig.add_heatmap(
        z=np.vstack([first, *matrix[checked]]),
        x=list(range(1, matrix.shape[1] + 1)),
        y=[AT_ONCE, *(f"after {records[row + 1].edited}" for row in checked)],
        zmin=-1,
        zmax=1,
        colorscale=[[0, "#B2182B"], [0.5, theme.empty], [1, "#2166AC"]],
        colorbar=colour_bar(theme, {-1: "−1, true object", 0: "0", 1: "1, new object"}),
        hovertemplate="fact %{x}, %{y}: p(new) − p(true) %{z:.3g}<extra></extra>",
    )
    scores = [score for score in curves(records).retention if score]
    title = "No earlier edit was checked yet"
    if scores:
        title = f"{round(scores[-1].value * scores[-1].n)} of {scores[-1].n} earlier edits hold at the last check"
    height = max(120, min(640, ROW * (1 + len(checked))))
    frame_figure(fig, title, words, height, theme, left=84, grid="")
    fig.update_xaxes(title_text="fact, in the order of editing")
    return fig.update_yaxes(autorange="reversed", type="category")
