"""Diagnostics: will this edit break the model? Answered before it is applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from pages.parts.diagnosis import calibration_view, forensics_view, interference_view
from pages.parts.diagnosis import many as diagnosis_many
from pages.parts.diagnosis import views as diagnosis_views
from pages.shared import doubts, edit_form, frame, moment_panel, session, text, track
from pages.shared.charts import choose_view, result_of
from rome_core import DEFAULT_METHOD, LanguageModel
from rome_core.diagnosis.verdict import Diagnosis, has_key
from rome_core.editing.edit import Edit
from rome_core.editing.shared_search import policies, repolicy
from rome_core.evaluation.foresight import Foresight, examine, foresee, try_out

JOB, TRIED = ("diagnosis", "job"), ("diagnosis", "tried")
NEW = "A new edit"


@dataclass(frozen=True)
class Work:
    """An edit to be diagnosed. asked: what tells it from another one."""

    label: str
    do: Callable[[track.Job[None, Foresight]], Foresight]
    asked: tuple[object, ...]


def main() -> None:
    st.title("Diagnose an edit")
    st.markdown("Will this edit break the model? How far it would move the weights is known before it is applied.")
    lm = session.model()
    choose_view("What to look at", VIEWS, "question")(lm)


def one_edit(lm: LanguageModel) -> None:
    """An edit that is solved, judged and not applied."""
    item = chosen()
    work = of_session(lm, item) if item else of_form(lm)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button("Diagnose", key="diagnose", type="primary", shortcut="Ctrl+Enter", disabled=work is None)
        says = "Solves the edit and applies nothing." if work else "The form above says what is missing."
        st.caption(says, width="content")
    if pressed and work:
        begins_with = "reading C, writing prefixes, finding keys"
        solved = item is not None  # a verdict alone takes seconds, and waits for nobody's search
        session.start_job(JOB, work.label, work.do, asked=work.asked, begins_with=begins_with, short=solved)
        session.forget_job(TRIED)
    job = session.find_job(JOB)
    if job is None or (job.result is not None and job.result.edit.base != lm.fingerprint):
        st.info("Press Diagnose: the verdict and the numbers behind it appear here. The last example breaks the model.")
    elif job.result is not None:
        edit = job.result.edit
        what = f"{text.edit_label(edit)}, layer {edit.config.layers[-1]}"
        with result_of(what, work is None or job.asked != work.asked, "Diagnose"):
            show(lm, job.result)
    else:
        track.panel(job)


def chosen() -> session.ActiveEdit | None:
    """One of this session's edits, or None for a new one."""
    items = {item.edit.id: item for item in session.edits() if has_key(item.edit)}
    if not items:
        return None
    name = lambda id: items[id].label if id in items else NEW  # noqa: E731
    return items.get(
        st.selectbox("What to diagnose", [NEW, *items], format_func=name, key="what", persist_state="session")
    )


def of_session(lm: LanguageModel, item: session.ActiveEdit) -> Work:
    below = tuple(other for other in session.active() if other.id in item.edit.on)  # that it was solved on top of
    moments = moment_panel.moments(lm, item.edit.config.layers)
    diagnose = lambda job: examine(lm, item.edit, below, moments)  # noqa: E731
    return Work(f"Diagnosing {item.label}", diagnose, (item.edit.id,))


def of_form(lm: LanguageModel) -> Work | None:
    """The work of diagnosing what the form describes: the edit is solved, and not applied."""
    edit_form.example_buttons()
    request = edit_form.request_form(lm)
    config = edit_form.method_form(lm, DEFAULT_METHOD, "edit", policies(), request)
    if request is None:
        return None
    below, moments = session.active(but=[request]), moment_panel.moments(lm, config.layers)
    doubts.tell(lm, request, below)
    title = f"Diagnosing {request.prompt.subject} → {request.target_new.strip()}"
    diagnose = lambda job: foresee(lm, request, config, below, moments, job.track)  # noqa: E731
    return Work(title, diagnose, (request, config))


# --------------------------------------------------------------------------------------------------------- the result


def show(lm: LanguageModel, foresight: Foresight) -> None:
    diagnosis_views.forecast(lm, foresight)
    actions(lm, foresight)
    tried(lm)
    policies, keys, numbers = st.tabs(["Policies", "Keys", "Quantities"])
    with policies:
        diagnosis_views.policies(foresight)
    with keys:
        diagnosis_views.keys(lm, foresight)
    with numbers:
        diagnosis_views.numbers(lm, foresight)


def actions(lm: LanguageModel, foresight: Foresight) -> None:
    """Apply it after all, or the safe policy instead. Either joins this session's edits, and its effect is measured."""
    safest = foresight.safest
    with st.container(horizontal=True):
        if st.button(f"Apply this edit ({foresight.edit.method})", key="apply"):
            apply(lm, foresight, foresight.edit, foresight.diagnosis)
        if foresight.diagnosis.verdict == "safe" or safest is None:
            return
        if st.button(f"Apply the safe policy instead ({safest})", key="apply-safe"):
            apply(lm, foresight, repolicy(lm, foresight.edit, safest, foresight.moments), foresight.policies[safest])


def apply(lm: LanguageModel, foresight: Foresight, edit: Edit, diagnosis: Diagnosis) -> None:
    label = text.edit_label(edit)
    session.put_edit(edit, label, replaces=edit.requests)
    measure = lambda job: try_out(lm, edit, foresight.below, diagnosis, job.track)  # noqa: E731
    session.start_job(TRIED, f"Measuring {label}", measure)
    st.rerun()


def tried(lm: LanguageModel) -> None:
    job = session.find_job(TRIED)
    if job is None:
        return
    if job.result is not None:
        diagnosis_views.aftermath(lm, job.result)
    else:
        track.panel(job)


def between_edits(lm: LanguageModel) -> None:
    job = session.find_job(JOB)
    interference_view.view(lm, job.result if job else None)


VIEWS: dict[str, Callable[[LanguageModel], None]] = {
    "One edit": one_edit,
    "Many edits": diagnosis_many.view,
    "Between edits": between_edits,
    "A changed model": forensics_view.view,
    "Calibration": calibration_view.view,
}

frame.require_frame()
main()
