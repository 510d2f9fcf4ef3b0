"""Edit: change a fact in the weights, by one method, by all, or many facts at once, and see what else changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import streamlit as st

from pages.parts.edit import batch_view, figures, layer_view, part_views
from pages.parts.edit import comparison_view as bench_view
from pages.parts.edit import files as edit_files
from pages.parts.edit import views as edit_views
from pages.shared import (
    address,
    doubts,
    edit_form,
    fact_at_hand,
    frame,
    moment_panel,
    probe_panel,
    session,
    track,
    verdicts,
)
from pages.shared.charts import choose_view, draw_chart, draw_tabs, page_theme, result_of
from pages.shared.fact_at_hand import FactAtHand
from pages.shared.text import count, edit_label, literal
from rome_core import DEFAULT_METHOD, METHODS, EditRequest, LanguageModel
from rome_core.editing.edit import Edit, Step
from rome_core.editing.presets import resolve, unresolved
from rome_core.evaluation.before_after import Report, measure_edit, solve_and_measure

BEGINS_WITH = "reading C, writing prefixes, finding keys"
JOB, RIVAL = ("edit", "job"), ("edit", "rival")  # where the session keeps the edit on the screen and the one beside it


def main() -> None:
    st.title("Edit a fact")
    st.markdown("What does the model say once a fact is rewritten in its weights, and what else changes with it?")
    lm = session.model()
    address.carry("view", "What to do", address.one_of(VIEWS))  # the settings above depend on it
    edit_form.example_buttons()
    request = edit_form.request_form(lm)
    if request:
        edit_form.token_inspector(lm, request)
    # A list of facts is edited by one config, which must not follow the one fact that happens to stand above it.
    about_one = st.session_state.get("view", ONE) in (ONE, ALL)
    config = edit_form.method_form(lm, DEFAULT_METHOD, "edit", request=request if about_one else None)
    if config.layers:
        moment_panel.panel(lm, config.layers[-1])
    choose_view("What to do", VIEWS, "view")(lm, request, config)


def one_method(lm: LanguageModel, request: EditRequest | None, config: Any) -> None:
    """The chosen method on the fact of the form, or an edit from a file."""
    below = session.active(but=[request] if request else ())  # an earlier edit of the same fact gives way
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button("Edit", key="run", type="primary", shortcut="Ctrl+Enter", disabled=request is None)
        on_top = f"on top of {count(len(below), 'active edit')}" if below else "on the original model"
        st.caption(f"Solved {on_top}." if request else "The form above says what is missing.", width="content")
    if request:
        doubts.tell(lm, request, below)
    if pressed and request:
        start(lm, request, config, below)
    result(lm, (request, config))
    with st.expander("Open a saved edit"):
        edit = edit_files.open_saved(lm)
    if edit:
        show_opened(lm, edit)


# ----------------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True, eq=False)
class Search:
    """The search for v* so far, and what it is for."""

    request: EditRequest
    config: Any
    below: tuple[Edit, ...]
    steps: tuple[Step, ...] = ()


EditJob = track.Job[Search, Report]


def start(lm: LanguageModel, request: EditRequest, config: Any, below: tuple[Edit, ...]) -> None:
    """Queue the edit. Once solved it joins this session's edits, in place of an earlier one of the same fact."""
    moments, search = moment_panel.moments(lm, config.layers), Search(request, config, below)

    def work(job: EditJob) -> Report:
        def publish(steps: tuple[Step, ...]) -> None:
            job.partial = replace(search, steps=steps)

        return solve_and_measure(lm, request, config, below, job.track, publish, moments)

    def put(report: Report) -> None:
        on = report.verdict != "disabling"
        session.put_edit(report.edit, edit_label(report.edit), replaces=[request], on=on)

    title = f"{request.prompt.subject} → {request.target_new.strip()}"
    session.start_job(JOB, title, work, published=search, asked=(request, config), begins_with=BEGINS_WITH, then=put)
    session.forget_job(RIVAL)


def show_opened(lm: LanguageModel, edit: Edit) -> None:
    """Take an edit from a file among this session's and measure it like a new one."""
    below = session.active(but=edit.requests[:1])
    session.put_edit(edit, edit_label(edit))
    asked = (edit.requests[0], edit.config)
    session.start_job(JOB, edit_label(edit), lambda job: measure_edit(lm, edit, below, job.track), asked=asked)
    session.forget_job(RIVAL)
    fact_at_hand.take_next(FactAtHand.of(edit.requests[0]))
    st.rerun()


# --------------------------------------------------------------------------------------------------------- the result


def result(lm: LanguageModel, asked: tuple[EditRequest | None, Any]) -> None:
    """What the last edit has brought. asked: what the form asks now."""
    job = session.find_job(JOB)
    if job is None or (job.result is not None and job.result.edit.base != lm.fingerprint):
        st.info("Press Edit: the search for the new value is drawn here step by step, then what changed.")
    elif job.result is not None:
        edit = job.result.edit
        layers = ", ".join(map(str, edit.config.layers))
        what = f"{edit_label(edit)}" + (f", layer {layers}" if layers else "")
        with result_of(what, job.asked != asked, "Edit"):
            show(lm, job.result)
    else:
        track.panel(job, partial(watch, lm))


def watch(lm: LanguageModel, job: EditJob) -> None:
    """The search as it runs."""
    if at := job.partial:
        words = edit_views.conditions(lm, at.request, at.config, at.below)
        target = at.request.target_new.strip()
        edit_views.metrics_so_far(at.steps, target)
        planned = vars(at.config).get("steps", 1)
        draw_chart(figures.steps_figure(at.steps, target, planned, words, page_theme()), "search", "edit")


def show(lm: LanguageModel, report: Report) -> None:
    edit_views.metrics(report)
    reason = edit_views.why_no_effect(report)
    if reason:
        st.warning(literal(f"No effect: {reason}"))
    solved = f"Solved in {report.seconds:.1f} s. " if report.seconds else ""
    broken = f"{verdicts.SHAPES['disabling']} It would break the model. " if report.verdict == "disabling" else ""
    st.caption(solved + broken + session.standing(report.edit))
    keyed = report.edit.keys is not None
    views = {
        "Before / after": edit_views.before_after,
        **({("Search for v*" if keyed else "Training"): part_views.search} if report.edit.history else {}),
        **({"k*": part_views.key_view, "v*": part_views.value_view} if keyed else {}),
        "Δ": part_views.update_view,
        "Objective": part_views.objective_view,
        "Knowing or saying": probe_panel.draw_edit_probes,
        "Compare": compare,
        "Save": edit_files.downloads,
    }
    draw_tabs({name: partial(view, lm, report) for name, view in views.items()}, "edit-tab")


def compare(lm: LanguageModel, report: Report) -> None:
    """A second method on the same request, side by side. It is not switched on."""
    names = [name for name in METHODS if name != report.edit.method]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Second method", names, width=170, help="On the same request with the same settings.")
        pressed = st.button("Compare", key="compare")
    if pressed:
        touched = unresolved(lm, report.edit.config, [report.request])
        config = resolve(lm, edit_form.with_settings_of(touched, METHODS[name]), [report.request])
        moments = moment_panel.moments(lm, config.layers)
        session.start_job(
            RIVAL,
            f"{report.request.prompt.subject} with {name}",
            lambda job: solve_and_measure(lm, report.request, config, report.below, job.track, moments=moments),
        )
    job = session.find_job(RIVAL)
    if job is None:
        st.caption("Press Compare: both edits stand here side by side. The second one is not switched on.")
    elif job.result is not None:
        edit_views.comparison(report, job.result)
        st.caption(literal(edit_views.caption(lm, job.result)))
    else:
        track.panel(job)


ONE, ALL = "This method", "All methods"
VIEWS = {ONE: one_method, ALL: bench_view.view, "A batch": batch_view.view, "Where to edit": layer_view.view}

frame.require_frame()
main()
