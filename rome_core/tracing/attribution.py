"""Attribution patching: a first look at heat maps in one forward and one backward pass, by a linear approximation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.edits import Update
from rome_core.model.hooks import Patch, Point, forward, hooked
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import Trace, empty_trace
from rome_core.tracing.restoration import window_of
from rome_core.tracing.runs import SITES, Runs, TraceConfig, TracedSite, TraceRequest, prepare


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
    runs = prepare(lm, TraceRequest(prompt, config, answer, foil, tuple(edits)), noise=noise)
    return previews(lm, runs, [config.site])[config.site]


def previews(lm: LanguageModel, runs: Runs, sites: Sequence[TracedSite] = SITES) -> dict[str, Trace]:
    """Previews of several kinds from one pass."""
    effects = _effects(lm, runs)
    return {site: _as_trace(lm, runs, site, effects[site]) for site in sites}


def _effects(lm: LanguageModel, runs: Runs) -> dict[TracedSite, Float[Tensor, "pos layer"]]:
    """First-order effect of each single state, by site."""
    points = [Point(site, layer) for site in SITES for layer in range(lm.n_layers)]
    kept: dict[Point, Tensor] = {}
    at_embed, corrupt = runs.corruption

    start_graph: Patch = lambda state: corrupt(state).requires_grad_()  # noqa: E731
    with torch.enable_grad():
        with hooked(lm, runs.clean.edits, [(at_embed, start_graph)], kept.__setitem__, points):
            final = forward(lm, runs.corrupted.batch)
        scores = runs.scores(runs.request.config.metric, lm.unembed(final[:, -len(runs.answer) :]))
        gradients = dict(zip(points, torch.autograd.grad(scores.mean(), [kept[p] for p in points]), strict=True))
    outputs = runs.clean.outputs
    clean = {"resid_post": runs.clean.states[1:], "mlp_out": outputs["mlp_out"], "attn_out": outputs["attn_out"]}
    effects = {p: (clean[p.site][p.layer] - kept[p]) * gradients[p] for p in points}  # each [samples pos d_model]
    rows = {p: effect.detach().sum((0, -1))[: len(runs.labels)] for p, effect in effects.items()}
    return {site: torch.stack([rows[Point(site, layer)] for layer in range(lm.n_layers)], 1) for site in SITES}


def _as_trace(lm: LanguageModel, runs: Runs, site: TracedSite, effect: Float[Tensor, "pos layer"]) -> Trace:
    if site != "resid_post":
        windows = [window_of(layer, runs.request.config.window, lm.n_layers) for layer in range(lm.n_layers)]
        effect = torch.stack([effect[:, start:stop].sum(1) for start, stop in windows], 1)
    effect = effect.float().cpu()
    effect[: runs.subject[0]] = 0.0
    frame = empty_trace(lm, runs, site)
    guess = torch.full_like(effect, torch.nan)
    if frame.config.metric == "p":
        guess = (frame.corrupted + effect).clamp(0, 1)
    return replace(
        frame,
        indirect_effect=effect,
        probabilities=guess,
        spread=torch.zeros_like(effect),
        engine="attribution",
        note="First-order approximation (attribution patching).",
    )


@dataclass(frozen=True)
class Agreement:
    """How well a preview foretold the exact effects: rank correlation, and the cells it missed by most."""

    correlation: float
    worst: tuple[tuple[int, int, float, float], ...]  # token, layer, approximate, exact


def compare_with_exact(approximate: Trace, exact: Trace, n: int = 3) -> Agreement:
    """Spearman's correlation over the cells from the subject on, and the n worst of them."""
    first = exact.subject[0]
    a, b = approximate.indirect_effect[first:].double(), exact.indirect_effect[first:].double()
    order = (a - b).abs().flatten().argsort(descending=True)[:n].tolist()
    cells = [divmod(at, a.shape[1]) for at in order]
    worst = tuple((first + i, layer, float(a[i, layer]), float(b[i, layer])) for i, layer in cells)
    ranks = torch.stack([average_ranks(a.flatten()), average_ranks(b.flatten())])
    return Agreement(float(torch.corrcoef(ranks)[0, 1]), worst)


def average_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1 on; equal values share the mean of theirs, as Spearman's correlation has it."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[place].double()
