"""Edits in each other's way: their keys under C⁻¹, and how far the next one moves the others, foretold and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from pages.parts.diagnosis.figures import overlap_heatmap
from pages.shared import moment_panel, session, track
from pages.shared.charts import draw_chart, page_theme, result_of
from pages.shared.tables import table
from pages.shared.text import count, literal, number
from rome_core import LanguageModel, Moment
from rome_core.diagnosis.interference import Moved, Overlap, layers_of, measure_moves, name_of, overlap, predict
from rome_core.editing.edit import Edit
from rome_core.evaluation.foresight import Foresight

JOB, CHECK = ("diagnosis", "interference"), ("diagnosis", "check")


@dataclass(frozen=True, eq=False)
class Foretold:
    """What is known before the new edit is added."""

    new: Edit
    earlier: tuple[Edit, ...]
    overlaps: tuple[Overlap, ...]
    moves: tuple[Moved, ...]


def view(lm: LanguageModel, diagnosed: Foresight | None) -> None:
    """diagnosed: the edit of the first view, which may not be applied yet."""
    active = session.active()
    candidates = {edit.id: edit for edit in active}
    if diagnosed is not None and diagnosed.edit.base == lm.fingerprint:
        candidates[diagnosed.edit.id] = diagnosed.edit
    candidates = {id: edit for id, edit in candidates.items() if layers_of(lm, edit)}
    if len(candidates) < 2:
        st.info(
            "Two edits are needed: solve one or more on the Edit page, and diagnose the next one here under “One edit”."
        )
        return
    names = list(candidates)
    chosen = st.selectbox(
        "The next edit",
        names,
        index=len(names) - 1,
        format_func=lambda id: title(candidates[id], id in {edit.id for edit in active}),
        key="next-edit",
        help="The others count as the earlier ones, in their order.",
        persist_state="session",
    )
    new = candidates[chosen]
    earlier = tuple(edit for edit in active if edit.id != chosen)
    if st.button("Foretell", key="foretell", type="primary"):
        layers = sorted({layer for edit in (*earlier, new) for layer in layers_of(lm, edit)})
        moments = moment_panel.moments(lm, layers)  # here: a job sees no session
        session.start_job(JOB, "Comparing edits", lambda job: foretell(lm, new, earlier, moments), short=True)
        session.forget_job(CHECK)
    job: track.Job[None, Foretold] | None = session.find_job(JOB)
    if job is None:
        st.info(
            "Press Foretell: how alike the edits' keys are, and how far this one will move what earlier ones wrote."
        )
    elif job.result is None:
        track.panel(job)
    else:
        told = job.result
        what = title(told.new, told.new.id in {edit.id for edit in active})
        moved_on = (told.new.id, [edit.id for edit in told.earlier]) != (chosen, [edit.id for edit in earlier])
        with result_of(what, moved_on, "Foretell"):
            show(lm, told)


def title(edit: Edit, active: bool) -> str:
    more = f" and {len(edit.requests) - 1} more" if len(edit.requests) > 1 else ""
    return f"{name_of(edit.requests[0])}{more} ({edit.method}{'' if active else ', not applied'})"


def foretell(lm: LanguageModel, new: Edit, earlier: tuple[Edit, ...], moments: Mapping[int, Moment] | None) -> Foretold:
    return Foretold(new, earlier, overlap(lm, (*earlier, new), moments), predict(lm, new, earlier))


def show(lm: LanguageModel, foretold: Foretold) -> None:
    for shared in foretold.overlaps:
        edits = count(len(shared.labels), "edit")
        caption = f"{lm.name} · kᵀC⁻¹k of {edits} at layer {shared.layer}, keys of the bare prompts"
        draw_chart(overlap_heatmap(shared, caption, page_theme()), f"overlap-{shared.layer}", "edit")
    if not foretold.moves:
        st.info("The next edit shares no layer with the earlier ones: it moves their values only through the states.")
        return
    st.markdown(f"**How far {literal(name_of(foretold.new.requests[0]))} will move the earlier edits**")
    if st.button("Check against the model", key="check", help="Runs the model with and without it; nothing is kept."):
        measure = lambda job: tuple(measure_moves(lm, foretold.new, foretold.earlier, job.track))  # noqa: E731
        session.start_job(CHECK, "Checking the forecast", measure)
    check: track.Job[None, tuple[Moved, ...]] | None = session.find_job(CHECK)
    if check is not None and check.result is None:
        track.panel(check)
    table([row(move) for move in (check and check.result) or foretold.moves])
    st.caption(
        "Foretold: Δk from the stored factors. In units of what the earlier edit adds at its subject; along: the part "
        "in its own direction, −1 would undo it. Measured: with both edits in place."
    )


def row(move: Moved) -> dict[str, str]:
    cells = {
        "earlier edit": move.label,
        "layer": str(move.layer),
        "moved, foretold": number(move.predicted),
        "in units of its own": number(move.share),
        "along": f"{move.along:+.3f}".replace("-", "−"),
    }
    if move.measured is not None and move.p_before is not None and move.p_after is not None:
        cells["moved, measured"] = number(move.measured)
        cells["p(its object)"] = f"{number(move.p_before)} → {number(move.p_after)}"
    return cells
