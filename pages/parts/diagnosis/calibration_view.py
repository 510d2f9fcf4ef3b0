"""How a verdict was calibrated: thresholds, ROC curve, and how often it is wrong on edits held back."""

from __future__ import annotations

import plotly.graph_objects as go
import streamlit as st

from pages.parts.edit.figures import AFTER, framed
from pages.parts.edit.views import chart, look
from pages.parts.tracing.figures import Theme
from pages.shared.tables import literal, table
from pages.shared.verdicts import QUANTITIES
from rome_core import LanguageModel
from rome_core.diagnosis.calibration import ALPHA, BROKEN, HURT, Calibration, Rate
from rome_core.diagnosis.verdict import CAUTION, DISABLING, calibration_of

POOLS = {"all": "all", "first": "subject is the first token", "later": "other subjects"}


def view(lm: LanguageModel) -> None:
    found = calibration_of(lm)
    if found is None:
        st.info(
            f"Not calibrated for this model: its verdicts rest on provisional thresholds, ‖Δ‖/‖W‖ of {CAUTION:g} and "
            f"{DISABLING:g}, and every quantity is shown with its place among this model's own ordinary facts. "
            "`python -m studies.calibration` measures edits, `python -m studies.calibrate` fits thresholds to them."
        )
        return
    best = found.best
    st.markdown(
        literal(
            f"A verdict rests on {QUANTITIES[found.quantity]}: caution from {best.caution:.3g}, where perplexity "
            f"grows more than {HURT:g} times, disabling from {best.disabling:.3g}, more than {BROKEN:g} times, so that "
            f"at most {ALPHA:.0%} of the rest are flagged. Fitted to {found.n_fit} edits; the numbers below are of "
            f"{found.n_held} edits of other subjects."
        )
    )
    chart(roc_figure(found, look()), "roc")
    st.markdown("**How often “disabling” is right, on edits held back**")
    table(rate_rows(found))
    st.markdown("**Every quantity that was tried**")
    table(quantity_rows(found))


def share(rate: Rate) -> str:
    """k of n with its interval; no share where there is nothing to count."""
    if not rate.n:
        return "none to count"
    low, high = rate.interval
    return f"{rate.k} of {rate.n}, {rate.value:.1%} ({low:.1%} to {high:.1%})"


def rate_rows(found: Calibration) -> list[dict[str, str]]:
    return [
        {
            "edits": POOLS.get(pool, pool),
            f"perplexity more than {BROKEN:g}×: called disabling": share(found.caught[pool]),
            "of these, at least caution": share(found.warned[pool]),
            "the rest: flagged by mistake": share(found.false_alarms[pool]),
        }
        for pool in sorted(found.caught, key=lambda pool: list(POOLS).index(pool) if pool in POOLS else 9)
    ]


def quantity_rows(found: Calibration) -> list[dict[str, str]]:
    return [
        {
            "quantity": QUANTITIES[name] + (" (chosen)" if name == found.quantity else ""),
            "caution from": f"{t.caution:.3g}",
            "disabling from": f"{t.disabling:.3g}",
            "AUC, fitted": f"{t.auc_fit:.3f}",
            "AUC, held back": f"{t.auc_held:.3f}",
        }
        for name, t in found.thresholds.items()
    ]


def roc_figure(found: Calibration, look: Theme) -> go.Figure:
    """Share caught against share of false alarms for every threshold, and the one in use."""
    x, y = zip(*found.roc, strict=True)
    fig = go.Figure(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": look.ink, "width": 2, "shape": "hv"},
            name="every threshold",
            hovertemplate="false alarms %{x:.1%}, caught %{y:.1%}<extra></extra>",
        )
    )
    fig.add_scatter(
        x=[found.false_alarms["all"].value],
        y=[found.caught["all"].value],
        mode="markers",
        marker={"color": AFTER, "size": 14, "symbol": "diamond"},
        name="in use",
        hovertemplate="in use: false alarms %{x:.1%}, caught %{y:.1%}<extra></extra>",
    )
    title = f"Area under the curve on held-back edits: {found.best.auc_held:.3f}"
    framed(fig, title, f"{found.model} · {found.n_held} edits held back · {found.source}", 300, look, top=64, left=64)
    fig.update_xaxes(title_text="false alarms among edits that do no such harm", tickformat=".0%", range=[-0.02, 1.02])
    fig.update_yaxes(title_text="caught", tickformat=".0%", range=[-0.02, 1.04])
    return fig.update_layout(showlegend=False)
