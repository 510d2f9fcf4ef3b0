"""Measuring edits: does it hold, does it generalise, does it leave the rest alone."""

from rome_core.evaluation.answers import Answer, Question, ask, known_facts, pairs_of, questions_about
from rome_core.evaluation.fact_measures import MeasureSettings, measure_fact, score_answers, score_pairs
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.evaluation.runs.execution import choose_facts, choose_known
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.runs.in_memory import Evaluation, evaluate, evaluate_each
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.work import Plan
from rome_core.evaluation.scores import Score, summarise
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
