"""Severed paths: how much of a restored state's effect flows through the MLPs or the attention above it
(Meng et al. 2022, section 2.2 and figure 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.edits import Update
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell, Window
from rome_core.model.tokens import Prompt
from rome_core.progress import Track, silent
from rome_core.tracing.restoration import DEFAULT_BUDGET, n_steps, restored_states
from rome_core.tracing.runs import TraceConfig, prepare


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


def severed_steps(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig,
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Update] = (),
    budget: int = DEFAULT_BUDGET,
    track: Track = silent,
) -> Iterator[Severed]:
    """The three curves as they fill. Site and window of the config do not matter here."""
    runs = prepare(lm, prompt, config, noise=noise, answer=answer, foil=foil, edits=edits)
    token, n = runs.subject[1] - 1, lm.n_layers
    names: dict[Cell, str] = {}
    for layer in range(n):
        names[Cell(token, layer, resid=layer)] = "plain"
        if layer + 1 < n:  # above the last block there is nothing to sever
            for site, name in (("mlp_out", "without_mlp"), ("attn_out", "without_attention")):
                window = Window(site, layer + 1, n, runs.corrupted)  # type: ignore[arg-type]
                names[Cell(token, layer, resid=layer, windows=(window,))] = name
    empty = torch.full((n,), torch.nan)
    result = Severed(prompt, config, token, empty, empty, empty)
    corrupted = float(runs.scores(config.metric, lm.logits(runs.corrupted.states[-1][:, -len(runs.answer) :])).mean())
    steps = restored_states(lm, runs, list(names), budget)
    for finished in track(steps, "Severed paths", n_steps(lm, runs, list(names), budget)):
        for cell, logits in finished:
            effect = float(runs.scores(config.metric, logits).mean()) - corrupted
            curves = [names[cell]] if cell.layer + 1 < n else ["plain", "without_mlp", "without_attention"]
            for curve in curves:
                values = getattr(result, curve).clone()
                values[cell.layer] = effect
                result = replace(result, **{curve: values})
        yield result


def severed(
    lm: LanguageModel, prompt: Prompt, config: TraceConfig = TraceConfig(), *, edits: Sequence[Update] = ()
) -> Severed:
    """All three curves."""
    *_, last = severed_steps(lm, prompt, config, edits=edits)
    return last
