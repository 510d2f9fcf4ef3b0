"""Knowing or saying: the answers to questions beyond the prompt, of one edit and on average over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from pages.shared import session, track
from pages.shared.charts import ask_once
from pages.shared.tables import table
from pages.shared.text import count, number
from rome_core import EditRequest, LanguageModel
from rome_core.evaluation.answers import Answer, Change, Question, ask_before_and_after
from rome_core.evaluation.before_after import Report, find_own_fact
from rome_core.evaluation.probes import probe_questions, summarise_probes
from rome_core.evaluation.scores import Score
from rome_core.evaluation.sequence.folder import SequenceRun
from rome_core.evaluation.sequence.steps import load_merged

WHY = (
    "**Probes**, not scores: does what follows from the new fact change with it, or only the sentence that was edited? "
    "Each compares two answers, one that follows from the new object and one from the true one."
)


def draw_edit_probes(lm: LanguageModel, report: Report) -> None:
    """The probes of one edit, before and after it."""
    st.markdown(WHY)
    asked = list_questions(report.request)
    if not asked:
        st.caption("There are no probes for this fact: they are written for the relations of the project's own set.")
        return
    key = ("probes", lm.fingerprint, report.edit.id, tuple(edit.id for edit in report.below), asked)
    changes = ask_once(key, lambda: ask_before_and_after(lm, asked, [report.edit], report.below))
    if changes:
        table([row(change) for change in changes])


def list_questions(request: EditRequest) -> tuple[Question, ...]:
    """Of the project's own fact that a request is about, with the request's object."""
    fact = find_own_fact(request)
    return probe_questions(replace(fact, target_new=request.target_new.strip())) if fact else ()


def row(change: Change) -> dict[str, str]:
    """A line of the table: the question, both answers, their probabilities."""
    question = change.question
    return {
        "probe": question.kind,
        "question": f"{question.text} … / {question.true_text} …" if question.true_text else question.text + " …",
        "new / true": question.new if question.true_text else f"{question.new} / {question.true}",
        "p before": _both(change.before),
        "p after": _both(change.after),
        "follows the edit": "yes" if change.after.lead > 0 else "no",
    }


def _both(answer: Answer) -> str:
    """The geometric-mean token probabilities of the new and the true answer."""
    return " / ".join(number(scored.p_mean) for scored in (answer.new, answer.true) if scored)


def draw_run_probes(lm: LanguageModel, run: SequenceRun, step: int) -> None:
    """The probes of all facts that were edited up to a step of a run, as a job."""
    st.markdown(WHY)
    facts = [run.plan.facts[i] for record in run.records if record.edit and record.step <= step for i in record.facts]
    edits = load_merged(lm, run, step)
    if edits is None or not facts:
        st.caption("The edits of this run are not here, or none was made up to this step.")
        return
    questions = [question for fact in facts for question in probe_questions(fact)]
    key = ("probe averages", lm.fingerprint, run.folder.name, step)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(f"Ask after step {step}", key="sequence-ask", disabled=not questions)
        st.caption(f"{count(len(questions), 'question')} about {count(len(facts), 'edited fact')}, before and after.")
    if pressed:
        ask = lambda job: ask_before_and_after(lm, questions, edits, track=job.track)  # noqa: E731
        session.start_job(key, f"Probes of step {step}", ask)
    if job := session.find_job(key):
        if job.result is not None:
            draw_shares(job.result)
        else:
            track.panel(job)


def draw_shares(changes: Sequence[Change]) -> None:
    """The share of each kind with its interval, and every question."""
    shares = summarise_probes(changes)
    table(
        [
            {"probe": kind, "before": with_interval(before), "after": with_interval(after), "questions": after.n}
            for kind, (before, after) in shares.items()
        ]
    )
    st.caption("Share of questions whose new answer is the more probable one, with its 95 % bootstrap interval.")
    with st.expander("Every question"):
        table([row(change) for change in changes])


def with_interval(score: Score) -> str:
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"
