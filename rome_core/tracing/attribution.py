"""A first look at a heat map in one forward and one backward pass: attribution patching, a linear approximation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.edits import Update
from rome_core.model.hooks import Patch, Point, hooked
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import Trace, empty_trace
from rome_core.tracing.restoration import window_of
from rome_core.tracing.runs import Runs, TraceConfig, TracedSite, prepare

SITES: tuple[TracedSite, ...] = ("resid_post", "mlp_out", "attn_out")


def preview(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig = TraceConfig(),
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Update] = (),
) -> Trace:
    """The heat map to first order: (h_clean − h_corrupted)·∂score/∂h at the corrupted run, averaged over the draws.

    Windows add their layers up. A saturated softmax makes it wrong (AtP*, Kramár et al. 2024): it is a preview, and
    `trace` gives the values.
    """
    return previews(lm, prompt, [config], noise=noise, answer=answer, foil=foil, edits=edits)[0]


def previews(
    lm: LanguageModel,
    prompt: Prompt,
    configs: Sequence[TraceConfig],
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Update] = (),
) -> list[Trace]:
    """Previews of several kinds from one pass; the configs may differ in site and window only."""
    runs = prepare(lm, prompt, configs[0], noise=noise, answer=answer, foil=foil, edits=edits)
    effects = _effects(lm, runs, configs[0])
    return [_as_trace(lm, prompt, config, runs, foil, effects[config.site]) for config in configs]


def _effects(lm: LanguageModel, runs: Runs, config: TraceConfig) -> dict[str, Float[Tensor, "pos layer"]]:
    """First-order effect of each single state, by site."""
    points = [Point(site, layer) for site in SITES for layer in range(lm.n_layers)]
    kept: dict[Point, Tensor] = {}
    at_embed, corrupt = runs.corruption

    def start_graph(state: Tensor) -> Tensor:
        return corrupt(state).requires_grad_()

    patch: Patch = start_graph
    with torch.enable_grad(), hooked(lm, runs.clean.edits, [(at_embed, patch)], kept.__setitem__, points):
        batch = runs.corrupted.batch
        final = lm.hf.base_model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
        ).last_hidden_state
    with torch.enable_grad():
        scores = runs.scores(config.metric, lm.unembed(final[:, -len(runs.answer) :]))
        gradients = dict(zip(points, torch.autograd.grad(scores.mean(), [kept[p] for p in points]), strict=True))
    n = len(runs.labels)
    return {
        site: torch.stack(
            [
                ((_clean(runs, site, layer) - kept[p]) * gradients[p]).detach().sum((0, -1))[:n]
                for layer in range(lm.n_layers)
                for p in (Point(site, layer),)
            ],
            1,
        )
        for site in SITES
    }


def _clean(runs: Runs, site: TracedSite, layer: int) -> Float[Tensor, "1 pos d_model"]:
    return runs.clean.states[layer + 1] if site == "resid_post" else runs.clean.outputs[site][layer]


def _as_trace(
    lm: LanguageModel, prompt: Prompt, config: TraceConfig, runs: Runs, foil: str | None, effect: Tensor
) -> Trace:
    if config.site != "resid_post":
        windows = [window_of(layer, config.window, lm.n_layers) for layer in range(lm.n_layers)]
        effect = torch.stack([effect[:, start:stop].sum(1) for start, stop in windows], 1)
    effect = effect.float().cpu()
    effect[: runs.subject[0]] = 0.0
    frame = empty_trace(lm, prompt, config, runs, foil)
    guess = torch.full_like(effect, torch.nan)
    if config.metric == "p":
        guess = (frame.corrupted + effect).clamp(0, 1)
    return replace(
        frame,
        indirect_effect=effect,
        probabilities=guess,
        spread=torch.zeros_like(effect),
        engine="attribution",
        note="First-order approximation (attribution patching).",
    )
