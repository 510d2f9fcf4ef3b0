"""Small tables and words that are shown as they are typed, whatever Markdown would make of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$<>:-])")


def literal(text: str) -> str:
    """Text that Markdown leaves as it is: k*ᵀC⁻¹k* keeps its stars."""
    return _MARKS.sub(r"\\\1", text)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Every row and column at once, long texts wrapped."""
    cells = [{literal(name): literal(str(value)) for name, value in row.items()} for row in rows]
    st.table(cells, border="horizontal", hide_index=True)
