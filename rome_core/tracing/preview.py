"""Previews: a heat map in a fifteenth of its time. A few promising cells are measured, and the others estimated.

A gradient alone does not do: at the corrupted run a saturated softmax has hardly any slope, so that sizes are off by
two orders of magnitude and the wrong cell comes out on top (docs/tracing.md has the measurements). It only helps to
choose where to measure:

1. The gradient at both ends of the way from the corrupted to the clean run, the trapezoid rule for integrated
   gradients (Sundararajan et al. 2017, arXiv 1703.01365; for patching Hanna et al. 2024, arXiv 2403.17806), ranks the
   tokens.
2. At the prompt's last token, the subject's last and those that the gradient puts first among the rest, every few
   layers are restored: with all draws at the last token, where that costs little, with the first few draws elsewhere.
3. The most promising cells are restored with all draws. They are exact; the rest of their row is scaled to meet them
   and interpolated, and the gradient's rows are scaled by all that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.edits import Update
from rome_core.model.hooks import Patch, Point, batch_of, forward, hooked
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell
from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import GRIDS, Trace, cells_of, empty_trace, fill, lay_over
from rome_core.tracing.restoration import restored_states, window_of
from rome_core.tracing.runs import Runs, TraceConfig, TracedSite, TraceRequest, prepare

Place = tuple[int, int]  # token, layer
GRADIENT_DRAWS, DRAWS = 3, 2  # of the gradient, and of the coarse restored runs
COARSE, FINE = 6, 10  # layers that are restored with these, and with all draws at the last token
RANKED: Mapping[TracedSite, int] = {"mlp_out": 2, "attn_out": 1, "resid_post": 1}  # tokens that the gradient chooses
ROUNDS = (2, 1)  # exact cells, after the best one of each token
NEAR = 0.5  # a token is in the running if its best estimate reaches this share of the best of all
RIVAL = 0.75  # and it may well be the strongest one if it reaches this
LEVEL = 0.95  # layers whose effects reach this share of the strongest one are on one level with it
GROUPS: tuple[tuple[TracedSite, ...], ...] = (("mlp_out", "attn_out"), ("resid_post",))  # measured together, in order
STEPS_A_GROUP = 3 + len(ROUNDS)  # coarse, fine, the best of each token, rounds
N_STEPS = 1 + len(GROUPS) * STEPS_A_GROUP


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
    """A heat map of which some cells are exact (`Trace.exact`) and the others estimated. `trace` gives all values."""
    runs = prepare(lm, TraceRequest(prompt, config, answer, foil, tuple(edits)), noise=noise)
    guess = gradient_maps(lm, runs, [config.site])
    *_, maps = _measure(lm, runs, guess)
    return maps[config.site]


def preview_steps(lm: LanguageModel, runs: Runs) -> Iterator[dict[str, Trace]]:
    """Previews of all kinds as they get better, N_STEPS times: from gradients, then with what was measured."""
    maps = gradient_maps(lm, runs, [site for group in GROUPS for site in group])
    yield maps
    for group in GROUPS:
        for better in _measure(lm, runs, {site: maps[site] for site in group}):
            maps = {**maps, **better}
            yield maps


def likely_peaks(preview: Trace) -> list[Place]:
    """Where the strongest cell of the heat map probably is: the best cell of each token that comes near the strongest
    one, which is the first. Nowhere as long as the strongest one is only estimated."""
    effects = contenders(preview)
    if not preview.exact[divmod(int(effects.argmax()), effects.shape[1])]:
        return []
    near = torch.argwhere(effects.amax(1) >= RIVAL * effects.max()).flatten().tolist()
    places = [(token, int(effects[token].argmax())) for token in near]
    return sorted(places, key=lambda place: -float(effects[place]))


def plateau(preview: Trace, place: Place) -> tuple[int, int]:
    """First and last of the neighbouring layers that are on one level with a peak: which of them is the highest is not
    for a preview to say."""
    token, layer = place
    row = preview.indirect_effect[token]
    level = (row >= LEVEL * row[layer]).tolist()
    first, last = layer, layer
    while first > 0 and level[first - 1]:
        first -= 1
    while last + 1 < len(level) and level[last + 1]:
        last += 1
    return first, last


# ---------------------------------------------------------------------------------------------------------- gradients


def gradient_maps(lm: LanguageModel, runs: Runs, sites: Sequence[TracedSite]) -> dict[str, Trace]:
    """Heat maps from gradients alone, by one pass of a few rows. Every cell is an estimate.

    (h_clean − h_corrupted)·g, averaged over the first draws and summed over the window's layers. g is the mean of the
    gradients of the config's metric at the clean and at the corrupted run.
    """
    few, n = first_draws(runs, GRADIENT_DRAWS), lm.n_layers
    single = _single_layers(lm, few, sites)
    maps: dict[str, Trace] = {}
    for site in sites:
        width = 1 if site == "resid_post" else runs.request.config.window
        windows = [window_of(layer, width, n) for layer in range(n)]
        effect = torch.stack([single[site][:, start:stop].sum(1) for start, stop in windows], 1)
        change = effect if runs.request.config.metric == "p" else torch.full_like(effect, torch.nan)
        maps[site] = _as_preview(empty_trace(lm, runs, site), effect, change)
    return maps


def _single_layers(
    lm: LanguageModel, runs: Runs, sites: Sequence[TracedSite]
) -> dict[TracedSite, Float[Tensor, "pos layer"]]:
    """The estimate for each single layer."""
    points = [Point(site, layer) for site in sites for layer in range(lm.n_layers)]
    kept: dict[Point, Tensor] = {}
    at_embed, corrupt = runs.corruption
    samples = len(runs.corrupted.batch.ids)

    def both_ends(state: Tensor) -> Tensor:
        return torch.cat([corrupt(state[:samples]), state[samples:]]).requires_grad_()

    batch = batch_of(lm, runs.clean.batch.ids.tolist() * (samples + 1))  # the draws, then the clean run
    with torch.enable_grad():
        with hooked(lm, runs.clean.edits, [(at_embed, both_ends)], kept.__setitem__, points):
            final = forward(lm, batch)
        scores = runs.scores(runs.request.config.metric, lm.unembed(final[:, -len(runs.answer) :]))
        gradients = torch.autograd.grad(scores.sum(), [kept[point] for point in points])
    rows: dict[Point, Tensor] = {}
    for point, gradient in zip(points, gradients, strict=True):
        state, mean = kept[point].detach(), (gradient[:samples] + gradient[samples:]) / 2
        change = ((state[samples:] - state[:samples]) * mean).sum(-1).mean(0)
        rows[point] = change[: len(runs.labels)].float().cpu()
    return {site: torch.stack([rows[Point(site, layer)] for layer in range(lm.n_layers)], 1) for site in sites}


# ------------------------------------------------------------------------------------------------------ measured cells


def _measure(lm: LanguageModel, runs: Runs, guesses: Mapping[str, Trace]) -> Iterator[dict[str, Trace]]:
    """Previews of some kinds from a few measured cells and guesses for the others, 2 + 1 + len(ROUNDS) times."""
    few, last = first_draws(runs, DRAWS), len(runs.labels) - 1
    tokens = {site: _tokens(guess) for site, guess in guesses.items()}
    rough = {site: _layers(lm.n_layers, COARSE) + _edge(guess) for site, guess in guesses.items()}
    coarse = {site: empty_trace(lm, few, guess.config.site) for site, guess in guesses.items()}
    exact = {site: empty_trace(lm, runs, guess.config.site) for site, guess in guesses.items()}

    coarse = _restore(lm, few, coarse, {site: list(product(tokens[site] - {last}, rough[site])) for site in guesses})
    yield dict(guesses)
    exact = _restore(lm, runs, exact, {site: list(product([last], _layers(lm.n_layers, FINE))) for site in guesses})
    maps = {site: _complete(guesses[site], coarse[site], exact[site]) for site in guesses}
    yield maps
    choices: list[Callable[[Trace, Collection[int]], list[Place]]] = [_best_of_each]
    for choose in choices + [partial(_best, n) for n in ROUNDS]:
        exact = _restore(lm, runs, exact, {site: choose(maps[site], tokens[site]) for site in guesses})
        maps = {site: _complete(guesses[site], coarse[site], exact[site]) for site in guesses}
        yield maps


def _restore(
    lm: LanguageModel, runs: Runs, maps: Mapping[str, Trace], places: Mapping[str, Sequence[Place]]
) -> dict[str, Trace]:
    """The heat maps with these cells measured, all kinds in one batch."""
    filled, kind_of = dict(maps), dict[Cell, str]()
    for site, heat_map in maps.items():
        cells = cells_of(lm, runs, heat_map.config.site)
        kind_of |= {cell: site for cell in cells if (cell.token, cell.layer) in places[site]}
    for finished in restored_states(lm, runs, list(kind_of)):
        for site in filled:
            filled[site] = fill(filled[site], runs, [pair for pair in finished if kind_of[pair[0]] == site])
    return filled


def _tokens(guess: Trace) -> set[int]:
    """The prompt's last token, the subject's last, and those that the gradient puts first among the rest."""
    tokens = {len(guess.labels) - 1, guess.subject[1] - 1}
    strongest = contenders(guess).amax(1)
    strongest[list(tokens)] = -torch.inf
    ranked = strongest.argsort(descending=True)[: RANKED[guess.config.site]]
    return tokens | {int(token) for token in ranked if strongest[token].isfinite()}


def _layers(n_layers: int, n: int) -> list[int]:
    """At most n layers, evenly spaced, the first and the last among them."""
    return sorted({round(at) for at in np.linspace(0, n_layers - 1, n).tolist()})


def _edge(guess: Trace) -> list[int]:
    """The last layer whose window begins at the first one: behind it effects fall off, as much as layer 0 matters."""
    edge = guess.config.window // 2
    return [edge] if guess.config.site != "resid_post" and edge < guess.indirect_effect.shape[1] else []


def _best_of_each(estimate: Trace, tokens: Collection[int]) -> list[Place]:
    """The most promising cell of each of these tokens that is in the running."""
    effects = contenders(estimate)
    enough = NEAR * float(effects.max())
    effects[estimate.exact] = -torch.inf
    best = [(token, int(effects[token].argmax())) for token in sorted(tokens)]
    return [place for place in best if effects[place] > enough]


def _best(n: int, estimate: Trace, tokens: Collection[int]) -> list[Place]:
    """The n most promising cells of these tokens."""
    effects = contenders(estimate)
    effects[estimate.exact] = -torch.inf
    places = [(token, layer) for token in sorted(tokens) for layer in range(effects.shape[1])]
    strongest = sorted(places, key=lambda place: -float(effects[place]))[:n]
    return [place for place in strongest if effects[place].isfinite()]


def contenders(heat_map: Trace) -> Float[Tensor, "pos layer"]:
    """Effects of the cells that may be called the strongest, −∞ elsewhere: from the subject on, and in the residual
    stream within the subject, because at the last token the last layer is the answer itself."""
    effects = heat_map.indirect_effect.nan_to_num(nan=-torch.inf)
    first, stop = heat_map.subject
    effects[:first] = -torch.inf
    if heat_map.config.site == "resid_post":
        effects[stop:] = -torch.inf
    return effects


def _complete(guess: Trace, coarse: Trace, exact: Trace) -> Trace:
    """All cells, from the exact ones, those of few draws, and the gradient."""
    maps, first = (guess, coarse, exact), guess.subject[0]
    effect = join_measured([heat_map.indirect_effect for heat_map in maps], first)
    p = join_measured([heat_map.probabilities - heat_map.corrupted for heat_map in maps], first)
    return lay_over(exact, _as_preview(exact, effect, p))


def join_measured(maps: Sequence[Float[Tensor, "pos layer"]], first: int) -> Float[Tensor, "pos layer"]:
    """Changes against the corrupted run. In a row with measured cells what is between them is interpolated, those of
    few draws being scaled to meet the exact ones; the gradient's other rows are scaled by what was measured."""
    guess, coarse, exact = maps
    joined, layers = guess.clone(), np.arange(guess.shape[1])
    measured = torch.full_like(guess, torch.nan)
    for token in range(first, len(guess)):
        rough, known = (_points(grid[token]) for grid in (coarse, exact))
        if rough and known:
            at_known = np.interp(list(known), list(rough), list(rough.values()))
            scale = _fit(at_known, np.array(list(known.values())), (0.2, 5.0))
            rough = {layer: scale * value for layer, value in rough.items()}
        if points := dict(sorted((rough | known).items())):
            joined[token] = torch.from_numpy(np.interp(layers, list(points), list(points.values())))
            measured[token, list(points)] = joined[token, list(points)]
    seen = ~(measured.isnan() | guess.isnan())
    scale = _fit(guess[seen].numpy(), measured[seen].numpy(), (0.05, 1.0))
    unseen = measured.isnan().all(1)
    unseen[:first] = False
    joined[unseen] *= scale
    return joined


def _points(row: Float[Tensor, " layer"]) -> dict[int, float]:
    return {layer: value for layer, value in enumerate(row.tolist()) if not math.isnan(value)}


def _fit(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]], bounds: tuple[float, float]) -> float:
    """The factor that brings x nearest to y (least squares), within bounds."""
    return float(np.clip((x @ y) / max(float(x @ x), 1e-12), *bounds))


def _as_preview(frame: Trace, effect: Float[Tensor, "pos layer"], change: Float[Tensor, "pos layer"]) -> Trace:
    """The frame of a heat map filled with estimates: effects, and changes of p(answer). They have no spread."""
    grids = {"indirect_effect": effect, "probabilities": (frame.corrupted + change).clamp(0, 1)}
    grids["spread"] = torch.full_like(effect, torch.nan)
    first = frame.subject[0]
    rows: dict[str, Any] = {name: torch.cat([getattr(frame, name)[:first], grids[name][first:]]) for name in GRIDS}
    return replace(frame, **rows, engine="preview", note="Estimated from a few measured cells.")


def first_draws(runs: Runs, n: int) -> Runs:
    """The same clean run beside the first n draws of the corrupted one."""
    samples = len(runs.corrupted.batch.ids)
    if n >= samples:
        return runs
    at_embed, corrupt = runs.corruption
    few: Patch = lambda state: corrupt(state[:1].expand(samples, -1, -1))[:n]  # noqa: E731  (draws differ by noise alone)
    run = runs.corrupted
    batch = replace(run.batch, ids=run.batch.ids[:n], mask=run.batch.mask[:n], column=run.batch.column[:n])
    outputs = {module: [output[:n] for output in of_module] for module, of_module in run.outputs.items()}
    lists: dict[str, Any] = {name: [kept[:n] for kept in getattr(run, name)] for name in ("states", "keys", "values")}
    return replace(runs, corrupted=replace(run, batch=batch, outputs=outputs, **lists), corruption=(at_embed, few))


# -------------------------------------------------------------------------------------------- how good it turned out


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
