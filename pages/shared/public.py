"""An app on a public address: what strangers may not do there.

Without the setting everything is allowed, as on one's own machine, where the app listens to nobody else.
"""

from __future__ import annotations

import hmac
import os
from typing import Any

import streamlit as st

from pages.shared.text import literal
from rome_core import DEFAULT_MODEL, ModelError
from rome_core.errors import RomeError

SETTING, MODELS, PASSWORD = "ROME_EXPLORER_PUBLIC", "ROME_EXPLORER_MODELS", "ROME_EXPLORER_PASSWORD"
JOBS_AT_ONCE = 4  # of one session, queued or running


def is_public() -> bool:
    """Whether strangers are expected."""
    return os.environ.get(SETTING, "").strip().casefold() in ("1", "true", "yes", "on")


def allowed_models() -> tuple[str, ...]:
    """The models that visitors may load: the default one, and those of the setting, with commas between them."""
    named = (name.strip() for name in os.environ.get(MODELS, "").split(","))
    return tuple(dict.fromkeys([DEFAULT_MODEL, *filter(None, named)]))


def check_model(name: str) -> None:
    """Raise ModelError for a model that visitors may not load."""
    if is_public() and name not in allowed_models():
        raise ModelError(f"'{name}' is not offered here.", "", f"Choose of {', '.join(allowed_models())}.")


def check_jobs(running: int) -> None:
    """Raise RomeError where a session has as much work in the queue as one may have."""
    if is_public() and running >= JOBS_AT_ONCE:
        raise RomeError(f"{running} pieces of your work are waiting already.", "", "Stop one of them, or wait for it.")


def path_field(label: str, **look: Any) -> str:
    """A field for a path on the server; visitors of a public address have none."""
    if is_public():
        st.caption(f"{label}: not on a public address.")
        return ""
    return str(st.text_input(label, **look) or "")


def is_let_in() -> bool:
    """Whether this visitor may see the app: with a password set, after writing it once."""
    password = os.environ.get(PASSWORD, "")
    if not password or st.session_state.get("_let_in"):
        return True
    st.title("ROME Explorer")
    typed = st.text_input("Password", type="password", key="password") or ""
    if typed and hmac.compare_digest(typed.encode(), password.encode()):
        st.session_state["_let_in"] = True
        st.rerun()
    if typed:
        st.error("That is not the password.")
    return False


def describe_fault(error: Exception) -> str:
    """What a visitor is told of a fault of the program: no detail where strangers read it."""
    if is_public():
        return "Something unforeseen happened. The server's log has more."
    what = literal(f"{type(error).__name__}: {str(error)[:200]}")
    return f"Something unforeseen happened ({what}). The server's log has more."
