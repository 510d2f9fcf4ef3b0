"""MEMIT: many facts at once, spread over several layers, by regularised least squares (Meng et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rome_core.editing.edit import Edit
from rome_core.editing.method import Term
from rome_core.editing.methods.least_squares import EarlierKeys, KeyColumns, Residuals, SpreadUpdate, least_squares
from rome_core.editing.second_moment import Moment
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel
from rome_core.settings import setting


@dataclass(frozen=True)
class Memit(SpreadUpdate):
    """λ is in units of facts: how many ordinary keys an edited one is weighed against."""

    name: ClassVar[str] = "memit"
    title: ClassVar[str] = (
        "MEMIT: least squares over several layers, for one fact or many. On one layer it tends to ROME's homogeneous "
        "form as λ → 0."
    )
    formula: ClassVar[str] = r"\Delta_l = R_l K_l^\top (\lambda C_l + K_l K_l^\top)^{-1}"
    weight: float = setting(
        20.0,
        "λ",
        "How much Δ is held back on ordinary keys. Small values reach the values exactly, large ones under-edit.",
        source="docs/methods.md; 15,000 in the authors' GPT-2 XL settings",
        bounds=(0.0, 1e6, 1.0),
    )

    def layer_update(
        self, module: str, residuals: Residuals, keys: KeyColumns, moment: Moment, earlier: EarlierKeys
    ) -> Delta:
        return least_squares(module, residuals, keys, moment, self.ridge, self.weight)

    def terms(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Callable[[int], Moment | None]
    ) -> list[Term]:
        weight = Term(r"\lambda", self.weight, "the weight of the second term, relative to C")
        return [*super().terms(lm, edit, below, moments), weight]

    def notes(self, edit: Edit, missed: Mapping[int, float | None]) -> list[str]:
        words = (
            "MEMIT is least squares and not an equality. With one fact it is ROME's homogeneous form only on one layer "
            "and in the limit λ → 0; it is often said to be ROME, without the limit."
        )
        if len(edit.requests) == 1 and None not in missed.values():
            parts = ", ".join(f"{1 - (share or 0.0):.1%} in layer {layer}" for layer, share in missed.items())
            words += f" With this λ an update brings about kᵀC⁻¹k / (λ + kᵀC⁻¹k) of what it is asked for: {parts}."
        return [words]
