"""Fact sets: the project's own and the user's files, browsed and filtered, with what the model knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import streamlit as st

from pages.shared import fact_sets, frame, session, track, uploads
from pages.shared.fact_sets import Wish
from pages.shared.tables import table
from pages.shared.text import count, literal
from rome_core import LanguageModel
from rome_core.evaluation.runs.store import OWN_SET
from rome_core.facts.datasets import Fact, Facts, part_of


def main() -> None:
    st.title("Fact sets")
    st.markdown("Which facts can be located, edited and measured, and which of them does the model know?")
    with st.expander("Bring a set of your own"):
        fact_sets.upload()
    name, facts = fact_sets.choose()
    problems(name, facts)
    lm = session.model()
    known = fact_sets.knowledge(lm)
    wish = filter_form(facts)
    ask(lm, name, facts)
    numbers(facts, known)
    if job := session.find_job(("asking", lm.fingerprint)):
        track.panel(job)
    browse([fact for fact in facts if wish.fits(fact, known)], facts)


def problems(name: str, facts: Facts) -> None:
    """What the set was read as; and what cannot be read, each with its place and what to do."""
    if facts.forms and name != OWN_SET:
        st.caption(f"Read: {uploads.account_of(facts)}")
    fact_sets.offer_new_objects(name, facts)
    if not facts.problems:
        return
    are = "is" if len(facts.problems) == 1 else "are"
    st.warning(literal(f"{count(len(facts.problems), 'row')} of {name} cannot be read and {are} left out."))
    with st.expander("Which, and why"):
        rows = [{"where": str(replace(p.place, source="")), "what is wrong": p.sentence} for p in facts.problems]
        st.dataframe(rows, hide_index=True, key="problems")


def filter_form(facts: Facts) -> Wish:
    """The filters, in one row."""
    row = st.columns([2, 2, 1.6, 1.2])
    text = row[0].text_input("Search", key="set-search", placeholder="prompt or object", persist_state="session")
    relations = sorted({fact.relation for fact in facts if fact.relation})
    chosen = row[1].multiselect(
        "Relations", relations, key="set-relations", placeholder="all", disabled=not relations, persist_state="session"
    )
    parts = row[2].multiselect(
        "Part",
        ["train", "validation", "test"],
        key="set-part",
        placeholder="all",
        help="By a hash of the subject: hypernetworks are trained on one part and never scored on it.",
        persist_state="session",
    )
    known = row[3].selectbox("Known", ["all", "yes", "no", "not asked"], key="set-known", persist_state="session")
    return Wish(text or "", tuple(chosen), tuple(parts), "" if known == "all" else str(known))


def ask(lm: LanguageModel, name: str, facts: Facts) -> None:
    """The job that finds out what the model knows."""
    key, known = ("asking", lm.fingerprint), fact_sets.knowledge(lm)
    row = st.container(horizontal=True, vertical_alignment="center")
    left = sum(fact not in known for fact in facts)
    pressed = row.button("Ask the model", type="primary", key="ask", disabled=not left)
    row.caption("A fact is known if every token of its true object is the model's first choice after the prompt.")
    if pressed:
        learn = lambda job: sum(1 for _ in fact_sets.learn(lm, facts, known, job.track))  # noqa: E731
        brought = 0 if name == OWN_SET else left  # the project's own are as many as they are
        session.start_job(key, f"What {lm.name} knows of {name}", learn, facts=brought)


def numbers(facts: Facts, known: Mapping[Fact, bool]) -> None:
    answers = [known[fact] for fact in facts if fact in known]
    row = st.columns(4)
    row[0].metric("Facts", len(facts))
    row[1].metric("Asked", len(answers))
    row[2].metric("Known", f"{sum(answers)}" if answers else "–")
    row[3].metric("Test part", sum(part_of(fact) == "test" for fact in facts))


def browse(shown: list[Fact], facts: Facts) -> None:
    """The table; a chosen row stands below it in full, with links to what can be done with it."""
    lm = session.loaded()
    known = fact_sets.knowledge(lm) if lm else {}
    st.caption(f"{count(len(shown), 'fact')} of {len(facts)}. Choose a row to see all of its prompts.")
    event = st.dataframe(
        fact_sets.table(shown, known),
        hide_index=True,
        height=420,
        on_select="rerun",
        selection_mode="single-row",
        key="set-table",
    )
    rows = event["selection"]["rows"]
    if rows and rows[0] < len(shown):
        details(shown[rows[0]])


def details(fact: Fact) -> None:
    st.subheader(literal(f"{fact.prompt.text} … {fact.target_true} → {fact.target_new}"))
    link = fact_sets.link_of(fact)
    with st.container(horizontal=True):
        st.page_link("pages/tracing.py", label="Locate it", query_params=link)
        st.page_link("pages/edit.py", label="Edit it", query_params=link)
    kinds = {
        "paraphrase": fact.paraphrases,
        "generation": fact.generations,
        "reversed": [fact.reversed] if fact.reversed else [],
    }
    rows = [{"kind": kind, "prompt": text, "right answer": ""} for kind, texts in kinds.items() for text in texts]
    rows += [{"kind": "neighbour", "prompt": text, "right answer": answer} for text, answer in fact.near]
    rows += [{"kind": p.kind or "portability", "prompt": p.prompt, "right answer": p.answer} for p in fact.portability]
    if rows:
        table(rows)


frame.require_frame()
main()
