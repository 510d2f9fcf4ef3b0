"""From a traced fact to its edit: the same fact, an object that the model does not answer, and a layer that is fit."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from pages.shared import fact_at_hand
from pages.shared.fact_at_hand import FactAtHand
from pages.shared.recommendation import recommend
from rome_core import LanguageModel, Trace


def draw(lm: LanguageModel, trace: Trace, token: int, layer: int) -> None:
    """A link at the recommended layer; one at the cell's, where an edit could be written into this cell."""
    fact = fact_to_edit(trace)
    best = recommend(lm, trace.prompt)
    place = fact_at_hand.chat_link() if fact_at_hand.is_read(trace.prompt) else {}
    fit = trace.config.site == "mlp_out" and token == trace.subject[1] - 1
    with st.container(horizontal=True, vertical_alignment="center"):
        for at in dict.fromkeys([best.layer, *([layer] if fit else [])]):
            named = " (recommended)" if at == best.layer else ", the cell's"
            query = {**fact.link, **place, "layer": str(at)}
            st.page_link("pages/edit.py", label=f"Edit this fact at layer {at}{named} →", query_params=query)
    where = "" if fit else " An edit is written into an MLP at the subject's last token, so not into this cell."
    st.caption(f"Layer {best.layer} is recommended, because {best.reason}.{where}")


def fact_to_edit(trace: Trace) -> FactAtHand:
    """The traced fact with the objects that are known for it; the new one is left open where the model answers it."""
    prompt, answer, now = trace.prompt, trace.answer.strip(), fact_at_hand.current()
    same = now.prompt == prompt or fact_at_hand.is_read(prompt)
    fact = now if same else FactAtHand(prompt.template, prompt.subject)
    known_new, known_true = fact_at_hand.objects_of(fact)
    target, true = fact.target.strip() or known_new, fact.true.strip() or known_true or answer
    said = {answer.casefold(), true.casefold()}
    return replace(fact, target="" if target.casefold() in said else target, true=true)
