"""The models in memory, shared by all visitors. One that somebody uses is never dropped for another one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import streamlit as st

from pages.shared import belongings
from pages.shared.track import Job
from rome_core import LanguageModel, ModelError, load_model

MOST = 2  # in memory at once

Loading = Job[None, LanguageModel]


@dataclass
class Loaded:
    """A model that is in memory or on its way there, and the visitors that have asked for it, by token."""

    job: Loading
    users: set[str] = field(default_factory=set)


class Models:
    """is_there: whether a visitor still has a tab open; None where nobody can tell."""

    def __init__(
        self, load: Callable[[str, Loading], LanguageModel], is_there: Callable[[str], bool | None], most: int = MOST
    ) -> None:
        self._load, self._is_there, self._most = load, is_there, most
        self._lock = threading.Lock()
        self._loaded: dict[str, Loaded] = {}

    def get(self, name: str, user: str) -> Loading:
        """The loading of a model, in a thread of its own: it goes on when the page that began it is left.

        Raises ModelError where as many models as may be in memory are in use.
        """
        with self._lock:
            if name not in self._loaded:
                self._make_room()
                job = Loading(f"Loading {name}")
                self._loaded[name] = Loaded(job)
                threading.Thread(target=job.run, args=(lambda job: self._load(name, job),), daemon=True).start()
            self._loaded[name].users.add(user)
            return self._loaded[name].job

    def result(self, name: str) -> LanguageModel | None:
        """The model if it is in memory; never begins to load it."""
        with self._lock:
            return self._loaded[name].job.result if name in self._loaded else None

    def settle_on(self, name: str, user: str) -> None:
        """This visitor uses this model, and no other one any more."""
        with self._lock:
            for other, loaded in self._loaded.items():
                if other != name:
                    loaded.users.discard(user)

    def forget_failed(self, name: str) -> None:
        """Let a model that could not be loaded be tried afresh."""
        with self._lock:
            if name in self._loaded and self._loaded[name].job.error:
                del self._loaded[name]

    def _make_room(self) -> None:
        for name, loaded in list(self._loaded.items()):
            if len(self._loaded) < self._most:
                return
            if loaded.job.error or not any(self._is_there(user) is not False for user in loaded.users):
                del self._loaded[name]
        if len(self._loaded) >= self._most:
            names = " and ".join(f"'{name}'" for name in self._loaded)
            raise ModelError(
                f"{names} are in memory and in use, and this server holds {self._most} models at once.",
                "",
                "Use one of them, or try again when it is free.",
            )


def _load(name: str, job: Loading) -> LanguageModel:
    lm = load_model(name, track=job.track)
    # What is in memory now stays: without this, every collection walks half a million objects and holds up all threads.
    gc.collect()
    gc.freeze()
    return lm


@st.cache_resource(show_spinner=False)
def models() -> Models:
    return Models(_load, belongings.cloakroom().is_there)
