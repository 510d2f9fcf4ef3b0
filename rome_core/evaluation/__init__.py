"""Measuring edits: does it hold, does it generalise, does it leave the rest alone."""

from rome_core.evaluation.known import known_facts
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.evaluation.run import Evaluation, evaluate, measure
from rome_core.evaluation.scores import Case, Score, case_of, summarise
from rome_core.evaluation.sequence import edit_in_sequence, plan_sequence
from rome_core.evaluation.sequence_curves import collapse, curves, retention_matrix
from rome_core.evaluation.sequence_run import Pace, Record, SequencePlan, SequenceRun, branch_run, create_run, open_run

__all__ = [
    "Case",
    "Evaluation",
    "Pace",
    "Record",
    "Score",
    "SequencePlan",
    "SequenceRun",
    "branch_run",
    "case_of",
    "collapse",
    "create_run",
    "curves",
    "edit_in_sequence",
    "evaluate",
    "general_texts",
    "known_facts",
    "measure",
    "open_run",
    "perplexity",
    "plan_sequence",
    "retention_matrix",
    "summarise",
]
