"""How a verdict looks: a shape, a word and a colour, so that no one of them has to be seen."""

from __future__ import annotations

import streamlit as st

from pages.shared.text import literal
from rome_core.diagnosis.verdict import Diagnosis

SHAPES = {"safe": "●", "caution": "▲", "disabling": "■"}
SYMBOLS = {"safe": "circle", "caution": "triangle-up", "disabling": "square"}  # the shapes, as plotly calls them
# Readable on white and on near-black, and none of them one of the paper's colours for states, MLP and attention.
QUANTITIES = {
    "relative_F": "‖Δ‖/‖W‖ (Frobenius)",
    "relative_2": "‖Δ‖₂/‖W‖₂ (spectral)",
    "relative_C": "‖ΔC^½‖/‖WC^½‖ (Frobenius)",
    "relative_start": "‖Δk‖/‖Wk‖ at first tokens",
    "inverse_denominator": "1/denominator",
}
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
    st.caption(thresholds(diagnosis))


def thresholds(diagnosis: Diagnosis) -> str:
    """Which thresholds the verdict rests on, and where this edit stands between them."""
    d, name = diagnosis, QUANTITIES[diagnosis.quantity]
    limits = f"caution from {d.caution_at:.3g}, disabling from {d.disabling_at:.3g}; this edit: {large(d.score)}"
    if d.calibrated:
        return f"Thresholds of {name}, fitted to measured edits of this model: {limits}."
    below = d.reference.below("k0_kstar", d.k0_kstar)
    standing = "" if below != below else f" Its k₀ᵀC⁻¹k* is larger than that of {below:.0%} of ordinary facts."
    return f"Not calibrated for this model: thresholds of {name} are provisional, {limits}.{standing}"
