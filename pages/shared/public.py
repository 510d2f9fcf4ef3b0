"""An app on a public address: what strangers may not do there, and how much of everything they may.

Without the setting everything is allowed, as on one's own machine, where the app listens to nobody else.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.text import literal
from rome_core import DEFAULT_MODEL, DataError, LanguageModel, ModelError, PromptError
from rome_core.errors import RomeError
from rome_core.files import cache_dir
from rome_core.model.tokens import text_ids

SETTING, MODELS, PASSWORD = "ROME_EXPLORER_PUBLIC", "ROME_EXPLORER_MODELS", "ROME_EXPLORER_PASSWORD"
# What one session may have, by the end of the setting that says otherwise: ROME_EXPLORER_MAX_JOBS and so on.
LIMITS = {
    "JOBS": 4,  # queued or running
    "FACTS": 100,  # of one run
    "PROMPT_TOKENS": 200,
    "GENERATED_TOKENS": 50_000,  # of one run
    "FILES": 8,  # of one upload
    "UPLOAD_MB": 64,  # all files of one upload
}
FORMATS = frozenset({"safetensors", "json", "jsonl", "csv", "tsv", "parquet"})  # that strangers may bring
ROOT = Path(__file__).resolve().parents[2]


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


def limit(name: str) -> int:
    """How much of something one session may have on a public address."""
    said = os.environ.get(f"{SETTING.removesuffix('PUBLIC')}MAX_{name}", "").strip()
    return int(said) if said.isdecimal() else LIMITS[name]


def check_work(running: int, facts: int = 0, generated: int = 0) -> None:
    """Raise RomeError where a session asks for more than one may have.

    running: its pieces of work, queued or running. facts, generated: of the run, and the tokens that it makes the model
    write.
    """
    if not is_public():
        return
    if running >= limit("JOBS"):
        raise RomeError(f"{running} pieces of your work are waiting already.", "", "Stop one of them, or wait for it.")
    if facts > limit("FACTS"):
        raise RomeError(
            f"The run has {facts:,} facts; at most {limit('FACTS'):,} are done here.",
            "Others wait for the same machine.",
            "Choose fewer, or run it on a machine of your own.",
        )
    if generated > limit("GENERATED_TOKENS"):
        raise RomeError(
            f"The model would write {generated:,} tokens; at most {limit('GENERATED_TOKENS'):,} are written here.",
            "Others wait for the same machine.",
            "Ask for shorter texts or fewer facts, or run it on a machine of your own.",
        )


def check_prompts(lm: LanguageModel, texts: Iterable[str]) -> None:
    """Raise PromptError for a prompt of more tokens than strangers may ask about."""
    if not is_public():
        return
    for text in texts:
        if (n := len(text_ids(lm.tokenizer, text))) > limit("PROMPT_TOKENS"):
            raise PromptError(
                f"The prompt '{text[:40]}…' has {n:,} tokens; at most {limit('PROMPT_TOKENS'):,} are read here.",
                "",
                "Keep the sentence that states the fact.",
            )


def check_upload(sizes: Sequence[int]) -> None:
    """Raise DataError for more files, or more bytes of them, than strangers may bring at once."""
    if not is_public():
        return
    if len(sizes) > limit("FILES"):
        raise DataError(f"These are {len(sizes)} files; at most {limit('FILES')} are read here at once.")
    if sum(sizes) > limit("UPLOAD_MB") * 2**20:
        raise DataError(f"These files have more than {limit('UPLOAD_MB')} MB.", "", "Bring a part of them.")


def suffixes_of(wanted: Sequence[str]) -> list[str]:
    """Which of the files that a reader takes may be brought here."""
    return [suffix for suffix in wanted if not is_public() or suffix in FORMATS]


def without_places(text: str) -> str:
    """A text for strangers: folders of the server are not named in it."""
    if is_public():
        for folder in sorted({str(cache_dir()), str(ROOT), str(Path.home())}, key=len, reverse=True):
            text = text.replace(folder, "…")
    return text


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
