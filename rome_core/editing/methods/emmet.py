"""EMMET: many facts in one layer, each held exactly (Gupta et al. 2024, arXiv 2403.14236)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from rome_core.editing.edit import Edit, Keys
from rome_core.editing.method import EditContext, FoundValue, MethodConfig
from rome_core.editing.methods.least_squares import least_squares
from rome_core.editing.value import keys_of, prompts_of
from rome_core.editing.value_search import ValueSearch
from rome_core.settings import setting


@dataclass(frozen=True)
class Emmet(ValueSearch):
    """Hyper-parameters of ROME, and the slack of its constraints in batches."""

    name: ClassVar[str] = "emmet"
    title: ClassVar[str] = "EMMET: ROME's homogeneous form for one fact or many, every fact an equality constraint."
    formula: ClassVar[str] = r"\Delta = R\,(K^\top C^{-1} K)^{-1} K^\top C^{-1}"
    objective: ClassVar[str] = (
        r"\min_{\hat W}\ \lVert(\hat W - W)\,C^{1/2}\rVert_F^2\quad\text{subject to}\quad\hat W K = V"
    )
    batches: ClassVar[bool] = True
    slack: float = setting(
        1e-4,
        "Slack",
        "Added to the diagonal of KᵀC⁻¹K in batches, in units of its mean entry, for facts with nearly equal keys.",
        source="numerical safety",
        bounds=(0.0, 10.0, 1e-4),
    )

    def update(self, on: EditContext, values: Sequence[FoundValue]) -> Edit:
        """δ at the MLP's output and the mean key of the prefixed prompts, as in ROME; then all facts at once."""
        (layer,), lm = self.layers, on.lm
        moment = on.moments_for([layer])[layer]
        rows = [
            value.keys or keys_of(lm, prompts_of(lm, value.request, value.prefixes, self.kl_at), layer, on.edits)
            for value in values
        ]
        keys = torch.stack([own.keys.mean(0) for own in rows], 1)
        residuals = torch.stack([value.delta for value in values], 1)
        weight = 0.0
        if len(values) > 1:
            K = keys.cpu().double()
            weight = self.slack * float((K * moment.solve(K, self.ridge)).sum(0).mean())
        delta = least_squares(lm.down_projection(layer), residuals, keys, moment, self.ridge, weight)
        v_star = torch.stack([own.values.mean(0) for own in rows]) + residuals.T
        k_0, v_0 = torch.stack([own.k_0 for own in rows]), torch.stack([own.v_0 for own in rows])
        return self.edit_of(on, values, [delta], Keys(keys.T, v_star, k_0, v_0, by_layer={layer: keys}), [moment])

    def shares_search(self, other: MethodConfig) -> bool:
        return False  # its edits keep the mean key only
