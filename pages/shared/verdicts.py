"""How a verdict looks: a shape, a word and a colour, so that no one of them has to be seen."""

from __future__ import annotations

import streamlit as st

from pages.shared.tables import literal
from rome_core.diagnostics import CAUTION, DISABLING, Diagnosis

SHAPES = {"safe": "●", "caution": "▲", "disabling": "■"}
# Readable on white and on near-black, and none of them one of the paper's colours for states, MLP and attention.
COLOURS = {"safe": "#1B8A8F", "caution": "#B7861B", "disabling": "#C2337F"}


def large(value: float) -> str:
    """Three significant digits without powers of ten: denominators run from 0.01 to 100,000."""
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def label(verdict: str) -> str:
    return f"{SHAPES[verdict]} {verdict}"


def show(diagnosis: Diagnosis) -> None:
    """The verdict and the sentence that explains it."""
    style = f"margin:0;font-size:1.6rem;font-weight:700;color:{COLOURS[diagnosis.verdict]}"
    st.html(f'<p role="status" style="{style}">{label(diagnosis.verdict)}</p>')
    st.markdown(literal(diagnosis.explanation))
    if not diagnosis.calibrated:
        st.caption(
            f"The thresholds, ‖Δ‖/‖W‖ of {CAUTION:g} and {DISABLING:g}, are provisional: not calibrated for this model."
        )
