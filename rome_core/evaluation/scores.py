"""ES, PS, NS, their magnitudes and S (Meng et al. 2022, section 3.3), with bootstrap intervals over the facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rome_core.datasets import Fact
from rome_core.edits import Edit
from rome_core.model import LanguageModel
from rome_core.scoring import Scored, score
from rome_core.tokens import as_target

RESAMPLES = 2_000
Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A mean over facts with its 95 % bootstrap interval and the number of facts."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Case:
    """One fact under one model: geometric-mean token probabilities of the new and the true object on its prompts."""

    fact: str
    edit: tuple[tuple[float, float], ...]
    paraphrase: tuple[tuple[float, float], ...]
    neighbour: tuple[tuple[float, float], ...]

    def values(self) -> dict[str, float]:
        """The fact's own scores: shares for ES, PS, NS, differences of probabilities for EM, PM, NM."""
        scores: dict[str, float] = {}
        for name, pairs, sign in (("E", self.edit, 1), ("P", self.paraphrase, 1), ("N", self.neighbour, -1)):
            if pairs:
                new, true = np.array(pairs).T
                scores[name + "S"] = float(np.mean(sign * (new - true) > 0))
                scores[name + "M"] = float(np.mean(sign * (new - true)))
        return scores


def case_of(lm: LanguageModel, fact: Fact, *, edits: Sequence[Edit] = ()) -> Case:
    """Score a fact's edit prompt, paraphrases and neighbours. On neighbours the new object competes with theirs."""
    kinds = [
        (fact.prompt.text, fact.target_true),
        *((text, fact.target_true) for text in fact.paraphrases),
        *((text, fact.neighbour_true) for text in fact.neighbours),
    ]
    pairs = [(text, as_target(target)) for text, true in kinds for target in (fact.target_new, true)]
    scored = score(lm, pairs, edits=edits)
    both = [_pair(new, true) for new, true in zip(scored[::2], scored[1::2], strict=True)]
    cut = 1 + len(fact.paraphrases)
    return Case(fact.id, tuple(both[:1]), tuple(both[1:cut]), tuple(both[cut:]))


def _pair(new: Scored, true: Scored) -> tuple[float, float]:
    return new.p_mean, true.p_mean


def summarise(cases: Sequence[Case], *, seed: int = 0) -> dict[str, Score]:
    """Mean scores over facts with bootstrap intervals; S is the harmonic mean of the averages of ES, PS and NS.

    The bootstrap draws facts, not prompts, because the prompts of one fact go together.
    """
    values = [case.values() for case in cases]
    names = [name for name in ("ES", "EM", "PS", "PM", "NS", "NM") if any(name in v for v in values)]
    table = np.array([[v.get(name, np.nan) for name in names] for v in values]).reshape(len(values), len(names))
    if not len(table):
        return {}
    present = ~np.isnan(table)
    draws = np.random.default_rng(seed).integers(0, len(table), (RESAMPLES, len(table)))
    weights = np.stack([np.bincount(draw, minlength=len(table)) for draw in draws]).astype(float)
    # A fact without paraphrases or neighbours has no part in their means; a draw of such facts alone has no mean.
    counts = weights @ present
    resampled = np.divide(weights @ np.nan_to_num(table), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    means = np.nan_to_num(table).sum(0) / present.sum(0)
    scores = {name: _score(float(means[i]), resampled[:, i], int(present[:, i].sum())) for i, name in enumerate(names)}
    if all(name in names for name in ("ES", "PS", "NS")):
        three = [names.index(name) for name in ("ES", "PS", "NS")]
        complete = resampled[:, three][~np.isnan(resampled[:, three]).any(axis=1)]
        scores["S"] = _score(float(_harmonic(means[None, three])[0]), _harmonic(complete), len(table))
    return scores


def _harmonic(rows: Rows) -> Rows:
    """Harmonic mean of each row; 0 where an entry is 0."""
    positive = rows.min(axis=1) > 0
    safe = np.where(positive[:, None], rows, 1.0)
    return np.where(positive, rows.shape[1] / (1 / safe).sum(1), 0.0)


def _score(value: float, resampled: Rows, n: int) -> Score:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Score(value, float(low), float(high), n)


def mean_score(values: Sequence[float], *, seed: int = 0) -> Score:
    """The mean of plain numbers with its bootstrap interval."""
    array = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    return _score(float(array.mean()), array[draws].mean(1), len(array))
