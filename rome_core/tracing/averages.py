"""Average indirect effect (AIE) and average total effect (ATE) over facts (Meng et al. 2022, section 2.2 and figure 2).

Prompts differ in length, so a fact's heat map is first averaged over the tokens that play one role: the token groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import RomeError
from rome_core.facts.datasets import Fact
from rome_core.facts.fact import tell_apart
from rome_core.model.edits import Update
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import score
from rome_core.model.tokens import as_target
from rome_core.progress import Track, silent
from rome_core.tracing.heat_map import Trace, heat_map_steps
from rome_core.tracing.runs import SITES, TraceConfig, TracedSite, TraceRequest, prepare

GROUPS = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
RESAMPLES = 2_000


@dataclass(frozen=True, eq=False)
class FactEffect:
    """One fact's effects by token group (mean over its tokens, NaN where it has none), or why it was dropped."""

    fact: str
    clean: float
    corrupted: float
    effects: dict[str, Float[Tensor, "group layer"]]
    dropped: str = ""


@dataclass(frozen=True, eq=False)
class AverageEffect:
    """AIE of one kind with 95 % bootstrap intervals over facts, [group, layer]."""

    mean: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Averages:
    """AIE of each kind and ATE (mean of p(clean) − p(corrupted), with interval) over the facts that counted."""

    n: int
    dropped: dict[str, int]
    total_effect: tuple[float, float, float]
    clean: float
    corrupted: float
    effects: dict[str, AverageEffect]


def token_groups(subject: tuple[int, int], n_tokens: int) -> list[int]:
    """The group of each token: an index into GROUPS, −1 before the subject. The last token wins over the others, and
    the subject's last over its first."""
    first, stop = subject
    groups = [-1] * n_tokens
    for i in range(first, n_tokens):
        groups[i] = 0 if i == first else 1 if i < stop else 3 if i == stop else 4
    groups[stop - 1] = 2
    groups[n_tokens - 1] = 5
    return groups


def group_effects(result: Trace) -> Float[Tensor, "group layer"]:
    """Mean indirect effect of the tokens of each group."""
    groups = torch.tensor(token_groups(result.subject, len(result.labels)))
    rows = [result.indirect_effect[groups == g] for g in range(len(GROUPS))]
    empty = torch.full_like(result.indirect_effect[0], torch.nan)
    return torch.stack([row.mean(0) if len(row) else empty for row in rows])


def fact_effects(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: TraceConfig = TraceConfig(),
    *,
    sites: Sequence[TracedSite] = SITES,
    done: Collection[str] = (),
    edits: Sequence[Update] = (),
    track: Track = silent,
) -> Iterator[FactEffect]:
    """One record a fact, as they finish; facts whose name is in `done` are passed over, so a stopped run can go on. A
    fact's name is its id, with a number where another one has it already (`facts.fact.tell_apart`).

    track: sees the cells of each heat map, so that a run can be stopped within a fact.

    A fact counts only if the model's own answer (every token the argmax) is the known one.
    """
    for name, fact in zip(tell_apart(facts), facts, strict=True):
        if name in done:
            continue
        try:
            request = TraceRequest(
                fact.prompt, config, as_target(fact.target_true, fact.prompt.text), edits=tuple(edits)
            )
            yield _trace_fact(lm, name, request, sites, track)
        except RomeError as error:
            yield FactEffect(name, float("nan"), float("nan"), {}, str(error))


def _trace_fact(
    lm: LanguageModel, fact: str, request: TraceRequest, sites: Sequence[TracedSite], track: Track
) -> FactEffect:
    assert request.answer is not None
    known = score(lm, [(request.prompt.text, request.answer)], edits=request.edits)[0]
    if not all(known.hits):
        return FactEffect(fact, known.p_joint, float("nan"), {}, "the model's answer is another one")
    runs = prepare(lm, request)
    effects: dict[str, Tensor] = {}
    for site in sites:
        *_, result = heat_map_steps(lm, runs, site, track=track)
        effects[site] = group_effects(result)
    return FactEffect(fact, result.clean, result.corrupted, effects)


def average(rows: Sequence[FactEffect], *, seed: int = 0) -> Averages:
    """AIE and ATE of the facts so far. The bootstrap draws facts."""
    used = [row for row in rows if not row.dropped]
    dropped = dict(Counter(row.dropped for row in rows if row.dropped))
    if not used:
        return Averages(0, dropped, (float("nan"),) * 3, float("nan"), float("nan"), {})
    draws = np.random.default_rng(seed).integers(0, len(used), (RESAMPLES, len(used)))
    weights = np.stack([np.bincount(draw, minlength=len(used)) for draw in draws]).astype(float)
    total = np.array([row.clean - row.corrupted for row in used])
    low, high = np.percentile(weights @ total / len(used), [2.5, 97.5])
    return Averages(
        n=len(used),
        dropped=dropped,
        total_effect=(float(total.mean()), float(low), float(high)),
        clean=float(np.mean([row.clean for row in used])),
        corrupted=float(np.mean([row.corrupted for row in used])),
        effects={site: _average_effect(used, site, weights) for site in used[0].effects},
    )


def _average_effect(rows: Sequence[FactEffect], site: str, weights: npt.NDArray[np.float64]) -> AverageEffect:
    values = torch.stack([row.effects[site] for row in rows]).double().numpy()
    present = ~np.isnan(values)
    sums = np.einsum("bf,fgl->bgl", weights, np.nan_to_num(values))
    counts = np.einsum("bf,fgl->bgl", weights, present.astype(float))
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    count = present.sum(0)
    mean = np.divide(np.nan_to_num(values).sum(0), count, out=np.full(count.shape, np.nan), where=count > 0)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    filled = count > 0
    low[filled], high[filled] = np.nanpercentile(means[:, filled], [2.5, 97.5], axis=0)
    return AverageEffect(mean, low, high)
