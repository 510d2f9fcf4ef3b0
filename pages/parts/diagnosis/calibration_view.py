"""How a verdict was calibrated: thresholds, ROC curve, and how often it is wrong on edits held back."""

from __future__ import annotations

import plotly.graph_objects as go
import streamlit as st

from pages.shared.charts import draw_chart, page_theme
from pages.shared.style import AFTER, Theme, frame_figure
from pages.shared.tables import table
from pages.shared.text import literal
from pages.shared.verdicts import QUANTITIES
from rome_core import LanguageModel
from rome_core.diagnosis.calibration import ALPHA, BROKEN, HURT, Calibration, Rate
from rome_core.diagnosis.verdict import CAUTION, DISABLING, calibration_of

POOLS = {"all": "all", "first": "subject is the first token", "later": "other subjects"}


def view(lm: LanguageModel) -> None:
    calibration = calibration_of(lm)
    if calibration is None:
        st.info(
            f"Not calibrated for this model: its verdicts rest on provisional thresholds, ‖Δ‖/‖W‖ of {CAUTION:g} and "
            f"{DISABLING:g}, and every quantity is shown with its place among this model's own ordinary facts. "
            "`python -m studies.calibration` measures edits, and with `--fit` it fits thresholds to them."
        )
        return
    best = calibration.best
    st.markdown(
        literal(
            f"A verdict rests on {QUANTITIES[calibration.quantity]}: caution from {best.caution:.3g}, where perplexity "
            f"grows more than {HURT:g} times, disabling from {best.disabling:.3g}, more than {BROKEN:g} times, so that "
            f"at most {ALPHA:.0%} of the rest are flagged. Fitted to {calibration.n_fit} edits; the numbers below are "
            f"of {calibration.n_held} edits of other subjects."
        )
    )
    draw_chart(roc_figure(calibration, page_theme()), "roc", "edit")
    st.markdown("**How often “disabling” is right, on edits held back**")
    table(rate_rows(calibration))
    st.markdown("**Every quantity that was tried**")
    table(quantity_rows(calibration))


def share(rate: Rate) -> str:
    """k of n with its interval; no share where there is nothing to count."""
    if not rate.n:
        return "none to count"
    low, high = rate.interval
    return f"{rate.k} of {rate.n}, {rate.value:.1%} ({low:.1%} to {high:.1%})"


def rate_rows(calibration: Calibration) -> list[dict[str, str]]:
    return [
        {
            "edits": POOLS.get(pool, pool),
            f"perplexity more than {BROKEN:g}×: called disabling": share(calibration.caught[pool]),
            "of these, at least caution": share(calibration.warned[pool]),
            "the rest: flagged by mistake": share(calibration.false_alarms[pool]),
        }
        for pool in sorted(calibration.caught, key=lambda pool: list(POOLS).index(pool) if pool in POOLS else 9)
    ]


def quantity_rows(calibration: Calibration) -> list[dict[str, str]]:
    return [
        {
            "quantity": QUANTITIES[name] + (" (chosen)" if name == calibration.quantity else ""),
            "caution from": f"{t.caution:.3g}",
            "disabling from": f"{t.disabling:.3g}",
            "AUC, fitted": f"{t.auc_fit:.3f}",
            "AUC, held back": f"{t.auc_held:.3f}",
        }
        for name, t in calibration.thresholds.items()
    ]


def roc_figure(calibration: Calibration, theme: Theme) -> go.Figure:
    """Share caught against share of false alarms for every threshold, and the one in use."""
    x, y = zip(*calibration.roc, strict=True)
    fig = go.Figure(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": theme.ink, "width": 2, "shape": "hv"},
            name="every threshold",
            hovertemplate="false alarms %{x:.1%}, caught %{y:.1%}<extra></extra>",
        )
    )
    fig.add_scatter(
        x=[calibration.false_alarms["all"].value],
        y=[calibration.caught["all"].value],
        mode="markers",
        marker={"color": AFTER, "size": 14, "symbol": "diamond"},
        name="in use",
        hovertemplate="in use: false alarms %{x:.1%}, caught %{y:.1%}<extra></extra>",
    )
    title = f"Area under the curve on held-back edits: {calibration.best.auc_held:.3f}"
    caption = f"{calibration.model} · {calibration.n_held} edits held back · {calibration.source}"
    frame_figure(fig, title, caption, 300, theme, left=64)
    fig.update_xaxes(title_text="false alarms among edits that do no such harm", tickformat=".0%", range=[-0.02, 1.02])
    fig.update_yaxes(title_text="caught", tickformat=".0%", range=[-0.02, 1.04])
    return fig.update_layout(showlegend=False)
