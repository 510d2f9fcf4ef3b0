"""A diagnosis on the screen: the gauge, the numbers behind it, the other policies, and what came of it."""

from __future__ import annotations

import streamlit as st

from pages.shared import diagnosis_figures, verdicts
from pages.shared.diagnosis_report import Aftermath, Foresight, damage, policy_rows, quantities
from pages.shared.edit_views import chart, generation, look
from pages.shared.text import count, number
from rome_core import LanguageModel


def caption(lm: LanguageModel, foresight: Foresight) -> str:
    edit = foresight.edit
    (wanted, *_) = edit.requests
    facts = count(len(foresight.diagnosis.reference), "ordinary fact")
    return (
        f"{lm.name} · “{wanted.prompt.text}” → {wanted.target_new.strip()} · "
        f"{edit.method}, layer {edit.config.layer} · seed {edit.config.seed} · bars: k₀ᵀC⁻¹k* of {facts} at this layer"
    )


def forecast(lm: LanguageModel, foresight: Foresight) -> None:
    """The verdict in words, then the gauge."""
    verdicts.show(foresight.diagnosis)
    figure = diagnosis_figures.gauge(foresight.diagnosis, foresight.edit.method, caption(lm, foresight), look())
    chart(figure, "gauge")


def numbers(foresight: Foresight) -> None:
    rows = quantities(foresight.diagnosis, foresight.edit)
    st.dataframe(
        [{"quantity": symbol, "value": value, "what it means": meaning} for symbol, value, meaning in rows],
        hide_index=True,
        width="stretch",
        height="content",
        column_config={"what it means": st.column_config.TextColumn(width="large")},
    )


def policies(foresight: Foresight) -> None:
    st.caption("The same δ put into the weights by each policy. Nothing is solved again, nothing is applied.")
    st.dataframe(policy_rows(foresight), hide_index=True, width="stretch")


def aftermath(after: Aftermath) -> None:
    """What was measured once the edit was applied, next to the forecast."""
    before, now = after.perplexity
    asked = after.probes[0]
    row = st.columns(3)
    row[0].metric(
        "Perplexity",
        f"{now:,.4g}",
        f"before {before:,.4g}",
        delta_color="off",
        delta_arrow="off",
        help="On held-back general text; lower is better.",
    )
    row[1].metric(
        f"p({after.target})",
        number(asked.after[0]),
        f"before {number(asked.before[0])}",
        delta_color="off",
        delta_arrow="off",
    )
    row[2].metric(
        "Forecast", verdicts.label(after.verdict), damage(after.perplexity), delta_color="off", delta_arrow="off"
    )
    for item in after.continuations:
        generation(item)
