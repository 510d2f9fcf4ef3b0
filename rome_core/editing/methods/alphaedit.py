"""AlphaEdit: MEMIT's update, projected onto what ordinary text does not use (Fang et al. 2025, arXiv 2410.02355)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.editing.method import Term
from rome_core.editing.methods.least_squares import EarlierKeys, KeyColumns, Residuals, SpreadUpdate, delta_of
from rome_core.editing.second_moment import Moment
from rome_core.errors import EditError
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel
from rome_core.settings import setting


def null_space(moment: Moment, energy: float) -> Float[Tensor, "d_mlp r"]:
    """Orthonormal eigenvectors of C with the smallest eigenvalues, as many as together hold `energy` of its trace."""
    values, vectors = moment.eigen
    share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    return vectors[:, share <= energy]


@dataclass(frozen=True)
class AlphaEdit(SpreadUpdate):
    """P is made from the directions of C that together hold less than `energy` of it."""

    name: ClassVar[str] = "alphaedit"
    title: ClassVar[str] = (
        "AlphaEdit: only along directions that ordinary keys hardly use, and away from the keys of its earlier edits."
    )
    formula: ClassVar[str] = (
        r"\Delta_l = R_l K_l^\top P\,(K_p K_p^\top P + K_l K_l^\top P + \lambda I)^{-1},\quad P C \approx 0"
    )
    objective: ClassVar[str] = (
        r"\min_{\Delta_l}\ \lVert\Delta_l P K_l - R_l\rVert^2 + \lVert\Delta_l P K_p\rVert^2 "
        r"+ \lambda' \lVert\Delta_l P\rVert^2"
    )
    energy: float = setting(
        0.1,
        "Energy",
        "The share of C's trace that the directions left free may hold together. More room to edit, less protection.",
        source="relative, as C's scale depends on the model; the authors cut at an absolute eigenvalue of 0.02",
        bounds=(0.0, 1.0, 0.01),
    )
    weight: float = setting(
        0.01,
        "λ",
        "Ridge of the solve, in units of the mean squared norm of the projected keys.",
        source="relative; 10 in absolute units in the authors' code",
        bounds=(1e-9, 1e3, 0.01),
    )

    def layer_update(
        self, module: str, residuals: Residuals, keys: KeyColumns, moment: Moment, earlier: EarlierKeys
    ) -> Delta:
        """Solved in the coordinates of the null space, where P is the identity: k' = Qᵀk."""
        Q = null_space(moment, self.energy)
        own, kept = Q.T @ keys.cpu().double(), Q.T @ earlier.cpu().double()
        scale = float(own.square().sum(0).mean())
        if Q.shape[1] == 0 or scale == 0:
            raise EditError(
                f"Nothing of these keys is left in the directions that hold {self.energy:g} of C.",
                "",
                "Raise the energy.",
            )
        gram = own @ own.T + kept @ kept.T
        gram.diagonal().add_(self.weight * scale)
        return delta_of(module, residuals.cpu().double(), torch.linalg.solve(gram, own).T @ Q.T, residuals)

    def terms(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Callable[[int], Moment | None]
    ) -> list[Term]:
        found = super().terms(lm, edit, below, moments)
        for layer in self.layers:
            moment = moments(layer)
            if moment is not None:
                values = torch.linalg.eigvalsh(moment.C.double()).clamp(min=0)  # as null_space, without the vectors
                room = int((values.cumsum(0) / values.sum() <= self.energy).sum())
                found.append(
                    Term(rf"\operatorname{{rank}} P_{{{layer}}}", room, f"directions of {lm.d_mlp:,} left free")
                )
        words = "the weight of the second term, in units of the mean squared norm of P k"
        return [*found, Term(r"\lambda'", self.weight, words)]
