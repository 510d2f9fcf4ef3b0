"""Thresholds of a verdict, fitted to measured edits of one model, and how often they are wrong on edits held back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rome_core.errors import DataError
from rome_core.files import ASSETS, write_whole

FOLDER = ASSETS / "calibration"
Verdict = Literal["safe", "caution", "disabling"]

ALPHA = 0.05  # false alarms that "disabling" may raise
HURT, BROKEN = 1.1, 2.0  # growth of perplexity that "caution" and "disabling" stand for
# What a verdict may rest on: fields of a diagnosis, each the larger the worse, all of them as 1/denominator.
QUANTITIES = ("relative_F", "relative_2", "relative_C", "relative_start", "inverse_denominator")


@dataclass(frozen=True)
class Rate:
    """k of n, with the Wilson interval of 95 %."""

    k: int
    n: int

    @property
    def value(self) -> float:
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.n:
            return 0.0, 1.0
        z, p, n = 1.959964, self.value, self.n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Thresholds:
    """Where a quantity's verdict changes, and the area under its ROC curve for "broken" on both halves."""

    caution: float
    disabling: float
    auc_fit: float
    auc_held: float

    def verdict(self, value: float) -> Verdict:
        """A value that is not a number is disabling."""
        return "disabling" if not value < self.disabling else "caution" if value >= self.caution else "safe"


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one model. caught, false_alarms: of "disabling" on the edits held back, by pool of subjects;
    warned: broken edits that were called caution or disabling.

    quantity: the field of a diagnosis that the verdict rests on. roc: (share of false alarms, share caught) on the
    edits held back, for every threshold. n_fit, n_held: edits; subjects stand in one of the halves only.
    """

    fingerprint: str
    model: str
    quantity: str
    thresholds: Mapping[str, Thresholds]
    n_fit: int
    n_held: int
    caught: Mapping[str, Rate]
    warned: Mapping[str, Rate]
    false_alarms: Mapping[str, Rate]
    roc: tuple[tuple[float, float], ...]
    source: str

    @property
    def best(self) -> Thresholds:
        return self.thresholds[self.quantity]

    def write(self, folder: Path = FOLDER) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.fingerprint}.json"
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
        return path


def calibration_for(fingerprint: str, folder: Path = FOLDER) -> Calibration | None:
    """The kept calibration of the model with this fingerprint; None if nobody calibrated it."""
    path = folder / f"{fingerprint}.json"
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(
            **{
                **data,
                "thresholds": {name: Thresholds(**value) for name, value in data["thresholds"].items()},
                **{
                    field: {name: Rate(**value) for name, value in data[field].items()}
                    for field in ("caught", "warned", "false_alarms")
                },
                "roc": tuple((float(x), float(y)) for x, y in data["roc"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"'{path.name}' is not a readable calibration ({type(error).__name__}: {error}).",
            "",
            "Fit it again with `python -m studies.calibration --fit`.",
        ) from None


# ------------------------------------------------------------------------------------------------------------ fitting


@dataclass(frozen=True)
class Measured:
    """One edit: what was known before it was applied (by QUANTITIES), and perplexity after / before."""

    subject: str
    pool: str
    values: Mapping[str, float]
    ratio: float

    @property
    def broken(self) -> bool:
        return not self.ratio <= BROKEN  # not a number counts as broken

    @property
    def hurt(self) -> bool:
        return not self.ratio <= HURT


def held_back(subject: str) -> bool:
    """Whether a subject's edits are kept for testing: half of all subjects, the same ones on every machine."""
    return hashlib.blake2b(subject.strip().casefold().encode(), digest_size=1).digest()[0] % 2 == 1


def calibrate(edits: Sequence[Measured], fingerprint: str, model: str, source: str) -> Calibration:
    """Fit thresholds of every quantity on one half of the subjects, and choose the one that ranks that half best.

    Raises DataError if either half has no broken edit or none that is not.
    """
    fit = [edit for edit in edits if not held_back(edit.subject)]
    held = [edit for edit in edits if held_back(edit.subject)]
    for name, half in (("fit", fit), ("held-back", held)):
        n_broken = sum(edit.broken for edit in half)
        if not 0 < n_broken < len(half):
            raise DataError(
                f"Of the {len(half)} {name} edits {n_broken} are broken: thresholds need both kinds.",
                "",
                "Measure more edits with `python -m studies.calibration`.",
            )
    fitted = {name: _thresholds(name, fit, held) for name in QUANTITIES}
    # Equal areas, as with a perfect separation, are told apart by how far apart the two kinds are.
    quantity = max(QUANTITIES, key=lambda name: (round(fitted[name].auc_fit, 4), _margin(name, fit)))
    verdicts = {id(edit): fitted[quantity].verdict(edit.values[quantity]) for edit in held}
    pools = {"all": held, **{pool: [e for e in held if e.pool == pool] for pool in sorted({e.pool for e in held})}}
    broken = {pool: [verdicts[id(e)] for e in some if e.broken] for pool, some in pools.items()}
    others = {pool: [verdicts[id(e)] for e in some if not e.broken] for pool, some in pools.items()}
    return Calibration(
        fingerprint=fingerprint,
        model=model,
        quantity=quantity,
        thresholds=fitted,
        n_fit=len(fit),
        n_held=len(held),
        caught={pool: Rate(some.count("disabling"), len(some)) for pool, some in broken.items()},
        warned={pool: Rate(len(some) - some.count("safe"), len(some)) for pool, some in broken.items()},
        false_alarms={pool: Rate(some.count("disabling"), len(some)) for pool, some in others.items()},
        roc=tuple(roc([e.values[quantity] for e in held], [e.broken for e in held])),
        source=source,
    )


def _thresholds(name: str, fit: Sequence[Measured], held: Sequence[Measured]) -> Thresholds:
    values = [edit.values[name] for edit in fit]
    caution = best_threshold(values, [edit.hurt for edit in fit])
    return Thresholds(
        caution=caution,
        disabling=max(caution, lowest_threshold(values, [edit.broken for edit in fit], ALPHA)),
        auc_fit=auc(values, [edit.broken for edit in fit]),
        auc_held=auc([edit.values[name] for edit in held], [edit.broken for edit in held]),
    )


def _margin(name: str, edits: Sequence[Measured]) -> float:
    """log of the smallest broken over the largest other value; negative where they overlap."""
    broken = min(_finite(e.values[name]) for e in edits if e.broken)
    return math.log(max(broken, 1e-300)) - math.log(max(_finite(e.values[name]) for e in edits if not e.broken))


def _finite(value: float) -> float:
    """A value that is not a number stands above all others, as it does in a verdict."""
    return min(value, 1e300) if value == value else 1e300


def roc(values: Sequence[float], positive: Sequence[bool]) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) of "value ≥ threshold", from the highest threshold to the lowest."""
    scores, truth = np.array([_finite(v) for v in values]), np.array(positive, dtype=bool)
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        flagged = scores >= threshold
        points.append((float(flagged[~truth].mean()), float(flagged[truth].mean())))
    return points


def auc(values: Sequence[float], positive: Sequence[bool]) -> float:
    """The chance that a positive has a larger value than a negative, ties counting half (Mann and Whitney)."""
    scores, truth = np.array([_finite(v) for v in values]), np.array(positive, dtype=bool)
    above, below = scores[truth][:, None], scores[~truth][None]
    return float((above > below).mean() + (above == below).mean() / 2) if truth.any() and not truth.all() else math.nan


def best_threshold(values: Sequence[float], positive: Sequence[bool]) -> float:
    """The cut with the largest true minus false positive rate (Youden's J), midway on a log scale between the values
    on both sides of it; of equal cuts the lowest, which misses least. inf if nothing is positive."""
    scores, truth = np.array([_finite(v) for v in values]), np.array(positive, dtype=bool)
    if not truth.any():
        return math.inf
    if truth.all():
        return float(scores.min())
    cuts = np.unique(scores)
    gains = [float((scores[truth] >= cut).mean() - (scores[~truth] >= cut).mean()) for cut in cuts]
    at = int(np.argmax(gains))
    if at == 0:
        return float(cuts[0])
    return float(math.exp((math.log(max(cuts[at], 1e-300)) + math.log(max(cuts[at - 1], 1e-300))) / 2))


def lowest_threshold(values: Sequence[float], positive: Sequence[bool], alpha: float) -> float:
    """The lowest cut that at most a share alpha of the negatives reaches (Neyman and Pearson), so that nothing more can
    be caught at that rate of false alarms; midway, on a log scale, to the last value below it."""
    scores = sorted((_finite(v), p) for v, p in zip(values, positive, strict=True))
    negatives = [value for value, p in scores if not p][::-1]
    below = negatives[int(alpha * len(negatives))]  # the largest negative that must stay below
    above = min((value for value, _ in scores if value > below), default=below * 2)
    return float(math.exp((math.log(max(below, 1e-300)) + math.log(max(above, 1e-300))) / 2))
