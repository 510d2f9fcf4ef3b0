"""EMMET: many facts in one layer, each held exactly (Gupta et al. 2024, arXiv 2403.14236)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from rome_core.editing.methods.least_squares import Wanted, least_squares, wanted
from rome_core.editing.methods.rome import RomeConfig, prefixes_of
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.value import Report, keys_of
from rome_core.model.edits import Edit
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track
from rome_core.settings import setting


@dataclass(frozen=True)
class Emmet(RomeConfig):
    """Hyper-parameters of ROME, and the slack of its constraints in batches."""

    name: ClassVar[str] = "emmet"
    title: ClassVar[str] = "EMMET: ROME's homogeneous form for one fact or many, every fact an equality constraint."
    formula: ClassVar[str] = r"\Delta = R\,(K^\top C^{-1} K)^{-1} K^\top C^{-1}"
    batches: ClassVar[bool] = True
    slack: float = setting(
        1e-4,
        "Slack",
        "Added to the diagonal of KᵀC⁻¹K in batches, in units of its mean entry, for facts with nearly equal keys.",
        source="numerical safety",
        low=0.0,
        high=10.0,
        step=1e-4,
    )

    def solve(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        *,
        moments: Mapping[int, Moment] | None,
        edits: Sequence[Edit],
        track: Track,
        report: Report,
    ) -> Edit:
        """δ at the MLP's output and the mean key of the prefixed prompts, as in ROME; then all facts at once."""
        prefixes = prefixes_of(lm, self, edits)
        facts = wanted(lm, requests, self, prefixes, "mlp_out", edits, track, report)
        (layer,) = self.layers
        moment = moments_for(lm, [layer], moments, track)[layer]
        return at_once(lm, facts, replace(self, prefixes=tuple(prefixes)), moment, edits)


def at_once(lm: LanguageModel, facts: Sequence[Wanted], config: Emmet, moment: Moment, edits: Sequence[Edit]) -> Edit:
    """The update of facts whose values are known."""
    found = [keys_of(lm, fact.prompts, moment.layer, edits) for fact in facts]
    keys = torch.stack([one.keys.mean(0) for one in found], 1)
    residuals = torch.stack([fact.delta for fact in facts], 1)
    weight = 0.0
    if len(facts) > 1:
        K = keys.double().cpu()
        weight = config.slack * float((K * moment.solve(K, config.ridge)).sum(0).mean())
    return Edit(
        requests=tuple(fact.request for fact in facts),
        method=config.name,
        config=config,
        deltas=(least_squares(lm.down_projection(moment.layer), residuals, keys, moment, config.ridge, weight),),
        k_star=keys.T,
        v_star=torch.stack([one.values.mean(0) for one in found]) + residuals.T,
        k_0=torch.stack([one.k_0 for one in found]),
        v_0=torch.stack([one.v_0 for one in found]),
        history=tuple(step for fact in facts for step in fact.history),
        base=lm.fingerprint,
        on=tuple(edit.id for edit in edits),
        corpus=f"{moment.corpus}, {moment.n_tokens:,} tokens",
        extras={f"keys_{moment.layer}": keys},
    )
