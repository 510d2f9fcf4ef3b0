"""What the method asks for, with this edit's numbers beside the symbols."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.parts.edit.views import caption, identity, once
from pages.shared import moment_panel
from pages.shared.tables import literal
from pages.shared.text import number
from rome_core import LanguageModel
from rome_core.diagnosis.objective import Account, Changed, account
from rome_core.evaluation.before_after import Report


def objective_view(lm: LanguageModel, report: Report) -> None:
    """The problem, the update that solves it, how exactly it is met, and what each matrix changes."""
    edit = report.edit
    made = {layer: C for layer in edit.config.layers if (C := moment_panel.chosen(lm, layer)) is not None}
    key = ("objective", identity(report), *((layer, C.corpus, C.n_tokens) for layer, C in made.items()))
    found: Account | None = once(key, lambda: account(lm, edit, report.below, made))
    if found is None:
        return
    st.markdown("**What the method asks for**" + (", and the update that answers it" if _update(found, edit) else ""))
    st.latex(found.objective)
    if _update(found, edit):
        st.latex(edit.config.formula)
    rows = [f"| ${one.symbol}$ | {number(one.value)} | {literal(one.meaning)} |" for one in found.terms]
    if rows:
        st.markdown("\n".join(["| | this edit | |", "| :--- | ---: | :--- |", *rows]))
    st.markdown("**What it changes**")
    st.markdown("\n".join(matrix_rows(found.matrices)))
    st.caption(
        r"$\lVert\Delta C^{1/2}\rVert_F$ is the root mean square of what Δ adds to the layer's outputs on ordinary "
        "text, all outputs together; beside it the smallest that does the same at the edited keys. Left over: the "
        "share of the asked residual that Δ does not bring about at those keys. All computed from this edit now."
    )
    for note in found.notes:
        st.markdown(literal(note))
    st.caption(literal(caption(lm, report)))


def _update(found: Account, edit: object) -> bool:
    return found.objective != edit.config.formula  # type: ignore[attr-defined]


def matrix_rows(matrices: Sequence[Changed]) -> list[str]:
    """A Markdown table, a row a matrix. A quantity that no matrix has gets no column."""
    columns = {
        "layer": lambda one: literal(str(one.module if one.layer is None else one.layer)),
        "rank": lambda one: str(one.rank),
        r"$\lVert\Delta\rVert_F / \lVert W\rVert_F$": lambda one: number(one.relative_norm),
        r"$\lVert\Delta C^{1/2}\rVert_F$": lambda one: _number(one.change),
        r"of $\lVert W C^{1/2}\rVert_F$": lambda one: _number(one.relative_change),
        "smallest possible": lambda one: _number(one.least),
        "left over": lambda one: _number(one.missed),
    }
    kept = {name: [cell(one) for one in matrices] for name, cell in columns.items()}
    kept = {name: cells for name, cells in kept.items() if any(cells)}
    lines = ["| " + " | ".join(kept) + " |", "|" + " ---: |" * len(kept)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in zip(*kept.values(), strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
