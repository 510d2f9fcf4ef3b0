"""What a visitor's session holds: the model (shared by everybody), this session's edits and jobs, and results."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import streamlit as st

from pages.shared import belongings, public
from pages.shared.models import models
from pages.shared.shelf import shelf
from pages.shared.text import literal
from pages.shared.track import Job, describe, show_error, submit
from rome_core import DEFAULT_MODEL, EditRequest, LanguageModel
from rome_core.editing.edit import Edit
from rome_core.evaluation.before_after import same_fact

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------------------- model


def chosen_name() -> str:
    return str(st.session_state.get("model") or "").strip() or DEFAULT_MODEL


def loaded() -> LanguageModel | None:
    """The model in use if it is in memory already; never waits."""
    name = st.session_state.get("_model_in_use")
    return models().result(name) if name else None


def model() -> LanguageModel:
    """The chosen model, shared by all sessions. Waits with a progress bar while it is loaded for the first time.

    A model that cannot be loaded leaves one sentence on the page, and the former one stays in use.
    """
    chosen, former = chosen_name(), st.session_state.get("_model_in_use")
    for name in dict.fromkeys([chosen, former or DEFAULT_MODEL]):
        try:
            public.check_model(name)
            lm = _wait_for(name)
        except Exception as error:
            show_error(error)
            continue
        if name != chosen:
            st.caption(f"{literal(name)} stays in use.")
        models().settle_on(name, belongings.token())
        if name != former:
            st.session_state["_model_in_use"] = name
            st.rerun()  # the sidebar was drawn before the model was there
        return lm
    raise AssertionError("the default model can always be tried") from st.stop()


def _wait_for(name: str) -> LanguageModel:
    job = models().get(name, belongings.token())
    if job.live:
        place = st.empty()
        while job.live:
            place.progress(job.fraction, describe(job))
            time.sleep(0.1)
        place.empty()
    if job.error:
        raise job.error
    assert job.result is not None
    return job.result


def try_again() -> None:
    """Forget a failed loading, so that the same name is tried afresh."""
    models().forget_failed(chosen_name())


# ------------------------------------------------------------------------------------------------------------- edits


@dataclass
class ActiveEdit:
    """An edit in this session's list. It acts only where `active()` is passed to a call."""

    edit: Edit
    label: str
    on: bool = True
    scale: float = 1.0


def edits() -> list[ActiveEdit]:
    """This session's edits, in the order in which they were added. Only the session's own script changes the list."""
    return keep("edits", list[ActiveEdit])


def put_edit(edit: Edit, label: str, replaces: Sequence[EditRequest] = (), on: bool = True) -> None:
    """Put an edit at the end of the list, in place of those that are about the same prompts as `replaces`.

    One that is in the list already is only switched on or off.
    """
    same = next((item for item in edits() if item.edit.id == edit.id), None)
    edits()[:] = [item for item in edits() if item is same or not any(same_fact(item.edit, r) for r in replaces)]
    if same is None:
        edits().append(ActiveEdit(edit, label, on))
    else:
        same.on = on


def remove_edit(id: str) -> None:
    edits()[:] = [item for item in edits() if item.edit.id != id]


def standing(edit: Edit) -> str:
    """How an edit acts in this session now, in a sentence."""
    item = next((item for item in edits() if item.edit.id == edit.id), None)
    if item is None:
        return "It is not among this session's edits: it acts nowhere."
    if st.session_state.get("original_model"):
        return "It is off, as all edits are: the sidebar asks for the original model."
    if not item.on or not item.scale:
        return "It is off in this session: the sidebar switches it on."
    if item.scale != 1.0:
        return f"It is on in this session at strength {item.scale:g}; the numbers here are those of strength 1."
    return "It is on in this session: the sidebar switches it off, scales it or removes it."


def move_up(id: str) -> None:
    """Swap an edit with the one before it."""
    items = edits()
    at = next((i for i, item in enumerate(items) if item.edit.id == id), 0)
    if at:
        items[at - 1], items[at] = items[at], items[at - 1]


def active(but: Sequence[EditRequest] = ()) -> tuple[Edit, ...]:
    """The edits that act now: switched on, scaled, in order; none while the original model is asked for.

    but: left out are edits about the same prompts as these, which a new edit of them takes the place of.
    """
    if st.session_state.get("original_model"):
        return ()
    lm = loaded()
    fitting = [item for item in edits() if item.on and item.scale and (lm is None or item.edit.base == lm.fingerprint)]
    kept = [item for item in fitting if not any(same_fact(item.edit, request) for request in but)]
    return tuple(item.edit if item.scale == 1.0 else item.edit.scaled(item.scale) for item in kept)


# ------------------------------------------------------------------------------------------- work that is never dropped


def keep(key: Hashable, make: Callable[[], T]) -> T:
    """What this session has under the key until it ends: what a user typed, brought or waited for. Made at first."""
    kept = _of_session("_kept", dict[Hashable, Any])
    if key not in kept:
        kept[key] = make()
    made: T = kept[key]
    return made


def taken_uploads() -> set[str]:
    """Ids of the uploaded files that were taken over: a page is drawn often, a file is taken once."""
    return keep("taken uploads", set[str])


def keep_job(key: Hashable, job: Job[Any, Any]) -> None:
    """Keep a job, in place of an earlier one under this key."""
    keep("jobs", dict[Hashable, Job[Any, Any]])[key] = job


def start_job(
    key: Hashable,
    label: str,
    work: Callable[[Job[Any, Any]], object],
    *,
    published: object = None,
    asked: object = None,
    begins_with: str = "preparing",
    then: Callable[[Any], None] = lambda result: None,
    short: bool = False,
    facts: int = 0,
    generated: int = 0,
) -> None:
    """Queue `work(job)`, as `track.submit` does, and keep its job."""
    look: dict[str, Any] = {"published": published, "asked": asked, "begins_with": begins_with, "then": then}
    keep_job(key, submit(label, work, **look, short=short, facts=facts, generated=generated))


def find_job(key: Hashable) -> Job[Any, Any] | None:
    """The job that was kept under this key, running or ended."""
    return keep("jobs", dict[Hashable, Job[Any, Any]]).get(key)


def forget_job(key: Hashable) -> None:
    keep("jobs", dict[Hashable, Job[Any, Any]]).pop(key, None)


def stop_job(key: Hashable) -> None:
    """Stop the job under this key, if there is one: another one shall take its place."""
    if job := find_job(key):
        job.stop()


# ----------------------------------------------------------------------------------- results that can be computed again


def remember(key: Hashable, value: Any) -> None:
    """Keep a short computation's result for a while. `key` is a tuple of every input that it depends on."""
    shelf().put(_owner(), key, value)


def recall(key: Hashable) -> Any:
    """The result remembered under this key, or None. What is recalled is kept longest."""
    return shelf().get(_owner(), key)


def _owner() -> str:
    """Whose results are on the shelf."""
    return _of_session(belongings.OWNER, lambda: uuid.uuid4().hex)


def compute_once(key: Hashable, make: Callable[[], T]) -> T:
    """A short computation, done once for each set of inputs."""
    result: T | None = recall(key)
    if result is None:
        result = make()
        remember(key, result)
    return result


def _of_session(name: str, make: Callable[[], T]) -> T:
    """A container among this visitor's belongings, which outlast a reload."""
    kept = belongings.mine()
    if name not in kept:
        kept[name] = make()
    container: T = kept[name]
    return container
