"""Locate: which states bring an answer back after the subject was made unreadable (causal tracing)."""

from __future__ import annotations

import streamlit as st

from pages.parts.tracing import form as trace_form
from pages.parts.tracing import view as trace_view
from pages.shared import frame, session, track
from pages.shared.text import count
from rome_core import LanguageModel
from rome_core.tracing.kinds import TraceRun, trace_kinds
from rome_core.tracing.runs import TraceRequest


def main() -> None:
    st.title("Locate a fact")
    st.markdown(
        "The subject's tokens are drowned in noise, and the answer is lost. Then one state at a time is set back to "
        "what it was: **which states bring the answer back?**"
    )
    lm = session.model()
    trace_form.example_buttons()
    request, run = trace_form.request_form(lm)
    if request and request.edits:
        st.info(f"Tracing the **edited model**: {count(len(request.edits), 'edit')} of the sidebar's list act.")
    if request and run:
        start(lm, request)
    job = current(lm, request)
    if job is None:
        st.caption(
            "Press **Trace** (Ctrl+Enter). Three heat maps will appear here, approximate at once and then exact: "
            "the residual stream, the MLPs and the attention, each token at each layer."
        )
        return
    if request and job.partial and job.partial.request.key != request.key:
        st.caption("The form has changed since this run; press **Trace** to run it.")
    track.panel(job, lambda job: trace_view.draw(lm, job))


def start(lm: LanguageModel, request: TraceRequest) -> None:
    """Begin a run, unless this session has made the very same one before. A run under way is stopped."""
    known = session.recall((lm.fingerprint, request.key))
    if known is None or known.state in ("stopped", "error"):
        former = st.session_state.get("trace_job")
        if former is not None:
            former.stop()

        def work(job: track.Job) -> TraceRun:
            for run in trace_kinds(lm, request, track=job.track):
                job.partial = run
            return job.partial

        known = track.submit(f"Tracing “{request.prompt.text}”", work)
        known.partial = TraceRun(request)
        session.remember((lm.fingerprint, request.key), known)
    st.session_state["trace_job"] = known


def current(lm: LanguageModel, request: TraceRequest | None) -> track.Job | None:
    """The run of the form as it stands, if there was one; else the last one."""
    same = session.recall((lm.fingerprint, request.key)) if request else None
    return same or st.session_state.get("trace_job")


frame.require_frame()
main()
