"""Measuring edits: does it hold, does it generalise, does it leave the rest alone."""

from rome_core.evaluation.known import known_facts
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.evaluation.run import Evaluation, evaluate, measure
from rome_core.evaluation.scores import Case, Score, case_of, summarise

__all__ = [
    "Case",
    "Evaluation",
    "Score",
    "case_of",
    "evaluate",
    "general_texts",
    "known_facts",
    "measure",
    "perplexity",
    "summarise",
]
