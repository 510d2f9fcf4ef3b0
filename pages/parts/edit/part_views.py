"""A finished edit part by part: the search for v*, the key, the value, the update, and what the method asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st
import torch

from pages.parts.edit import figures, part_figures
from pages.parts.edit.views import caption, identity
from pages.shared import moment_panel
from pages.shared.charts import ask_once, draw_chart, page_theme
from pages.shared.session import compute_once
from pages.shared.text import literal, number
from rome_core import LanguageModel
from rome_core.diagnosis.inspection import constraint_error, key_cosines, promoted_tokens, spectrum, strongest_neurons
from rome_core.diagnosis.objective import Account, Changed, account
from rome_core.editing.edit import Delta
from rome_core.evaluation.before_after import Report


def search(lm: LanguageModel, report: Report) -> None:
    steps, target = report.edit.history, report.request.target_new.strip()
    figure = figures.steps_figure(steps, target, len(steps), caption(lm, report), page_theme())
    draw_chart(figure, "search", "edit")


def key_view(lm: LanguageModel, report: Report) -> None:
    edit, words = report.edit, caption(lm, report)
    k_star, k_0 = first_row(edit.k_star), first_row(edit.k_0)
    cosine = float(torch.cosine_similarity(k_star, k_0, dim=0))
    st.markdown(
        "**k\\*** is what the layer's down projection reads at the subject's last token, averaged over the prefixes. "
        f"Its norm is {number(float(k_star.norm()))}; the bare prompt's key k₀ has norm "
        f"{number(float(k_0.norm()))} and stands at cosine {cosine:.3f} to it."
    )
    left, right = st.columns(2)
    with left:
        draw_chart(part_figures.neurons_figure(strongest_neurons(edit), words, page_theme()), "neurons", "edit")
    if edit.known_keys.prompts is not None:
        with right:
            cosines = compute_once(("cosines", identity(report)), lambda: key_cosines(edit).numpy())
            draw_chart(part_figures.cosines_figure(cosines, words, page_theme()), "cosines", "edit")


def leading_part(delta: Delta) -> tuple[Delta, float]:
    """The strongest rank-one part of an update, and its share of ‖Δ‖²."""
    if delta.U.shape[1] == 1:
        return delta, 1.0
    left, values, right = torch.linalg.svd(delta.matrix(), full_matrices=False)
    part = Delta(delta.module, left[:, :1] * values[0], right[:1])
    return part, float(values[0] ** 2 / values.square().sum().clamp(min=1e-300))


def first_row(vectors: torch.Tensor) -> torch.Tensor:
    """The first request's vector of an edit that may hold several."""
    return vectors.reshape(-1, vectors.shape[-1])[0]


def value_view(lm: LanguageModel, report: Report) -> None:
    edit = report.edit
    v_0, v_star = first_row(edit.v_0), first_row(edit.v_star)
    st.markdown(
        (
            "**v\\*** is what the layer shall answer to k\\*: v₀ + δ. "
            if edit.config.adds_to != "resid_post"
            else "**v\\*** is what the last edited block shall put out at the subject's last token: h + δ (MEMIT's z). "
        )
        + f"‖v₀‖ = {number(float(v_0.norm()))}, ‖v\\*‖ = {number(float(v_star.norm()))}. "
        "Read through the model's own head, each promotes the tokens below. In an early layer the new object need not "
        "be among them: later layers read the value first."
    )
    before, after = promoted_tokens(lm, v_0), promoted_tokens(lm, v_star)
    draw_chart(part_figures.promoted_figure(before, after, caption(lm, report), page_theme()), "promoted", "edit")


def update_view(lm: LanguageModel, report: Report) -> None:
    """The factors and the spectrum of Δ; of several matrices, of the one that the user chooses."""
    edit, words = report.edit, caption(lm, report)
    names = [delta.module for delta in edit.deltas]
    chosen = names[-1] if len(names) == 1 else st.segmented_control("Matrix", names, default=names[-1], required=True)
    part = replace(edit, deltas=(edit.deltas[names.index(chosen)],))
    check = ""
    if report.diagnosis:
        key = "k₀" if edit.config.asks_at == "k_0" else "k\\*"
        error = compute_once(("constraint", identity(report)), lambda: constraint_error(lm, edit, edits=report.below))
        check = f" Check of (W + Δ) {key} = v\\*: relative error {error:.1e}."
    st.markdown(
        f"**Δ = U V**, of rank {part.deltas[0].U.shape[1]} at most, is added to W, `{chosen}`. "
        f"It moves the weights by {number(report.size.modules[chosen])} of their Frobenius norm "
        f"(‖Δ‖ = {number(part.delta_norm)}).{check}"
    )
    leading, share = compute_once(("leading", chosen, identity(report)), lambda: leading_part(part.deltas[0]))
    if part.deltas[0].U.shape[1] > 1:
        st.caption(f"Below, the strongest of its rank-one parts, which is {share:.0%} of ‖Δ‖².")
    draw_chart(part_figures.factors_figure(leading, words, page_theme()), "factors", "edit")
    before, after = compute_once(("spectrum", chosen, identity(report)), lambda: spectrum(lm, part))
    figure = part_figures.spectrum_figure(before.tolist(), after.tolist(), words, page_theme())
    draw_chart(figure, "spectrum", "edit")


def objective_view(lm: LanguageModel, report: Report) -> None:
    """The problem, the update that solves it, how exactly it is met, and what each matrix changes."""
    edit = report.edit
    made = moment_panel.made_here(lm, edit.config.layers)
    key = ("objective", identity(report), *((layer, C.corpus, C.n_tokens) for layer, C in made.items()))
    accounted: Account | None = ask_once(key, lambda: account(lm, edit, report.below, made))
    if accounted is None:
        return
    updates = accounted.objective != edit.config.formula
    st.markdown("**What the method asks for**" + (", and the update that answers it" if updates else ""))
    st.latex(accounted.objective)
    if updates:
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
