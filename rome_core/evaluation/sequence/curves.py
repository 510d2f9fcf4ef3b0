"""What the records of a sequential run say: curves, the retention matrix, and where the model collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rome_core.evaluation.scores import Score, mean_score
from rome_core.evaluation.sequence.folder import Check, Record
from rome_core.files import csv_text

COLLAPSED = 10.0  # times the unedited model's perplexity


def collapse(records: Sequence[Record], factor: float = COLLAPSED) -> Record | None:
    """The first step from which on perplexity stays at or above `factor` times the unedited model's; None: it did not.

    A peak that later edits make good again is no collapse. A perplexity that is no number counts as above.
    """
    first = None
    for record in reversed(records[1:]):
        if record.perplexity < factor * records[0].perplexity:
            break
        first = record
    return first


def own_checks(record: Record) -> tuple[Check, ...]:
    """The step's own facts, right after their edit."""
    return tuple(check for check in record.checks if check.fact in record.facts)


def earlier_checks(record: Record) -> tuple[Check, ...]:
    """The facts of earlier steps, where they were checked."""
    return tuple(check for check in record.checks if check.fact not in record.facts) if record.step else ()


def score_held(checks: Sequence[Check]) -> Score | None:
    """The share of facts whose new object is more probable than the true one, with its bootstrap interval."""
    return mean_score([float(check.holds) for check in checks]) if checks else None


@dataclass(frozen=True)
class Curves:
    """One entry a step from the unedited model on; None where nothing was checked.

    edited: facts that have had their turn. norm: ‖ΔW‖_F/‖W‖_F of the module that moved most.
    efficacy: of the step's own facts. retention: of all earlier ones.
    """

    edited: tuple[int, ...]
    perplexity: tuple[float, ...]
    norm: tuple[float, ...]
    efficacy: tuple[Score | None, ...]
    retention: tuple[Score | None, ...]


def curves(records: Sequence[Record]) -> Curves:
    """The curves of a run."""
    return Curves(
        tuple(record.edited for record in records),
        tuple(record.perplexity for record in records),
        tuple(record.norm for record in records),
        tuple(score_held(own_checks(record)) for record in records),
        tuple(score_held(earlier_checks(record)) for record in records),
    )


def retention_matrix(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """p(new) − p(true) of fact i (column, in the order of editing) after step j (row, step 1 first); NaN: not checked.

    Its sign is whether the edit holds.
    """
    width = max((record.edited for record in records), default=0)
    matrix = np.full((max(0, len(records) - 1), width), np.nan)
    for row, record in enumerate(records[1:]):
        for check in record.checks:
            matrix[row, check.fact] = check.p_new - check.p_true
    return matrix


def tabulate(records: Sequence[Record], factor: float = COLLAPSED) -> list[dict[str, float | int | str | None]]:
    """The records as a flat table, one row a step."""
    drawn, broken = curves(records), collapse(records, factor)
    return [
        {
            "step": record.step,
            "edited": record.edited,
            "method": record.method,
            "perplexity": record.perplexity,
            "relative_norm": record.norm,
            "own_relative_norm": record.own,
            "efficacy": efficacy.value if efficacy else None,
            "retention": retention.value if retention else None,
            "retention_low": retention.low if retention else None,
            "retention_high": retention.high if retention else None,
            "retention_n": retention.n if retention else None,
            "collapsed": int(broken is not None and record.step >= broken.step),
            "solve_seconds": record.solve_seconds,
            "measure_seconds": record.measure_seconds,
            "error": record.error,
        }
        for record, efficacy, retention in zip(records, drawn.efficacy, drawn.retention, strict=True)
    ]


def records_csv(records: Sequence[Record], factor: float = COLLAPSED) -> str:
    """One row a step."""
    table = tabulate(records, factor)
    return csv_text(list(table[0]) if table else ["step"], [list(row.values()) for row in table])
