"""A diagnosis on the screen: the gauge, the numbers behind it, the other policies, and what came of it."""

from __future__ import annotations

import streamlit as st

from pages.parts.diagnosis import figures, key_figures
from pages.parts.diagnosis.report import damage, policy_rows, quantities, shift_rows
from pages.shared import verdicts
from pages.shared.charts import draw_chart, metric_row, page_theme
from pages.shared.tables import draw_texts, table
from pages.shared.text import count, number
from pages.shared.verdicts import large
from rome_core import LanguageModel
from rome_core.evaluation.foresight import Aftermath, Foresight

NEIGHBOURS = "Mean KL(before ‖ after) of the next token on prompts in the same words or with the same answer."


def caption(lm: LanguageModel, foresight: Foresight) -> str:
    edit = foresight.edit
    (request, *_) = edit.requests
    facts = count(len(foresight.diagnosis.reference.k0_kstar), "ordinary fact")
    return (
        f"{lm.name} · “{request.prompt.text}” → {request.target_new.strip()} · "
        f"{edit.method}, layer {edit.config.layers[-1]} · seed {vars(edit.config)['seed']} · "
        f"bars: k₀ᵀC⁻¹k* of {facts} at this layer"
    )


def forecast(lm: LanguageModel, foresight: Foresight) -> None:
    """The verdict in words, then the gauge."""
    verdicts.show(foresight.diagnosis)
    gauge = figures.gauge(foresight.diagnosis, foresight.edit.method, caption(lm, foresight), page_theme())
    draw_chart(gauge, "gauge", "edit")


def numbers(foresight: Foresight) -> None:
    rows = quantities(foresight.diagnosis, foresight.edit)
    names = ("quantity", "value", "ordinary facts below", "what it means")
    table([dict(zip(names, row, strict=True)) for row in rows])


def keys(lm: LanguageModel, foresight: Foresight) -> None:
    """k_0 and k* in the plane that they span, before and after whitening."""
    conditions = caption(lm, foresight).rpartition(" · ")[0]
    draw_chart(key_figures.planes(foresight.diagnosis, conditions, page_theme()), "planes", "edit")
    st.caption(
        "The update is made by C⁻¹, so the right panel is what it sees. ROME as published puts the update along k* and "
        "divides by how far k₀ reaches along it: the less, the larger the update."
    )


def policies(foresight: Foresight) -> None:
    st.caption("The same δ put into the weights by each policy. Nothing is solved again, nothing is applied.")
    table(policy_rows(foresight))


def aftermath(lm: LanguageModel, after: Aftermath) -> None:
    """What was measured once the edit was applied, next to the forecast."""
    without, with_it = after.perplexity
    before, now = (answer.new.p_joint for answer in (after.changes[0].before, after.changes[0].after))
    metric_row(
        ("Perplexity", large(with_it), f"before {large(without)}", "On held-back general text; lower is better."),
        ("Outcome", *damage(after.perplexity), "What became of the model on general text."),
        ("Forecast", verdicts.label(after.verdict), "before it was applied", "The verdict above."),
        ("Neighbours moved", f"{number(after.neighbour_kl)} nats", count(len(after.near), "prompt"), NEIGHBOURS),
        (f"p({after.target})", number(now), f"before {number(before)}", "On the edited prompt."),
    )
    for item in after.continuations:
        draw_texts(item.text, {"before": item.before, "after": item.after})
    others = count(len(after.shifts), "other prompt")
    about = f"{lm.name} · {after.name} · {others} of the project's facts, seed {after.seed}"
    draw_chart(key_figures.neighbourhood_map(after.shifts, about, page_theme()), "neighbourhood", "edit")
    with st.expander("The prompts that moved most"):
        table(shift_rows(after.shifts))
