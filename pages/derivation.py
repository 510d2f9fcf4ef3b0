"""Derive: the closed form step by step, with the numbers of one of this session's edits beside every line."""

from __future__ import annotations

import streamlit as st

from pages.parts.derivation import picture
from pages.parts.derivation.texts import STEPS, Words
from pages.shared import frame, moment_panel, session
from pages.shared.charts import ask_once
from pages.shared.text import literal, number
from rome_core import LanguageModel
from rome_core.diagnosis.derivation import Stage, derive, stages
from rome_core.editing.second_moment import stored_moment

NONE = "No edit: formulas alone"
ROUNDING = 1e-6  # relative: far above what double precision loses here, far below any mistake


def main() -> None:
    st.title("Derive the update")
    st.markdown(
        "Why does ROME write **this** matrix? The derivation line by line, from the problem to the closed form and on "
        "to MEMIT and EMMET; beside each line the numbers of an edit of yours, and whether both its sides are equal."
    )
    st.subheader("In two dimensions")
    picture.draw()
    st.subheader("Line by line")
    found = of_edit()
    for name, words in STEPS.items():
        draw_step(words, found.get(name))


def of_edit() -> dict[str, Stage]:
    """The steps of the chosen edit, by name; none without an edit."""
    items = {item.edit.id: item for item in session.edits() if item.edit.config.single_key}
    if not items:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption("This session has no edit by ROME or one of its key policies; with one, its numbers stand here.")
            st.page_link("pages/edit.py", label="Make one →")
        return {}
    names = [*reversed(items), NONE]
    label = lambda id: id if id == NONE else literal(items[id].label)  # noqa: E731
    chosen = st.selectbox("Numbers of", names, format_func=label, key="derivation-edit", width=420)
    if chosen == NONE:
        return {}
    lm = session.model()
    edit = items[chosen].edit
    moment = moment_panel.chosen(lm, edit.config.layers[-1]) or stored_moment(lm, edit.config.layers[-1])
    if edit.base != lm.fingerprint or moment is None:
        st.warning("This edit's model or its C is not in memory; choose its model in the sidebar, or solve it again.")
        return {}
    below = [item.edit for item in session.edits() if item.edit.id in edit.on]
    key = ("derivation", lm.fingerprint, edit.id, moment.key)
    found: tuple[Stage, ...] | None = ask_once(key, lambda: stages(derive(lm, edit, moment, below)))
    if found:
        st.caption(conditions(lm, chosen, moment.source))
        if edit.moment_keys.get(moment.layer, moment.key) != moment.key:
            st.warning("The edit was solved with another C than the one in use now: its own update differs for that.")
    return {stage.name: stage for stage in found or ()}


def conditions(lm: LanguageModel, id: str, source: str) -> str:
    edit = next(item.edit for item in session.edits() if item.edit.id == id)
    return literal(
        f"{lm.name} · {edit.method} · layer {edit.config.layers[-1]} · C from {source} · ridge "
        f"{edit.config.conditioning:g} · computed now, in double precision"
    )


def draw_step(words: Words, stage: Stage | None) -> None:
    with st.container(border=True):
        st.markdown(f"**{words.title}**")
        st.latex(words.formula)
        st.markdown(words.text)
        if words.imprecise:
            st.caption(f"Where the source document is imprecise: {words.imprecise}")
        if stage is None:
            return
        rows = [f"| ${term.symbol}$ | {number(term.value)} | {term.meaning} |" for term in stage.terms]
        if rows:
            st.markdown("\n".join(["| | this edit | |", "| :--- | ---: | :--- |", *rows]))
        for identity in stage.identities:
            mark = "✓" if identity.error < ROUNDING else "✗ not equal:"
            st.markdown(f"{mark} ${identity.formula}$ :gray[· relative difference {identity.error:.0e}]")


frame.require_frame()
main()
