"""Start here: what the app answers, and facts to begin with."""

from __future__ import annotations

import streamlit as st

from pages.shared import frame
from pages.shared.fact_at_hand import EXAMPLES, FactAtHand

STEPS = (
    (
        "tracing",
        "1 · Locate",
        "Make the subject unreadable, set single states back: which ones return the answer?",
    ),
    (
        "edit",
        "2 · Edit",
        "Write a new answer into one MLP layer by a rank-one update, and read what it says now.",
    ),
    ("diagnostics", "3 · Diagnose", "Before an edit is trusted: is it a safe one, or one that breaks the whole model?"),
)


def main() -> None:
    st.title("ROME Explorer")
    st.markdown(
        "A language model completes *“The Colosseum is located in the city of”* with *Rome*. "
        "**Where inside it is that fact, can it be changed, and what else changes with it?**"
    )
    for column, (page, title, text) in zip(st.columns(3), STEPS, strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{title}**")
            st.markdown(text)
            st.page_link(f"pages/{page}.py", label="Open →")
    st.subheader("Begin with a fact")
    for start in range(0, len(EXAMPLES), 2):
        for column, fact in zip(st.columns(2), EXAMPLES[start : start + 2], strict=False):
            _card(column, fact)
    st.caption(
        "Edits live in your session only, as overlays: the model itself is never changed. Nothing leaves this machine."
    )


def _card(place: st.delta_generator.DeltaGenerator, fact: FactAtHand) -> None:
    with place.container(border=True):
        st.markdown(f"{fact.template.format(f'**{fact.subject}**')} …")
        with st.container(horizontal=True):
            st.page_link("pages/tracing.py", label="Locate it", query_params=fact.link)
            st.page_link("pages/edit.py", label="Change it", query_params=fact.link)


frame.require_frame()
main()
