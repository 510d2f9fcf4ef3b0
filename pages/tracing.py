"""Locate: which states bring an answer back after the subject was made unreadable (causal tracing)."""

from __future__ import annotations

import streamlit as st

from pages.parts.tracing import form as trace_form
from pages.parts.tracing import view as trace_view
from pages.parts.tracing.run import Question, TraceRun, run_steps
from pages.shared import frame, session, track
from pages.shared.text import count
from rome_core import LanguageModel


def main() -> None:
    st.title("Locate a fact")
    st.markdown(
        "The subject's tokens are drowned in noise, and the answer is lost. Then one state at a time is set back to "
        "what it was: **which states bring the answer back?**"
    )
    lm = session.model()
    trace_form.example_buttons()
    question, run = trace_form.question_form(lm)
    if question and question.edits:
        st.info(f"Tracing the **edited model**: {count(len(question.edits), 'edit')} of the sidebar's list act.")
    if question and run:
        start(lm, question)
    job = current(lm, question)
    if job is None:
        st.caption(
            "Press **Trace** (Ctrl+Enter). Three heat maps will appear here, approximate at once and then exact: "
            "the residual stream, the MLPs and the attention, each token at each layer."
        )
        return
    if question and job.partial and job.partial.question.key != question.key:
        st.caption("The form has changed since this run; press **Trace** to run it.")
    track.panel(job, lambda job: trace_view.draw(lm, job))


def start(lm: LanguageModel, question: Question) -> None:
    """Begin a run, unless this session has made the very same one before. A run under way is stopped."""
    known = session.recall((lm.fingerprint, question.key))
    if known is None or known.state in ("stopped", "error"):
        former = st.session_state.get("trace_job")
        if former is not None:
            former.stop()

        def work(job: track.Job) -> TraceRun:
            for run in run_steps(lm, question, job.track):
                job.partial = run
            return job.partial

        known = track.submit(f"Tracing “{question.prompt.text}”", work)
        known.partial = TraceRun(question)
        session.remember((lm.fingerprint, question.key), known)
    st.session_state["trace_job"] = known


def current(lm: LanguageModel, question: Question | None) -> track.Job | None:
    """The run of the form as it stands, if there was one; else the last one."""
    same = session.recall((lm.fingerprint, question.key)) if question else None
    return same or st.session_state.get("trace_job")


frame.require_frame()
main()
