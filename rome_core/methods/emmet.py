"""EMMET: many facts in one layer, each held exactly (Gupta et al. 2024, arXiv 2403.14236)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.edits import Edit, Step
from rome_core.errors import EditError
from rome_core.methods.mass import least_squares, wanted
from rome_core.methods.rome import RomeConfig
from rome_core.methods.value import Report, keys_of, sampled_prefixes
from rome_core.model import LanguageModel
from rome_core.moment import Moment, moments_for
from rome_core.progress import Track
from rome_core.settings import setting
from rome_core.tokens import EditRequest


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
        prefixes = self.prefixes or sampled_prefixes(lm, self.seed, edits)
        facts = wanted(lm, requests, self, prefixes, "mlp_out", edits, track, report)
        (layer,) = self.layers
        moment = moments_for(lm, [layer], moments, track)[layer]
        found = [keys_of(lm, fact.prompts, layer, edits) for fact in facts]
        keys = torch.stack([one.keys.mean(0) for one in found], 1)
        residuals = torch.stack([fact.delta for fact in facts], 1)
        return _edit(
            lm,
            requests,
            replace(self, prefixes=tuple(prefixes)),
            keys,
            torch.stack([one.values.mean(0) for one in found]),
            residuals,
            torch.stack([one.k_0 for one in found]),
            torch.stack([one.v_0 for one in found]),
            tuple(step for fact in facts for step in fact.history),
            moment,
            tuple(edit.id for edit in edits),
        )


def _edit(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: Emmet,
    keys: Float[Tensor, "d_mlp n"],
    values: Float[Tensor, "n d_model"],
    residuals: Float[Tensor, "d_model n"],
    k_0: Float[Tensor, "n d_mlp"],
    v_0: Float[Tensor, "n d_model"],
    history: tuple[Step, ...],
    moment: Moment,
    on: tuple[str, ...],
) -> Edit:
    """The update of facts whose keys and residuals are known. values: W k of the mean keys."""
    weight = 0.0
    if len(requests) > 1:
        K = keys.double().cpu()
        weight = config.slack * float((K * moment.solve(K, config.ridge)).sum(0).mean())
    return Edit(
        requests=tuple(requests),
        method=config.name,
        config=config,
        deltas=(least_squares(lm.down_projection(moment.layer), residuals, keys, moment, config.ridge, weight),),
        k_star=keys.T,
        v_star=values + residuals.T,
        k_0=k_0,
        v_0=v_0,
        history=history,
        base=lm.fingerprint,
        on=on,
        corpus=f"{moment.corpus}, {moment.n_tokens:,} tokens",
        extras={f"keys_{moment.layer}": keys},
    )


def emmet_of(lm: LanguageModel, edit: Edit, config: Emmet, moments: Mapping[int, Moment] | None = None) -> Edit:
    """EMMET's edit of one fact from the δ and the keys of a key policy's edit, without searching again."""
    if "keys" not in edit.extras or "delta" not in edit.extras:
        raise EditError(f"An edit by '{edit.method}' cannot be turned into '{config.name}'.", "", "Solve it again.")
    moment = moments_for(lm, [edit.config.layer], moments)[edit.config.layer]
    kept = edit.extras
    key, value = kept["keys"].mean(0), kept["values"].mean(0)
    residual = kept["delta"][:, None]
    return _edit(
        lm,
        edit.requests,
        config,
        key[:, None],
        value[None],
        residual,
        edit.k_0[None],
        edit.v_0[None],
        edit.history,
        moment,
        edit.on,
    )
