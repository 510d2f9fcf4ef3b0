"""What the method asks for, with this edit's numbers beside the symbols."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.parts.edit.views import caption, identity
from pages.shared import moment_panel
from pages.shared.charts import ask_once
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
    accounted: Account | None = ask_once(key, lambda: account(lm, edit, report.below, made))
    if accounted is None:
        return
    st.markdown(
        "**What the method asks for**" + (", and the update that answers it" if _update(accounted, edit) else "")
    )
    st.latex(accounted.objective)
    if _update(accounted, edit):
        st.latex(edit.config.formula)
    rows = [f"| ${term.symbol}$ | {number(term.value)} | {literal(term.meaning)} |" for term in accounted.terms]
    if rows:
        st.markdown("\n".join(["| | this edit | |", "| :--- | ---: | :--- |", *rows]))
    st.markdown("**What it changes**")
    st.markdown("\n".join(matrix_rows(accounted.matrices)))
    st.caption(
        r"$\lVert\Delta C^{1/2}\rVert_F$ is the root mean square of what Δ adds to the layer's outputs on ordinary "
        "text, all outputs together; beside it the smallest that does the same at the edited keys. Left over: the "
        "share of the asked residual that Δ does not bring about at those keys. All computed from this edit now."
    )
    for note in accounted.notes:
        st.markdown(literal(note))
    st.caption(literal(caption(lm, report)))


def _update(accounted: Account, edit: object) -> bool:
    return accounted.objective != edit.config.formula  # type: ignore[attr-defined]


def matrix_rows(matrices: Sequence[Changed]) -> list[str]:
    """A Markdown table, a row a matrix. A quantity that no matrix has gets no column."""
    columns = {
        "layer": lambda matrix: literal(str(matrix.module if matrix.layer is None else matrix.layer)),
        "rank": lambda matrix: str(matrix.rank),
        r"$\lVert\Delta\rVert_F / \lVert W\rVert_F$": lambda matrix: number(matrix.relative_norm),
        r"$\lVert\Delta C^{1/2}\rVert_F$": lambda matrix: _number(matrix.change),
        r"of $\lVert W C^{1/2}\rVert_F$": lambda matrix: _number(matrix.relative_change),
        "smallest possible": lambda matrix: _number(matrix.least),
        "left over": lambda matrix: _number(matrix.missed),
    }
    kept = {name: [cell(matrix) for matrix in matrices] for name, cell in columns.items()}
    kept = {name: cells for name, cells in kept.items() if any(cells)}
    lines = ["| " + " | ".join(kept) + " |", "|" + " ---: |" * len(kept)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in zip(*kept.values(), strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
