"""AlphaEdit: MEMIT's update, projected onto what ordinary text does not use (Fang et al. 2025, arXiv 2410.02355)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.methods.least_squares import Keys, MassConfig, Residuals, delta_of
from rome_core.editing.second_moment import Moment
from rome_core.errors import EditError
from rome_core.model.edits import Delta
from rome_core.settings import setting


def null_space(moment: Moment, energy: float) -> Float[Tensor, "d_mlp r"]:
    """Orthonormal eigenvectors of C with the smallest eigenvalues, as many as together hold `energy` of its trace."""
    values, vectors = moment.eigen()
    share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    return vectors[:, share <= energy]


@dataclass(frozen=True)
class AlphaEdit(MassConfig):
    """P is made from the directions of C that together hold less than `energy` of it."""

    name: ClassVar[str] = "alphaedit"
    title: ClassVar[str] = (
        "AlphaEdit: only along directions that ordinary keys hardly use, and away from the keys of its earlier edits."
    )
    formula: ClassVar[str] = (
        r"\Delta_l = R_l K_l^\top P\,(K_p K_p^\top P + K_l K_l^\top P + \lambda I)^{-1},\quad P C \approx 0"
    )
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
    energy: float = setting(
        0.1,
        "Energy",
        "The share of C's trace that the directions left free may hold together. More room to edit, less protection.",
        source="relative, as C's scale depends on the model; the authors cut at an absolute eigenvalue of 0.02",
        low=0.0,
        high=1.0,
        step=0.01,
    )
    weight: float = setting(
        0.01,
        "λ",
        "Ridge of the solve, in units of the mean squared norm of the projected keys.",
        source="relative; 10 in absolute units in the authors' code",
        low=1e-9,
        high=1e3,
        step=0.01,
    )

    def update(
        self, module: str, residuals: Residuals, keys: Keys, moment: Moment, earlier: Float[Tensor, "d_mlp m"]
    ) -> Delta:
        """Solved in the coordinates of the null space, where P is the identity: k' = Qᵀk."""
        Q = null_space(moment, self.energy)
        own, kept = Q.T @ keys.double().cpu(), Q.T @ earlier.double().cpu()
        scale = float(own.square().sum(0).mean())
        if Q.shape[1] == 0 or scale == 0:
            raise EditError(
                f"Nothing of these keys is left in the directions that hold {self.energy:g} of C.",
                "",
                "Raise the energy.",
            )
        gram = own @ own.T + kept @ kept.T
        gram.diagonal().add_(self.weight * scale)
        return delta_of(module, residuals.double().cpu(), torch.linalg.solve(gram, own).T @ Q.T, residuals)
