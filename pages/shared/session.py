"""What a visitor's session holds: the model (shared by everybody), this session's edits, and finished results."""

from __future__ import annotations

import gc
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.shared.track import Job, describe, show_error
from rome_core import DEFAULT_MODEL, LanguageModel, load_model
from rome_core.editing.edit import Edit

RESULTS_KEPT = 64

__all__ = [
    "ActiveEdit",
    "active",
    "add_edit",
    "edits",
    "loaded",
    "model",
    "recall",
    "remember",
    "remove_edit",
    "show_error",
]


# ------------------------------------------------------------------------------------------------------------- model


@st.cache_resource(show_spinner=False, max_entries=2)
def _loading(name: str) -> Job:
    """The loading of one model, in a thread of its own: it goes on when the page that began it is left."""
    job = Job(f"Loading {name}")
    threading.Thread(target=job.run, args=(lambda job: _load(name, job),), daemon=True).start()
    return job


def _load(name: str, job: Job) -> LanguageModel:
    lm = load_model(name, track=job.track)
    # What is in memory now stays: without this, every collection walks half a million objects and holds up all threads.
    gc.collect()
    gc.freeze()
    return lm


def chosen_name() -> str:
    return str(st.session_state.get("model") or "").strip() or DEFAULT_MODEL


def loaded() -> LanguageModel | None:
    """The model in use if it is in memory already; never waits."""
    name = st.session_state.get("_model_in_use")
    return _loading(name).result if name else None


def model() -> LanguageModel:
    """The chosen model, shared by all sessions. Waits with a progress bar while it is loaded for the first time.

    A model that cannot be loaded leaves one sentence on the page, and the former one stays in use.
    """
    chosen, former = chosen_name(), st.session_state.get("_model_in_use")
    for name in dict.fromkeys([chosen, former or DEFAULT_MODEL]):
        try:
            lm = _wait_for(name)
        except Exception as error:
            show_error(error)
            continue
        if name != chosen:
            st.caption(f"{name} stays in use.")
        if name != former:
            st.session_state["_model_in_use"] = name
            st.rerun()  # the sidebar was drawn before the model was there
        return lm
    raise AssertionError("the default model can always be tried") from st.stop()


def _wait_for(name: str) -> LanguageModel:
    job = _loading(name)
    if job.live:
        place = st.empty()
        while job.live:
            place.progress(job.fraction, describe(job))
            time.sleep(0.1)
        place.empty()
    if job.error:
        raise job.error
    return job.result


def try_again() -> None:
    """Forget a failed loading, so that the same name is tried afresh."""
    job = _loading(chosen_name())
    if job.error:
        _loading.clear(chosen_name())


# ------------------------------------------------------------------------------------------------------------- edits


@dataclass
class ActiveEdit:
    """An edit in this session's list. It acts only where `active()` is passed to a call."""

    edit: Edit
    label: str
    on: bool = True
    scale: float = 1.0


def edits() -> list[ActiveEdit]:
    """This session's edits, in the order in which they were added."""
    return st.session_state.setdefault("_edits", [])


def add_edit(edit: Edit, label: str) -> None:
    """Put an edit at the end of the list; one that is there already is only switched on."""
    for item in edits():
        if item.edit.id == edit.id:
            item.on = True
            return
    edits().append(ActiveEdit(edit, label))


def remove_edit(id: str) -> None:
    edits()[:] = [item for item in edits() if item.edit.id != id]


def move_up(id: str) -> None:
    """Swap an edit with the one before it."""
    items = edits()
    at = next((i for i, item in enumerate(items) if item.edit.id == id), 0)
    if at:
        items[at - 1], items[at] = items[at], items[at - 1]


def active() -> tuple[Edit, ...]:
    """The edits that act now: switched on, scaled, in order; none while the original model is asked for."""
    if st.session_state.get("original_model"):
        return ()
    lm = loaded()
    fitting = [item for item in edits() if item.on and item.scale and (lm is None or item.edit.base == lm.fingerprint)]
    return tuple(item.edit if item.scale == 1.0 else item.edit.scaled(item.scale) for item in fitting)


# ----------------------------------------------------------------------------------------------------------- results


def remember(key: Any, value: Any) -> None:
    """Keep a result of this session. `key` is a tuple of every input that it depends on."""
    results = _results()
    results[key] = value
    results.move_to_end(key)
    while len(results) > RESULTS_KEPT:
        results.popitem(last=False)


def recall(key: Any) -> Any:
    """The result remembered under this key, or None."""
    return _results().get(key)


def _results() -> OrderedDict[Any, Any]:
    return st.session_state.setdefault("_results", OrderedDict())
