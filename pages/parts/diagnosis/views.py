"""A diagnosis on the screen: the gauge, the numbers behind it, the other policies, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.parts.diagnosis import figures
from pages.shared import verdicts
from pages.shared.charts import draw_chart, metric_row, page_theme
from pages.shared.tables import draw_texts, table
from pages.shared.text import count, number, show_token
from pages.shared.verdicts import large
from rome_core import LanguageModel
from rome_core.diagnosis.neighbourhood import Shift
from rome_core.diagnosis.verdict import Diagnosis
from rome_core.editing.edit import Edit
from rome_core.evaluation.foresight import Aftermath, Foresight

NEIGHBOURS = "Mean KL(before ‖ after) of the next token on prompts in the same words or with the same answer."
SHOWN_SHIFTS = 20
Row = tuple[str, str, str, str]


def caption(lm: LanguageModel, foresight: Foresight) -> str:
    edit = foresight.edit
    (request, *_) = edit.requests
    return (
        f"{lm.name} · “{request.prompt.text}” → {request.target_new.strip()} · "
        f"{edit.method}, layer {edit.config.layers[-1]} · seed {vars(edit.config)['seed']}"
    )


def forecast(lm: LanguageModel, foresight: Foresight) -> None:
    """The verdict in words, then the gauge."""
    verdicts.show(foresight.diagnosis)
    diagnoses = {**foresight.policies, foresight.edit.method: foresight.diagnosis}
    words = f"{caption(lm, foresight)} · the same δ by every policy"
    draw_chart(figures.gauge(diagnoses, foresight.edit.method, words, page_theme()), "gauge", "edit")


def numbers(lm: LanguageModel, foresight: Foresight) -> None:
    """Every quantity, and the one that a large update comes from among those of ordinary facts."""
    facts = count(len(foresight.diagnosis.reference.k0_kstar), "ordinary fact")
    words = f"{caption(lm, foresight)} · bars: k₀ᵀC⁻¹k* of {facts} at this layer"
    figure = figures.denominators(foresight.diagnosis, foresight.edit.method, words, page_theme())
    draw_chart(figure, "denominators", "edit")
    rows = quantities(foresight.diagnosis, foresight.edit)
    names = ("quantity", "value", "ordinary facts below", "what it means")
    table([dict(zip(names, row, strict=True)) for row in rows])


def keys(lm: LanguageModel, foresight: Foresight) -> None:
    """k_0 and k* in the plane that they span, before and after whitening."""
    draw_chart(figures.planes(foresight.diagnosis, caption(lm, foresight), page_theme()), "planes", "edit")
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
    draw_chart(figures.neighbourhood_map(after.shifts, about, page_theme()), "neighbourhood", "edit")
    with st.expander("The prompts that moved most"):
        table(shift_rows(after.shifts))


# ------------------------------------------------------------------------------------------------------ rows and words


def quantities(diagnosis: Diagnosis, edit: Edit) -> list[Row]:
    """Every number that the verdict rests on: its symbol, its value, its place among ordinary facts, its meaning."""
    d = diagnosis
    position = "yes" if d.subject_first else "no"
    places = {
        "k₀ᵀC⁻¹k*": "k0_kstar",
        "k*ᵀC⁻¹k*": "kstar_kstar",
        "k₀ᵀC⁻¹k₀": "k0_k0",
        "cos(k₀, k*)": "cosine",
        "cos(k₀, k*), whitened": "cosine_whitened",
    }
    rows = [
        (
            "denominator",
            f"{large(d.denominator)}",
            f"what {edit.method} divides by; small or negative means a huge update",
        ),
        ("k₀ᵀC⁻¹k*", f"{large(d.k0_kstar)}", "how alike the bare prompt's key and the mean key are, as C sees it"),
        ("k*ᵀC⁻¹k*", f"{large(d.kstar_kstar)}", "the size of the mean key, as C sees it"),
        ("k₀ᵀC⁻¹k₀", f"{large(d.k0_k0)}", "the size of the bare prompt's key, as C sees it"),
        ("cos(k₀, k*)", f"{d.cosine:.3f}", "1: the prefixes do not change the key; near 0: they are strangers"),
        (
            "cos(k₀, k*), whitened",
            f"{d.cosine_whitened:.3f}",
            "the same after C^(−1/2), the geometry that the update uses",
        ),
        ("subject at position 0", position, "the first token's key is an attention sink's, unlike every other"),
        ("‖δ‖ / ‖v₀‖", f"{number(d.value_ratio)}", "how far the value has to move, relative to what it was"),
        (
            "‖Δ‖ / ‖W‖",
            f"{number(d.relative_F)}",
            f"how far the weights move in all in the Frobenius norm (‖Δ‖ = {number(d.norm_F)})",
        ),
        ("‖Δ‖₂ / ‖W‖₂", f"{number(d.relative_2)}", "how far they move in the worst direction (spectral norm)"),
        ("‖ΔC^½‖ / ‖WC^½‖", f"{number(d.relative_C)}", "how far the layer's output moves on general text"),
        ("‖Δk‖ / ‖Wk‖, first tokens", f"{number(d.relative_start)}", "the same at the first token of every text"),
    ]
    return [(name, value, place(d, places[name]) if name in places else "", meaning) for name, value, meaning in rows]


def place(diagnosis: Diagnosis, quantity: str) -> str:
    """The share of ordinary facts whose quantity is smaller."""
    share = diagnosis.reference.below(quantity, getattr(diagnosis, quantity))
    return "" if share != share else f"{share:.0%}"


def shift_rows(shifts: Sequence[Shift]) -> list[dict[str, str]]:
    """The prompts that moved most, with what the model says there."""
    return [
        {
            "prompt": shift.prompt,
            "kind": shift.kind,
            "KL, nats": number(shift.kl),
            "‖Δk‖/‖Wk‖": number(shift.response),
            "answer before → after": " → ".join(map(show_token, shift.top)),
        }
        for shift in shifts[:SHOWN_SHIFTS]
    ]


def policy_rows(foresight: Foresight) -> list[dict[str, str]]:
    """A row for each policy: what it divides by, how far it would move the weights, what to expect."""
    return [
        {
            "policy": name + (" (this edit)" if name == foresight.edit.method else ""),
            "denominator": f"{large(d.denominator)}",
            verdicts.QUANTITIES["relative_F"]: number(d.relative_F),
            verdicts.QUANTITIES[d.quantity] + ", decides": large(d.score),
            "verdict": verdicts.label(d.verdict),
        }
        for name, d in foresight.policies.items()
    ]


def damage(perplexities: Sequence[float]) -> tuple[str, str]:
    """What perplexity before and after says: a word, and by how much."""
    before, after = perplexities
    ratio = after / before
    if not ratio <= 2:  # nan counts as broken
        return "■ broken", f"perplexity {large(ratio)} times as high"
    word = "▲ hurt" if ratio > 1.1 else "● unharmed"
    return word, f"perplexity {ratio - 1:+.1%}".replace("-", "−")
