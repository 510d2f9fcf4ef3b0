"""A finished edit part by part: the search for v*, the key, the value, the update."""

from __future__ import annotations

import streamlit as st

from pages.shared import edit_figures, part_figures
from pages.shared.edit_report import Report
from pages.shared.edit_views import caption, chart, identity, look, once
from pages.shared.text import number
from rome_core import LanguageModel
from rome_core.inspection import constraint_error, key_cosines, promoted_tokens, spectrum, strongest_neurons


def search(lm: LanguageModel, report: Report) -> None:
    steps, target = report.edit.history, report.request.target_new.strip()
    chart(edit_figures.steps_figure(steps, target, len(steps), caption(lm, report), look()), "search")


def key_view(lm: LanguageModel, report: Report) -> None:
    edit = report.edit
    st.markdown(
        "**k\\*** is what the layer's down projection reads at the subject's last token, averaged over the prefixes. "
        f"Its norm is {number(float(edit.k_star.norm()))}; the bare prompt's key k₀ has norm "
        f"{number(float(edit.k_0.norm()))} and stands at cosine {report.diagnosis.cosine:.3f} to it."
    )
    words = caption(lm, report)
    left, right = st.columns(2)
    with left:
        chart(part_figures.neurons_figure(strongest_neurons(edit), words, look()), "neurons")
    with right:
        cosines = once(("cosines", identity(report)), lambda: key_cosines(edit).numpy())
        chart(part_figures.cosines_figure(cosines, words, look()), "cosines")


def value_view(lm: LanguageModel, report: Report) -> None:
    edit = report.edit
    st.markdown(
        "**v\\*** is what the layer shall answer to k\\*: v₀ + δ. "
        f"‖v₀‖ = {number(float(edit.v_0.norm()))}, ‖v\\*‖ = {number(float(edit.v_star.norm()))}. "
        "Read through the model's own head, each promotes the tokens below. In an early layer the new object need not "
        "be among them: later layers read the value first."
    )
    before, after = promoted_tokens(lm, edit.v_0), promoted_tokens(lm, edit.v_star)
    chart(part_figures.promoted_figure(before, after, caption(lm, report), look()), "promoted")


def update_view(lm: LanguageModel, report: Report) -> None:
    edit, d, words = report.edit, report.diagnosis, caption(lm, report)
    key = "k₀" if edit.method == "rome" else "k\\*"
    error = once(("constraint", identity(report)), lambda: constraint_error(lm, edit))
    st.markdown(
        f"**Δ = U V** is added to W of layer {d.layer}, `{edit.deltas[0].module}`. "
        f"It moves the weights by {number(d.relative_F)} of their Frobenius norm (‖Δ‖ = {number(d.norm_F)}) "
        f"and by {number(d.relative_2)} of their spectral norm. "
        f"Check of (W + Δ) {key} = v\\*: relative error {error:.1e}."
    )
    chart(part_figures.factors_figure(edit.deltas[0], words, look()), "factors")
    values = once(("spectrum", identity(report)), lambda: [values.tolist() for values in spectrum(lm, edit)])
    chart(part_figures.spectrum_figure(values[0], values[1], words, look()), "spectrum")
