"""Locate: which states bring an answer back after the subject was made unreadable (causal tracing)."""

from __future__ import annotations

import streamlit as st

from pages.parts.tracing import form as trace_form
from pages.parts.tracing import view as trace_view
from pages.parts.tracing.view import LATEST, TraceJob
from pages.shared import frame, session, track
from pages.shared.charts import result_of
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
    job = job_of(lm, request)
    if job is None:
        st.caption(
            "Press **Trace** (Ctrl+Enter). Three heat maps will appear here, approximate at once and then exact: "
            "the residual stream, the MLPs and the attention, each token at each layer."
        )
        return
    asked = job.partial.request if job.partial else None
    moved_on = asked is not None and (request is None or asked.key != request.key)
    with result_of(f"“{asked.prompt.text}”" if asked else job.label, moved_on, "Trace"):
        track.panel(job, lambda job: trace_view.draw(lm, job))


def start(lm: LanguageModel, request: TraceRequest) -> None:
    """Begin a run, unless this session has made the very same one before. A run under way is stopped."""
    key = (lm.fingerprint, request.key)
    job = session.find_job(key)
    if job is None or job.state in ("stopped", "error"):
        session.stop_job(LATEST)

        def work(job: TraceJob) -> None:
            for run in trace_kinds(lm, request, track=job.track):
                job.partial = run

        job = track.submit(
            f"Tracing “{request.prompt.text}”",
            work,
            published=TraceRun(request),
            begins_with="recording the clean and the corrupted run",
        )
        session.keep_job(key, job)
    session.keep_job(LATEST, job)


def job_of(lm: LanguageModel, request: TraceRequest | None) -> TraceJob | None:
    """The run of the form as it stands, if there was one; else the last one."""
    same = session.find_job((lm.fingerprint, request.key)) if request else None
    return same or session.find_job(LATEST)


frame.require_frame()
main()
