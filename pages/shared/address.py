"""The address of a page carries its whole form: what a link says is put into the form, what the form says is a link.

Streamlit's own binding leaves out a field that stands at its default, and writes field by field. Here nothing is left
out, because a default may be another one for whoever opens the link, and all fields are written at once, so that Back
never shows half of one form and half of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.shared.text import literal

Query = dict[str, str]
REMEMBERED = 50  # of the addresses that were written: the browser may be one behind


@dataclass
class Address:
    """What this session knows of the address of the page that is open.

    told: the query with which the page was opened. seeded: the widgets that have taken their value from it.
    widgets, texts: what this run's form consists of. said: the form that the browser's address stands for by now.
    """

    page: str = ""
    told: Query = field(default_factory=dict)
    seeded: set[str] = field(default_factory=set)
    widgets: list[str] = field(default_factory=list)
    texts: Query = field(default_factory=dict)
    said: Query | None = None
    written: list[Query] = field(default_factory=list)


def _address() -> Address:
    if "_address" not in st.session_state:
        st.session_state["_address"] = Address()
    address: Address = st.session_state["_address"]
    return address


def begin(page: str) -> Query | None:
    """Begin a run of a page. Returns its query if it was just opened by a link, by Back or by the navigation."""
    address, told = _address(), st.query_params.to_dict()
    address.widgets, address.texts = [], {}
    known = page == address.page and (told == address.told or told in address.written)
    if known and not _went_back():
        return None
    address.page, address.told, address.seeded, address.said = page, told, set(), None
    return told


def _went_back() -> bool:
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def carry(key: str, label: str, read: Callable[[str], object]) -> None:
    """Let the address carry the widget of this key. Called before the widget is drawn.

    read: the widget's value from the text of a link; raises ValueError where it is none. A link is a whole form: what
    it leaves out stands at its default.
    """
    address = _address()
    address.widgets.append(key)
    if key in address.seeded:
        return
    address.seeded.add(key)
    if key in address.told:
        try:
            st.session_state[key] = read(address.told[key])
            return
        except ValueError:
            said = literal(address.told[key][:80])
            st.warning(f"{label}: the link's “{said}” cannot be used; the form's own value stands.")
    if address.told:
        st.session_state.pop(key, None)


def carry_text(name: str, value: str) -> None:
    """Let the address carry a text that is kept elsewhere than in a widget of this name."""
    _address().texts[name] = value


def end(also: Mapping[str, str]) -> None:
    """End a run of a page: the address becomes that of the form as it stands, in one step.

    A link that was just opened stays as it is if it tells all texts: one press of Back leaves the page again.
    also: what belongs to the address of every form.
    """
    address = _address()
    if not address.widgets and not address.texts:
        return
    needed = {**address.texts, **also}
    form = needed | {key: _text(st.session_state[key]) for key in address.widgets if key in st.session_state}
    told_all = bool(address.told) and needed.items() <= address.told.items()
    before, address.said = address.said, form
    if form == before or (before is None and told_all) or form == st.query_params.to_dict():
        return
    address.written = [*address.written[1 - REMEMBERED :], form]
    st.query_params.from_dict(form)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------------------------------- reading what is linked


def one_of(choices: Iterable[object]) -> Callable[[str], object]:
    """The choice that reads like the text."""
    by_text = {_text(choice): choice for choice in choices}

    def read(text: str) -> object:
        if text not in by_text:
            raise ValueError(text)
        return by_text[text]

    return read


def a_number(kind: type[int] | type[float], low: float | None, high: float | None) -> Callable[[str], object]:
    """A number of a range; None: without an end."""

    def read(text: str) -> object:
        value = kind(text)
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise ValueError(text)
        return value

    return read


def yes_or_no(text: str) -> bool:
    """A switch; links of old say true and false."""
    said = {"yes": True, "true": True, "no": False, "false": False}
    if text.casefold() not in said:
        raise ValueError(text)
    return said[text.casefold()]
