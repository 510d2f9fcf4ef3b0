"""Path severing: how much of a restored state's effect flows through the MLPs or the attention above it.

The state is restored while the outputs of one module type above it stay those of the corrupted run (Meng et al. 2022,
section 2.2 and figure 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell, Module, Window
from rome_core.model.tokens import Prompt
from rome_core.progress import Track, silent
from rome_core.tracing.restoration import n_steps, restored_states
from rome_core.tracing.runs import Runs, TraceConfig

SEVERED_BY: dict[Module, str] = {"mlp_out": "without_mlp", "attn_out": "without_attention"}


@dataclass(frozen=True, eq=False)
class Severed:
    """Indirect effect of restoring the residual state at the subject's last token, by layer; NaN until computed.

    without_mlp, without_attention: the same while that token's MLP (attention) outputs above stay the corrupted ones.
    What is missing against `plain` is what flows through that module type.
    """

    prompt: Prompt
    config: TraceConfig
    token: int
    plain: Float[Tensor, " layer"]
    without_mlp: Float[Tensor, " layer"]
    without_attention: Float[Tensor, " layer"]

    @property
    def through_mlp(self) -> Float[Tensor, " layer"]:
        return self.plain - self.without_mlp

    @property
    def through_attention(self) -> Float[Tensor, " layer"]:
        return self.plain - self.without_attention


def path_severing_steps(lm: LanguageModel, runs: Runs, *, track: Track = silent) -> Iterator[Severed]:
    """The three curves as they fill. Site and window of the runs' config do not matter here."""
    config, token, n = runs.request.config, runs.subject[1] - 1, lm.n_layers
    curve_of: dict[Cell, str] = {}
    for layer in range(n):
        curve_of[Cell(token, layer, resid=layer)] = "plain"
        if layer + 1 < n:  # above the last block there is nothing to sever
            for site, curve in SEVERED_BY.items():
                window = Window(site, layer + 1, n, runs.corrupted)
                curve_of[Cell(token, layer, resid=layer, windows=(window,))] = curve
    cells = list(curve_of)
    empty = torch.full((n,), torch.nan)
    result = Severed(runs.request.prompt, config, token, empty, empty, empty)
    corrupted = float(runs.scores(config.metric, runs.logits(lm, runs.corrupted)).mean())
    for finished in track(restored_states(lm, runs, cells), "Severed paths", n_steps(lm, runs, cells)):
        for cell, logits in finished:
            effect = float(runs.scores(config.metric, logits).mean()) - corrupted
            for curve in [curve_of[cell]] if cell.layer + 1 < n else ["plain", *SEVERED_BY.values()]:
                values = getattr(result, curve).clone()
                values[cell.layer] = effect
                result = replace(result, **{curve: values})
        yield result
