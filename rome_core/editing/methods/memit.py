"""MEMIT: many facts at once, spread over several layers, by regularised least squares (Meng et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from rome_core.editing.methods.least_squares import Keys, MassConfig, Residuals, least_squares
from rome_core.editing.second_moment import Moment
from rome_core.model.edits import Delta
from rome_core.settings import setting


@dataclass(frozen=True)
class Memit(MassConfig):
    """λ is in units of facts: how many ordinary keys an edited one is weighed against."""

    name: ClassVar[str] = "memit"
    title: ClassVar[str] = (
        "MEMIT: least squares over several layers, for one fact or many. On one layer it tends to ROME's homogeneous "
        "form as λ → 0."
    )
    formula: ClassVar[str] = r"\Delta_l = R_l K_l^\top (\lambda C_l + K_l K_l^\top)^{-1}"
    clamp: float | None = setting(
        0.75,
        "Clamp",
        "‖δ‖ may grow to this many times the norm of the block's output.",
        source="Meng et al. 2023, the authors' code",
        low=0.05,
        high=20.0,
        step=0.05,
        unit="‖h‖",
    )
    weight: float = setting(
        20.0,
        "λ",
        "How much Δ is held back on ordinary keys. Small values reach the values exactly, large ones under-edit.",
        source="docs/methods.md; 15,000 in the authors' GPT-2 XL settings",
        low=0.0,
        high=1e6,
        step=1.0,
    )

    def update(
        self, module: str, residuals: Residuals, keys: Keys, moment: Moment, earlier: Float[Tensor, "d_mlp m"]
    ) -> Delta:
        return least_squares(module, residuals, keys, moment, self.ridge, self.weight)
