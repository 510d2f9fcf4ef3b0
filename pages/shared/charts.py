"""Figures, large numbers, tabs and files on the screen: one way to draw them, one set of options."""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import plotly.graph_objects as go
import streamlit as st

from pages.shared import address, session, track
from pages.shared.style import DARK, LIGHT, Theme
from pages.shared.text import literal
from rome_core import RomeError

T = TypeVar("T")
MODE_BAR = ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]


def page_theme() -> Theme:
    """The theme of the page as this visitor sees it, or the light one for figures on white."""
    if st.session_state.get("on_white"):
        return LIGHT
    return DARK if st.context.theme.type == "dark" else LIGHT


def draw_chart(figure: go.Figure, key: str, file: str, alt: str = "") -> None:
    """Draw a figure; its title is what a screen reader says, unless there are other words. file: its name if saved."""
    st.plotly_chart(figure, **_options(figure, key, file, alt))


def draw_clickable_chart(
    figure: go.Figure, key: str, file: str, on_click: Literal["rerun"] | Callable[[], None] = "rerun", alt: str = ""
) -> list[dict[str, Any]]:
    """Draw a figure whose points can be clicked. Returns the chosen points; `on_click` is called after a click."""
    options = _options(figure, key, file, alt)
    event: Any = st.plotly_chart(figure, on_select=on_click, selection_mode="points", **options)
    return list(event["selection"]["points"])


def _options(figure: go.Figure, key: str, file: str, alt: str) -> dict[str, Any]:
    """Plotly's own look (the frame sets ours), and a camera button that saves in the chosen format."""
    spoken = html.unescape(figure.layout.title.text.replace("<br>", ", "))
    image = {"format": (st.session_state.get("camera") or "SVG").lower(), "filename": f"rome-{file}", "scale": 2}
    config = {"toImageButtonOptions": image, "displaylogo": False, "modeBarButtonsToRemove": MODE_BAR}
    return {"key": key, "theme": None, "config": config, "alt": alt or spoken}


def choose_image_format() -> None:
    """What the camera button of every figure saves, and on which ground."""
    st.segmented_control(
        "Camera button saves", ["SVG", "PNG"], default="SVG", key="camera", required=True, persist_state="session"
    )
    st.toggle("Figures on white", key="on_white", persist_state="session", help="For paper, whatever the page's theme.")


def download(label: str, make: Callable[[], str | bytes], file: str, key: str | None = None, help: str = "") -> None:
    """A button that makes a file when it is pressed."""
    st.download_button(label, make, file, on_click="ignore", key=key, help=help or None)


def metric_row(*numbers: tuple[str, str, str, str]) -> None:
    """A row of metrics (label, value, a second number below it, help); on a narrow page two rows."""
    with st.container(horizontal=True):
        for label, value, below, help in numbers:
            name, second = literal(label), literal(below)
            st.metric(name, value, second, delta_color="off", delta_arrow="off", help=literal(help), width=172)


@contextmanager
def result_of(what: str, moved_on: bool, again: str) -> Iterator[None]:
    """A result under the name of what was asked; it stands apart once the form above asks something else.

    again: the button that would ask it.
    """
    st.markdown(f"**{literal(what)}**")
    if moved_on:
        st.caption(f"The form has changed since this run; press **{again}** to run it.")
    with st.container(key="result-apart" if moved_on else "result"):
        yield


def choose_view(label: str, views: Mapping[str, T], key: str) -> T:
    """What the page shows of several views; the address keeps the choice. The first one is there at first."""
    names = list(views)
    address.carry(key, label, address.one_of(names))
    look: dict[str, Any] = {"persist_state": "session", "required": True, "label_visibility": "collapsed"}
    return views[st.segmented_control(label, names, default=names[0], key=key, **look)]


def draw_tabs(views: Mapping[str, Callable[[], None]], key: str) -> None:
    """A tab a view; only the open one is computed."""
    for tab, draw in zip(st.tabs(list(views), key=key, on_change="rerun"), views.values(), strict=True):
        if tab.open:
            with tab:
                draw()


def ask_once(key: Hashable, make: Callable[[], T]) -> T | None:
    """A short computation, done once for each set of inputs. What cannot be done is said in one sentence."""
    try:
        with st.spinner("Asking the model", show_time=True):
            return session.compute_once(key, make)
    except RomeError as error:
        track.show_error(error)
        return None
