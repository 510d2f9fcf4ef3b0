"""Edits in each other's way: their keys under C⁻¹, and how far the next one moves the others, foretold and measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import streamlit as st

from pages.parts.edit.key_figures import overlap_heatmap
from pages.parts.edit.views import chart, look
from pages.shared import moment_panel, session, track
from pages.shared.tables import literal, table
from pages.shared.text import count, number
from rome_core import LanguageModel
from rome_core.diagnosis.interference import Moved, Overlap, layers_of, moved, name_of, overlap, predict
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
            "Two edits are needed: keep one or more on the Edit page, and diagnose the next one here under “One edit”."
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
    )
    new = candidates[chosen]
    earlier = tuple(edit for edit in active if edit.id != chosen)
    if st.button("Foretell", key="foretell", type="primary"):
        session.remember(JOB, track.submit("Comparing edits", partial(foretell, lm, new, earlier)))
        session.remember(CHECK, None)
    job = session.recall(JOB)
    if job is None:
        st.info(
            "Press Foretell: how alike the edits' keys are, and how far this one will move what earlier ones wrote."
        )
        return
    if job.state != "done":
        track.panel(job, lambda job: None)
        return
    show(lm, job.result)


def title(edit: Edit, active: bool) -> str:
    more = f" and {len(edit.requests) - 1} more" if len(edit.requests) > 1 else ""
    return f"{name_of(edit.requests[0])}{more} ({edit.method}{'' if active else ', not applied'})"


def foretell(lm: LanguageModel, new: Edit, earlier: tuple[Edit, ...], job: track.Job) -> Foretold:
    edits = (*earlier, new)
    layers = sorted({layer for edit in edits for layer in layers_of(lm, edit)})
    overlaps = overlap(lm, edits, moment_panel.moments(lm, layers))
    return Foretold(new, earlier, overlaps, predict(lm, new, earlier))


def show(lm: LanguageModel, found: Foretold) -> None:
    for one in found.overlaps:
        caption = (
            f"{lm.name} · kᵀC⁻¹k of {count(len(one.labels), 'edit')} at layer {one.layer}, keys of the bare prompts"
        )
        chart(overlap_heatmap(one, caption, look()), f"overlap-{one.layer}")
    if not found.moves:
        st.info("The next edit shares no layer with the earlier ones: it moves their values only through the states.")
        return
    st.markdown(f"**How far {literal(name_of(found.new.requests[0]))} will move the earlier edits**")
    if st.button("Check against the model", key="check", help="Runs the model with and without it; nothing is kept."):
        work = lambda job: moved(lm, found.new, found.earlier, job.track)  # noqa: E731
        session.remember(CHECK, track.submit("Checking the forecast", work))
    job = session.recall(CHECK)
    if job is not None and job.state != "done":
        track.panel(job, lambda job: None)
    table([row(one) for one in (job.result if job is not None and job.state == "done" else found.moves)])
    st.caption(
        "Foretold: Δk from the stored factors. In units of what the earlier edit adds at its subject; along: the part "
        "in its own direction, −1 would undo it. Measured: with both edits in place."
    )


def row(one: Moved) -> dict[str, str]:
    cells = {
        "earlier edit": one.label,
        "layer": str(one.layer),
        "moved, foretold": number(one.predicted),
        "in units of its own": number(one.share),
        "along": f"{one.along:+.3f}".replace("-", "−"),
    }
    if one.measured is not None and one.p_before is not None and one.p_after is not None:
        cells["moved, measured"] = number(one.measured)
        cells["p(its object)"] = f"{number(one.p_before)} → {number(one.p_after)}"
    return cells
