"""Small tables and texts that are shown as they are, whatever Markdown would make of them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from pages.shared.text import literal, word_differences


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Every row and column at once, long texts wrapped."""
    cells = [{literal(name): literal(str(value)) for name, value in row.items()} for row in rows]
    st.table(cells, border="horizontal", hide_index=True)


def draw_texts(opening: str, texts: Mapping[str, str]) -> None:
    """What two models write behind one opening, side by side, each under its name; words that differ are marked."""
    marked = word_differences(*texts.values())
    for place, name, text in zip(st.columns(2), texts, marked, strict=True):
        with place:
            draw_text(name, opening, text)


def draw_text(name: str, opening: str, marked: str) -> None:
    """One text under its name. marked: HTML, as word_differences gives it."""
    words = f"<small>{html.escape(name)}</small><br><b>{html.escape(opening)}</b> {marked}"
    st.html(f'<p style="margin:0;overflow-wrap:anywhere">{words}</p>')
