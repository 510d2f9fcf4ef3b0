"""Previews: a heat map in a tenth of its time. A few cells are measured, and the others estimated from them.

No gradient does: at the corrupted run a saturated softmax has hardly any slope, so that sizes are off by two orders of
magnitude and the wrong cell comes out on top (docs/tracing.md has the measurements). So states are restored, as for
the heat map itself, but few of them:

1. At every token but the last, a few layers with the first few draws. This ranks the tokens.
2. At the prompt's last token every other layer with all draws: there a cell costs a tenth.
3. The most promising cells with all draws, in rounds. What is measured with all draws is exact; the rest of its row is
   scaled to meet it and interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from rome_core.model.hooks import Patch
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell
from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import GRIDS, Trace, cells_of, empty_trace, fill, lay_over
from rome_core.tracing.restoration import restored_states
from rome_core.tracing.runs import SITES, Runs, TraceConfig, TracedSite, TraceRequest, prepare

Place = tuple[int, int]  # token, layer
DRAWS = 2  # of the coarse restored runs
DEPTHS: Mapping[str, tuple[float, ...]] = {  # where, as shares of the layers: effects live in the first half
    "mlp_out": (0.0, 0.14, 0.31, 0.52),
    "attn_out": (0.14, 0.52),
    "resid_post": (0.0, 0.14, 0.31, 0.52),
}
EVERY = 2  # layers at the last token
ROUNDS: Mapping[str, tuple[int, int]] = {"mlp_out": (3, 2), "attn_out": (2, 1), "resid_post": (1, 1)}  # exact cells
NEAR = 0.5  # a token is in the running if its best estimate reaches this share of the best of all
RIVAL = 0.75  # and it may well be the strongest one if it reaches this
LEVEL = 0.95  # layers whose effects reach this share of the strongest one are on one level with it
N_ROUNDS = 2
N_STEPS = 4 + N_ROUNDS  # coarse, the last token, the best of each token, rounds, the rows that do not contend


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
    *_, maps = preview_steps(lm, runs, [config.site])
    return maps[config.site]


def preview_steps(lm: LanguageModel, runs: Runs, sites: Sequence[TracedSite] = SITES) -> Iterator[dict[str, Trace]]:
    """Previews of some kinds as they get better, N_STEPS times. Rows that have not been reached yet are NaN."""
    few, last = first_draws(runs, DRAWS), len(runs.labels) - 1
    coarse: dict[str, Trace] = {site: empty_trace(lm, few, site) for site in sites}
    exact: dict[str, Trace] = {site: empty_trace(lm, runs, site) for site in sites}
    every = sorted({*range(0, lm.n_layers, EVERY), lm.n_layers - 1})
    rows: dict[str, range] = {site: range(runs.subject[0], last + 1) for site in sites}
    first: dict[str, list[int]] = {
        site: [token for token in rows[site] if _contends(site, token, runs.subject[1])] for site in sites
    }
    rest: dict[str, list[int]] = {site: [token for token in rows[site] if token not in first[site]] for site in sites}

    def roughly(tokens: Mapping[str, Sequence[int]]) -> dict[str, Trace]:
        before = {site: [token for token in tokens[site] if token != last] for site in sites}
        places: dict[str, list[Place]] = {
            site: list(product(before[site], _layers(DEPTHS[site], lm.n_layers))) for site in sites
        }
        return _restore(lm, few, coarse, places)

    def finely(tokens: Mapping[str, Sequence[int]]) -> dict[str, list[Place]]:
        return {site: [(last, layer) for layer in every if last in tokens[site]] for site in sites}

    def measure(places: Mapping[str, Sequence[Place]]) -> dict[str, Trace]:
        exact.update(_restore(lm, runs, exact, places))
        return {site: _complete(coarse[site], exact[site]) for site in sites}

    coarse = roughly(first)
    yield measure({site: [] for site in sites})
    maps = measure(finely(first))
    yield maps
    for n in range(1 + N_ROUNDS):
        choose = {site: _best_of_each if n == 0 else partial(_best, ROUNDS[site][n - 1]) for site in sites}
        maps = measure({site: choose[site](maps[site]) for site in sites})
        yield maps
    coarse = roughly(rest)
    yield measure(finely(rest))


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


# ------------------------------------------------------------------------------------------------------ measured cells


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


def _layers(depths: Sequence[float], n_layers: int) -> list[int]:
    return sorted({round(depth * (n_layers - 1)) for depth in depths})


def _best_of_each(estimate: Trace) -> list[Place]:
    """The most promising cell of each token that is in the running."""
    effects = contenders(estimate)
    enough = NEAR * float(effects.max())
    effects[estimate.exact] = -torch.inf
    best = [(token, int(row.argmax())) for token, row in enumerate(effects)]
    return [place for place in best if effects[place] > enough]


def _best(n: int, estimate: Trace) -> list[Place]:
    """The n most promising cells."""
    effects = contenders(estimate)
    effects[estimate.exact] = -torch.inf
    strongest = effects.flatten().argsort(descending=True)[:n].tolist()
    return [place for at in strongest if effects[place := divmod(at, effects.shape[1])].isfinite()]


def contenders(heat_map: Trace) -> Float[Tensor, "pos layer"]:
    """Effects of the cells that may be called the strongest, −∞ elsewhere."""
    effects = heat_map.indirect_effect.nan_to_num(nan=-torch.inf)
    first, stop = heat_map.subject
    out = [not first <= token or not _contends(heat_map.config.site, token, stop) for token in range(len(effects))]
    effects[out] = -torch.inf
    return effects


def _contends(site: str, token: int, stop: int) -> bool:
    """In the residual stream only the subject's tokens do, which end at `stop`: at the last token the last layer is
    the answer itself."""
    return site != "resid_post" or token < stop


def _complete(coarse: Trace, exact: Trace) -> Trace:
    """All cells, from the exact ones and those of few draws."""
    first = exact.subject[0]
    effect = join_measured(coarse.indirect_effect, exact.indirect_effect, first)
    changes = [heat_map.probabilities - heat_map.corrupted for heat_map in (coarse, exact)]
    p = join_measured(changes[0], changes[1], first)
    return lay_over(exact, _as_preview(exact, effect, p))


def join_measured(
    coarse: Float[Tensor, "pos layer"], exact: Float[Tensor, "pos layer"], first: int
) -> Float[Tensor, "pos layer"]:
    """Changes against the corrupted run, from token `first` on: what is between measured cells is interpolated, those
    of few draws being scaled to meet the exact ones. Behind the last layer a token that is not the last one has no
    effect left. NaN in a row without measured cells."""
    joined, n_layers = exact.clone(), exact.shape[1]
    for token in range(first, len(exact)):
        rough, known = (_points(grid[token]) for grid in (coarse, exact))
        if not rough and not known:
            continue
        end = {} if token == len(exact) - 1 else {n_layers: 0.0}  # of the last token the answer is read
        if rough and known:
            scaled = rough | end
            at_known = np.interp(list(known), list(scaled), list(scaled.values()))
            scale = _fit(at_known, np.array(list(known.values())), (0.2, 5.0))
            rough = {layer: scale * value for layer, value in rough.items()}
        points = dict(sorted((rough | known | end).items()))
        joined[token] = torch.from_numpy(np.interp(np.arange(n_layers), list(points), list(points.values())))
    return joined


def _points(row: Float[Tensor, " layer"]) -> dict[int, float]:
    return {layer: value for layer, value in enumerate(row.tolist()) if not math.isnan(value)}


def _fit(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]], bounds: tuple[float, float]) -> float:
    """The factor that brings x nearest to y (least squares), within bounds; 1 where x is too small to tell."""
    size = float(x @ x)
    return float(np.clip((x @ y) / size, *bounds)) if size > 1e-12 else 1.0


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
