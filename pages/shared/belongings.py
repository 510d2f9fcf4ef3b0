"""What belongs to one visitor across reloads and tabs: the server keeps it under a token that only their browser has.

The token is a cookie, never in an address, so a copied link shows a form and nobody's edits. What was kept is given
back soon after the last of the visitor's tabs is closed.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.shared.shelf import shelf

COOKIE = "rome-explorer"
OWNER = "_owner"  # the name under which a visitor's results are on the shelf
KEPT_FOR = 60.0  # seconds after the last tab was closed
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass
class Belongings:
    """things: what is kept, by name. sessions: the connections that it was seen from. alone_since: of none of them."""

    things: dict[str, Any] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
    alone_since: float = 0.0


class Cloakroom:
    """Everybody's belongings, by token. is_connected: whether a session is. give_back: what an owner has elsewhere."""

    def __init__(
        self, is_connected: Callable[[str], bool], give_back: Callable[[str], None] = lambda owner: None
    ) -> None:
        self._is_connected, self._give_back = is_connected, give_back
        self._lock = threading.Lock()
        self._kept: dict[str, Belongings] = {}

    def knows(self, token: str) -> bool:
        with self._lock:
            return token in self._kept

    def of(self, token: str, session: str) -> dict[str, Any]:
        """What is kept under a token, seen from a session."""
        with self._lock:
            kept = self._kept.setdefault(token, Belongings())
            kept.sessions.add(session)
            kept.alone_since = 0.0
            return kept.things

    def is_there(self, token: str) -> bool | None:
        """Whether any tab of the visitor is open; None for a token that is not known."""
        with self._lock:
            kept = self._kept.get(token)
            sessions = list(kept.sessions) if kept else []
        return None if kept is None else any(map(self._is_connected, sessions))

    def tidy(self, now: float) -> None:
        """Give back what belongs to visitors who have been gone for a while."""
        with self._lock:
            for token, kept in list(self._kept.items()):
                kept.sessions = set(filter(self._is_connected, kept.sessions))
                if kept.sessions:
                    kept.alone_since = 0.0
                elif not kept.alone_since:
                    kept.alone_since = now
                elif now - kept.alone_since >= KEPT_FOR:
                    del self._kept[token]
                    self._give_back(str(kept.things.get(OWNER, "")))


@st.cache_resource(show_spinner=False)
def cloakroom() -> Cloakroom:
    return Cloakroom(lambda session: runtime.get_instance().is_active_session(session), shelf().clear)


def is_served() -> bool:
    """Whether a server runs this script for a browser; not so in a test of the pages."""
    if not runtime.exists() or type(runtime.get_instance()) is not Runtime:  # a test has one that looks like it
        return False
    return get_script_run_ctx() is not None


def mine() -> MutableMapping[str, Any]:
    """This visitor's belongings; outside a server, the session's own state."""
    context = get_script_run_ctx()
    if not is_served() or context is None:
        return st.session_state  # type: ignore[return-value]
    return cloakroom().of(token(), context.session_id)


def token() -> str:
    """This visitor's token: their browser's where the server knows it, else a new one. Empty outside a server."""
    if not is_served():
        return ""
    if "_token" not in st.session_state:
        brought = st.context.cookies.get(COOKIE, "")
        known = bool(_TOKEN.fullmatch(brought)) and cloakroom().knows(brought)
        st.session_state["_token"] = brought if known else uuid.uuid4().hex
    return str(st.session_state["_token"])


def hand_out() -> None:
    """Give the browser its token, where it did not bring it."""
    if (given := token()) and st.context.cookies.get(COOKIE) != given:
        cookie = f"{COOKIE}={given}; path=/; SameSite=Strict"
        script = f"document.cookie = '{cookie}' + (location.protocol === 'https:' ? '; Secure' : '')"
        with st.container(key="token"):
            st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)
