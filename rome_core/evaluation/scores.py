"""ES, PS, NS, their magnitudes and S (Meng et al. 2022, section 3.3), with bootstrap intervals over the facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rome_core.evaluation.measures import MEASURES

RESAMPLES = 2_000
Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A mean over facts with its 95 % bootstrap interval and the number of facts."""

    value: float
    low: float
    high: float
    n: int


def summarise(values: Sequence[Mapping[str, float]], *, seed: int = 0) -> dict[str, Score]:
    """Every measure's mean over the facts that have it, with its interval and count; and the scores S made of means.

    The bootstrap draws facts, not prompts, because the prompts of one fact go together.
    """
    names = list(dict.fromkeys(name for v in values for name in v))
    if not names:
        return {}
    table = np.array([[_scaled(name, v.get(name, math.nan)) for name in names] for v in values])
    present = ~np.isnan(table)
    draws = np.random.default_rng(seed).integers(0, len(table), (RESAMPLES, len(table)))
    weights = np.stack([np.bincount(draw, minlength=len(table)) for draw in draws]).astype(float)
    # A fact without paraphrases or neighbours has no part in their means; a draw of such facts alone has no mean.
    counts = weights @ present
    resampled = np.divide(weights @ np.nan_to_num(table), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    means = np.divide(
        np.nan_to_num(table).sum(0), present.sum(0), where=present.any(0), out=np.full(len(names), np.nan)
    )
    scores = {
        name: _score(means[i], resampled[:, i], int(present[:, i].sum()), name)
        for i, name in enumerate(names)
        if present[:, i].any()
    }
    for measure in MEASURES.values():
        if measure.parts and all(part in scores for part in measure.parts):
            columns = [names.index(part) for part in measure.parts]
            complete = resampled[:, columns][~np.isnan(resampled[:, columns]).any(axis=1)]
            scores[measure.name] = _score(_harmonic(means[None, columns])[0], _harmonic(complete), len(table))
    return scores


def _scaled(name: str, value: float) -> float:
    return min(math.log(value), 700.0) if _geometric(name) and value > 0 else value


def _geometric(name: str) -> bool:
    return name in MEASURES and MEASURES[name].mean == "geometric"


def _harmonic(rows: Rows) -> Rows:
    """Harmonic mean of each row; 0 where an entry is 0."""
    positive = rows.min(axis=1) > 0
    safe = np.where(positive[:, None], rows, 1.0)
    return np.where(positive, rows.shape[1] / (1 / safe).sum(1), 0.0)


def _score(value: float, resampled: Rows, n: int, name: str = "") -> Score:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    value, low, high = float(value), float(low), float(high)
    return Score(math.exp(value), math.exp(low), math.exp(high), n) if _geometric(name) else Score(value, low, high, n)


def mean_score(values: Sequence[float], *, seed: int = 0) -> Score:
    """The mean of plain numbers with its bootstrap interval."""
    array = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    return _score(float(array.mean()), array[draws].mean(1), len(array))
