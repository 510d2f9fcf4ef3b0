"""Measuring edits: does it hold, does it generalise, does it leave the rest alone."""

from rome_core.evaluation.each_fact import Evaluation, evaluate, measure
from rome_core.evaluation.known import known_facts
from rome_core.evaluation.measures import MeasureSettings, measure_fact
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.evaluation.runs.runner import choose_facts, choose_known
from rome_core.evaluation.runs.store import Row, Store, hash_of
from rome_core.evaluation.runs.work import Plan
from rome_core.evaluation.scores import Case, Score, case_of, summarise
from rome_core.evaluation.sequence.curves import collapse, curves, retention_matrix
from rome_core.evaluation.sequence.folder import (
    Pace,
    Record,
    SequencePlan,
    SequenceRun,
    branch_run,
    create_run,
    open_run,
)
from rome_core.evaluation.sequence.steps import edit_in_sequence, plan_sequence

__all__ = [
    "Case",
    "Evaluation",
    "MeasureSettings",
    "Pace",
    "Plan",
    "Record",
    "Row",
    "Score",
    "SequencePlan",
    "SequenceRun",
    "Store",
    "branch_run",
    "case_of",
    "choose_facts",
    "choose_known",
    "collapse",
    "create_run",
    "curves",
    "edit_in_sequence",
    "evaluate",
    "general_texts",
    "hash_of",
    "known_facts",
    "measure",
    "measure_fact",
    "open_run",
    "perplexity",
    "plan_sequence",
    "retention_matrix",
    "summarise",
]
