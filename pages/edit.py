"""Edit: change a fact in the weights, by one method, by all, or many facts at once, and see what else changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import streamlit as st

from pages.parts.edit import batch_view, layer_view, objective_view, part_views
from pages.parts.edit import comparison_view as bench_view
from pages.parts.edit import figures as edit_figures
from pages.parts.edit import files as edit_files
from pages.parts.edit import views as edit_views
from pages.parts.edit.words import why_no_effect
from pages.shared import frame, moment_panel, probe_panel, request, session, track, verdicts
from pages.shared.tables import literal
from rome_core import DEFAULT_METHOD, METHODS, EditRequest, LanguageModel
from rome_core.editing.edit import Edit, Step
from rome_core.editing.presets import resolve, unresolved
from rome_core.evaluation.before_after import Report, measure_edit, same_fact, solve_and_measure

JOB, RIVAL = ("edit", "job"), ("edit", "rival")  # where the session keeps the edit on the screen and the one beside it


def main() -> None:
    st.title("Edit a fact")
    st.markdown("What does the model say once a fact is rewritten in its weights, and what else changes with it?")
    lm = session.model()
    request.example_buttons()
    wanted = request.request_form()
    if wanted:
        request.token_inspector(lm, wanted)
    # A list of facts is edited by one config, which must not follow the one fact that happens to stand above it.
    about_one = st.session_state.get("view", st.query_params.get("view", ONE)) in (ONE, ALL)
    config = request.method_form(lm, DEFAULT_METHOD, "edit", asked=wanted if about_one else None)
    if config.layers:
        moment_panel.panel(lm, config.layers[-1])
    view = st.segmented_control(
        "What to do",
        list(VIEWS),
        default=ONE,
        key="view",
        bind="query-params",
        required=True,
        label_visibility="collapsed",
    )
    VIEWS[view](lm, wanted, config)


def one_method(lm: LanguageModel, wanted: EditRequest | None, config: Any) -> None:
    """The chosen method on the fact of the form, or an edit from a file."""
    below = others(wanted)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button("Edit", key="run", type="primary", shortcut="Ctrl+Enter")
        st.caption(stacking(below), width="content")
    if pressed and wanted:
        start(lm, wanted, config, below)
    result(lm)
    with st.expander("Open a saved edit"):
        edit = edit_files.opened(lm)
    if edit:
        show_opened(lm, edit)


def all_methods(lm: LanguageModel, wanted: EditRequest | None, config: Any) -> None:
    bench_view.view(lm, wanted, config, others(wanted))


def others(wanted: EditRequest | None) -> tuple[Edit, ...]:
    """The active edits that a new one is solved on top of: all but an earlier edit of the same fact."""
    return tuple(edit for edit in session.active() if wanted is None or not same_fact(edit, wanted))


def stacking(below: tuple[Edit, ...]) -> str:
    if below:
        return f"Solved on top of {len(below)} active edit{'s' if len(below) > 1 else ''}."
    return "Solved on the original model."


# ----------------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True, eq=False)
class Search:
    """The search for v* so far, and what it is for."""

    wanted: EditRequest
    config: Any
    below: tuple[Edit, ...]
    steps: tuple[Step, ...] = ()


def start(lm: LanguageModel, wanted: EditRequest, config: Any, below: tuple[Edit, ...]) -> None:
    """Queue the edit. Once solved it joins this session's edits, in place of an earlier one of the same fact."""
    mine, moments = session.edits(), moment_panel.moments(lm, config.layers)

    def work(job: track.Job) -> Report:
        publish = partial(setattr, job, "partial")
        publish(Search(wanted, config, below))
        report = solve_and_measure(
            lm,
            wanted,
            config,
            below,
            job.track,
            lambda steps: publish(Search(wanted, config, below, steps)),
            moments,
        )
        mine[:] = [item for item in mine if not same_fact(item.edit, wanted)]
        mine.append(session.ActiveEdit(report.edit, label(report.edit), on=report.verdict != "disabling"))
        return report

    session.remember(JOB, track.submit(f"{wanted.prompt.subject} → {wanted.target_new.strip()}", work))
    session.remember(RIVAL, None)


def label(edit: Edit) -> str:
    (wanted, *_) = edit.requests
    return f"{wanted.prompt.subject} → {wanted.target_new.strip()} ({edit.method})"


def show_opened(lm: LanguageModel, edit: Edit) -> None:
    """Take an edit from a file among this session's and measure it like a new one."""
    below = others(edit.requests[0])
    session.add_edit(edit, label(edit))
    session.remember(JOB, track.submit(label(edit), lambda job: measure_edit(lm, edit, below, job.track)))
    session.remember(RIVAL, None)
    st.rerun()


# --------------------------------------------------------------------------------------------------------- the result


def result(lm: LanguageModel) -> None:
    job = session.recall(JOB)
    if job is None or of_another_model(lm, job):
        st.info("Press Edit: the search for the new value is drawn here step by step, then what changed.")
    elif job.state == "done":
        show(lm, job.result)
    else:
        track.panel(job, partial(watch, lm))


def of_another_model(lm: LanguageModel, job: track.Job) -> bool:
    return job.state == "done" and job.result.edit.base != lm.fingerprint


def watch(lm: LanguageModel, job: track.Job) -> None:
    """The search as it runs."""
    if job.partial:
        at: Search = job.partial
        words = edit_views.conditions(lm, at.wanted, at.config, at.below)
        target = at.wanted.target_new.strip()
        edit_views.metrics_so_far(at.steps, target)
        planned = getattr(at.config, "steps", 1)
        figure = edit_figures.steps_figure(at.steps, target, planned, words, edit_views.look())
        edit_views.chart(figure, "search")


def show(lm: LanguageModel, report: Report) -> None:
    edit_views.metrics(report)
    reason = why_no_effect(report)
    if reason:
        st.warning(literal(f"No effect: {reason}"))
    st.caption(f"Solved in {report.seconds:.1f} s. {whether_on(report)}")
    keyed = report.edit.k_star.numel() > 0
    views = {
        "Before / after": edit_views.before_after,
        **({("Search for v*" if keyed else "Training"): part_views.search} if report.edit.history else {}),
        **({"k*": part_views.key_view, "v*": part_views.value_view} if keyed else {}),
        "Δ": part_views.update_view,
        "Objective": objective_view.objective_view,
        "Knowing or saying": probe_panel.panel,
        "Compare": compare,
        "Save": edit_files.downloads,
    }
    for tab, view in zip(st.tabs(list(views), key="edit-tab", on_change="rerun"), views.values(), strict=True):
        if tab.open:
            with tab:
                view(lm, report)


def whether_on(report: Report) -> str:
    if report.verdict == "disabling":
        return f"{verdicts.SHAPES['disabling']} It would break the model, so it waits in the sidebar switched off."
    return "It is on in this session: the sidebar switches it off, scales it or removes it."


def compare(lm: LanguageModel, report: Report) -> None:
    """A second method on the same request, side by side. It is not switched on."""
    names = [name for name in METHODS if name != report.edit.method]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Second method", names, width=170, help="On the same request with the same settings.")
        pressed = st.button("Compare", key="compare")
    if pressed:
        touched = unresolved(lm, report.edit.config, [report.request])
        config = resolve(lm, request.with_settings_of(touched, METHODS[name]), [report.request])
        moments = moment_panel.moments(lm, config.layers)
        work = lambda job: solve_and_measure(  # noqa: E731
            lm, report.request, config, report.below, job.track, moments=moments
        )
        session.remember(RIVAL, track.submit(f"{report.request.prompt.subject} with {name}", work))
    job = session.recall(RIVAL)
    if job is None:
        st.caption("Press Compare: both edits stand here side by side. The second one is not switched on.")
    elif job.state == "done":
        edit_views.comparison(report, job.result)
        st.caption(literal(edit_views.caption(lm, job.result)))
    else:
        track.panel(job, lambda job: None)


ONE, ALL = "This method", "All methods"
VIEWS = {ONE: one_method, ALL: all_methods, "A batch": batch_view.view, "Where to edit": layer_view.view}

frame.require_frame()
main()
