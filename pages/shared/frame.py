"""What stands around every page: navigation, the model, this session's edits, and what is being computed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from pages.shared import address, belongings, circuits, fact_at_hand, public, session, track
from pages.shared.text import literal
from rome_core import DEFAULT_MODEL, LanguageModel

ROOT = Path(__file__).resolve().parents[2]
PAGES, ICON, CSS = ROOT / "pages", ROOT / "assets" / "icon.png", ROOT / "assets" / "style.css"

# File name = URL: on a cold deep link Streamlit knows a page by its file only. No icons: they are fetched from the net.
SECTIONS = {
    "": [("home", "Start here")],
    "One fact": [
        ("tracing", "Locate"),
        ("edit", "Edit"),
        ("diagnostics", "Diagnose"),
        ("derivation", "Derive"),
    ],
    "Many facts": [
        ("facts", "Fact sets"),
        ("averages", "Locate on average"),
        ("evaluate", "Evaluate"),
        ("sequential", "Edit in sequence"),
    ],
}

_this_run = threading.local()  # every script run has a thread of its own


def navigation(position: Literal["sidebar", "hidden"] = "sidebar") -> StreamlitPage:
    pages = {
        section: [st.Page(PAGES / f"{name}.py", title=title, url_path=name) for name, title in entries]
        for section, entries in SECTIONS.items()
    }
    # A default page is reached at "/" only, and home shall have its own address as well.
    pages[""].append(st.Page(_start, default=True, visibility="hidden"))
    return st.navigation(pages, position=position)


def _start() -> None:
    st.switch_page(PAGES / "home.py")


def require_frame() -> None:
    """Every page begins with this. The first deep link after a server start runs the page without app.py: this
    registers the navigation and starts over through app.py."""
    if not getattr(_this_run, "framed", False):
        navigation("hidden")
        st.rerun()


def run() -> None:
    """The whole app: the frame, then the page."""
    page = navigation()
    st.set_page_config(page_title=f"{page.title} · ROME Explorer", page_icon=str(ICON), layout="wide")
    st.html(CSS)
    if not public.is_let_in():
        return
    opened = address.begin(page.url_path)
    if opened and "model" in opened and not (public.is_public() and opened["model"] not in public.allowed_models()):
        st.session_state["model"] = opened["model"]
    fact_at_hand.open_page(opened)
    circuits.copy_bundle()
    track.settle_jobs()  # before the list of edits is drawn: an edit that was solved joins it
    with st.sidebar:
        _model_chooser()
        _edit_list()
        _running()
        belongings.hand_out()
    _this_run.framed = True
    try:
        with track.no_traceback():
            page.run()
        name = session.chosen_name()
        address.end({} if name == DEFAULT_MODEL else {"model": name})
    finally:
        _this_run.framed = False


def _model_chooser() -> None:
    if public.is_public():
        st.selectbox("Model", public.allowed_models(), key="model", on_change=session.try_again)
    else:
        st.text_input(
            "Model",
            value=DEFAULT_MODEL,
            key="model",
            on_change=session.try_again,
            help="The default model, a Hugging Face id such as gpt2, or a folder on the server. Only safetensors are "
            "read.",
        )
    lm = session.loaded()
    st.caption(describe_model(lm) if lm else "Loaded when a page needs it.")
    if lm and (missing := not_possible(lm)):
        st.warning(literal(missing))


def describe_model(lm: LanguageModel) -> str:
    return f"{size(lm.n_parameters)} parameters · {lm.n_layers} layers · {lm.device}"


def not_possible(lm: LanguageModel) -> str:
    """What a model does not allow, each with its reason; empty where everything is possible."""
    by_reason: dict[str, list[str]] = {}
    for capability, reason in lm.cannot.items():
        by_reason.setdefault(reason, []).append(capability)
    parts = [f"{', '.join(names)}, because {reason}" for reason, names in by_reason.items() if names != ["cache"]]
    return f"Not possible on this model: {'; '.join(parts)}." if parts else ""


def size(n: int) -> str:
    """135 M, 1.5 B."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= factor:
            return f"{n / factor:.3g} {unit}"
    return str(n)


# ------------------------------------------------------------------------------------------------------------- edits


def _edit_list() -> None:
    items = session.edits()
    with st.container(key="edits"):
        st.markdown(f"**Active edits** · {_state(items)}")
        if not items:
            st.caption("None. Every edit that is solved joins by itself, for this session only.")
            return
        st.toggle("Original model", key="original_model", help="Switches every edit off, without forgetting any.")
        for position, item in enumerate(items):
            _edit_row(item, position)


def _state(items: list[session.ActiveEdit]) -> str:
    if st.session_state.get("original_model"):
        return "all off"
    return f"{sum(item.on for item in items)} on" if items else "none"


def _edit_row(item: session.ActiveEdit, position: int) -> None:
    id = item.edit.id
    lm = session.loaded()
    other = lm is not None and item.edit.base != lm.fingerprint
    on, scale = f"on-{id}", f"scale-{id}"
    st.session_state[on], st.session_state[scale] = item.on, item.scale  # what a page did to it shows here

    def switch() -> None:
        item.on = bool(st.session_state[on])

    def set_strength() -> None:
        item.scale = float(st.session_state[scale])

    row = st.container(horizontal=True, vertical_alignment="center", gap="small")
    row.toggle(
        literal(f"{item.label} (other model)" if other else item.label), key=on, disabled=other, on_change=switch
    )
    with row.popover("…", help="Strength, order, remove"):
        st.slider("Strength", 0.0, 1.5, step=0.05, key=scale, on_change=set_strength, help="1 is as solved.")
        if position:
            st.button("Move up", key=f"up-{id}", on_click=session.move_up, args=(id,))
        st.button("Remove", key=f"remove-{id}", on_click=session.remove_edit, args=(id,))


# -------------------------------------------------------------------------------------------------------------- jobs


def _running() -> None:
    """This session's running jobs, on every page."""
    jobs = [job for job in track.my_jobs() if job.live]

    @st.fragment(run_every=track.POLL_SECONDS if jobs else None)
    def pill() -> None:
        for job in track.my_jobs():
            st.progress(job.fraction, track.describe(job))
        track.rerun_at_the_end(jobs)

    pill()
