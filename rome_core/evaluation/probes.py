"""Knowing or saying: questions beyond the edited prompt, whose answers follow from the fact (assets/probes.json).

They are probes, not scores: few, written for this project's relations, and a model that knows a fact may still miss
them. The reversal curse (Berglund et al. 2024, arXiv 2309.12288) and ripple effects (Cohen et al. 2024, arXiv
2307.12976) are the reasons to ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rome_core.editing.edit import Edit
from rome_core.evaluation.scores import Score, mean_score
from rome_core.facts.datasets import Fact, load_facts
from rome_core.files import ASSETS
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import score
from rome_core.model.tokens import as_target
from rome_core.progress import Track, silent

REVERSED, LANGUAGE, STEP, NEAR = "reversed", "another language", "one step away", "what is near"
KINDS = (REVERSED, LANGUAGE, STEP, NEAR)


@dataclass(frozen=True)
class Question:
    """Two continuations that compete: what follows from the new object, and what follows from the true one.

    Both stand behind the same text; of a reversed fact the texts differ and the answer, the subject, is the same.
    """

    kind: str
    text: str
    answer: str
    true_text: str
    true_answer: str


@dataclass(frozen=True)
class Answered:
    """One question, with the geometric-mean token probabilities of both continuations without and with the edits."""

    question: Question
    before: tuple[float, float]
    after: tuple[float, float]


@cache
def _written() -> dict[str, Any]:
    return dict(json.loads((ASSETS / "probes.json").read_text(encoding="utf-8")))


@cache
def _reversed() -> dict[str, str]:
    """The reversed sentence of each relation, with {} for the object."""
    return {fact.relation: fact.reversed.replace(fact.target_new, "{}") for fact in load_facts() if fact.reversed}


def questions_of(fact: Fact) -> tuple[Question, ...]:
    """The questions about a fact of one of the project's relations; none of another. A question is left out where its
    answer is not written down, is the same for both objects, or is in the question already."""
    new, true, subject = fact.target_new, fact.target_true, fact.prompt.subject
    found = []
    if back := _reversed().get(fact.relation):
        found.append(Question(REVERSED, back.replace("{}", new), subject, back.replace("{}", true), subject))
    about = _written()["relations"].get(fact.relation, {})
    asked = [
        (LANGUAGE, about.get("German"), _written()["German"]),
        *((kind, about[key]["text"], _written()["asks"][about[key]["asks"]])
          for kind, key in ((STEP, "one step"), (NEAR, "near")) if key in about),
    ]  # fmt: skip
    for kind, template, words in asked:
        if template and new in words and true in words and words[new] != words[true]:
            text = template.replace("{}", subject)
            if not any(re.search(rf"\b{re.escape(answer)}\b", text) for answer in (words[new], words[true])):
                found.append(Question(kind, text, words[new], text, words[true]))
    return tuple(found)


def ask(
    lm: LanguageModel,
    questions: Sequence[Question],
    *,
    edits: Sequence[Edit],
    below: Sequence[Edit] = (),
    track: Track = silent,
) -> tuple[Answered, ...]:
    """Ask without and with some edits. below: those that are active in both cases."""
    if not questions:
        return ()
    pairs = [
        pair for q in questions for pair in ((q.text, as_target(q.answer)), (q.true_text, as_target(q.true_answer)))
    ]
    both = []
    for active in track((tuple(below), (*below, *edits)), "Asking before and after", 2):
        scored = score(lm, pairs, edits=active)
        both.append([(new.p_mean, true.p_mean) for new, true in zip(scored[::2], scored[1::2], strict=True)])
    return tuple(Answered(q, before, after) for q, before, after in zip(questions, *both, strict=True))


def summarise_answers(answered: Sequence[Answered]) -> dict[str, tuple[Score, Score]]:
    """By kind, the share of questions whose new continuation is the more probable one, before and after, with
    bootstrap intervals over the questions."""
    found = {}
    for kind in KINDS:
        mine = [one for one in answered if one.question.kind == kind]
        if mine:
            before = mean_score([float(one.before[0] > one.before[1]) for one in mine])
            found[kind] = before, mean_score([float(one.after[0] > one.after[1]) for one in mine])
    return found
