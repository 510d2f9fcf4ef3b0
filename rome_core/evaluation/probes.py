"""Knowing or saying: questions beyond the edited prompt, whose answers follow from the fact (assets/probes.json).

They are probes, not scores: few, written for this project's relations, and a model that knows a fact may still miss
them. The reversal curse (Berglund et al. 2024, arXiv 2309.12288) and ripple effects (Cohen et al. 2024, arXiv
2307.12976) are the reasons to ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from rome_core.evaluation.answers import Change, Kind, Question
from rome_core.evaluation.scores import Score, mean_score
from rome_core.facts.datasets import Fact, load_facts
from rome_core.files import ASSETS

KINDS: tuple[Kind, ...] = ("reversed", "another language", "one step away", "what is near")


@cache
def _written() -> dict[str, Any]:
    return dict(json.loads((ASSETS / "probes.json").read_text(encoding="utf-8")))


@cache
def _reversed() -> dict[str, str]:
    """The reversed sentence of each relation, with {} for the object."""
    return {fact.relation: fact.reversed.replace(fact.target_new, "{}") for fact in load_facts() if fact.reversed}


def probe_questions(fact: Fact) -> tuple[Question, ...]:
    """The questions about a fact of one of the project's relations; none of another. A question is left out where its
    answer is not written down, is the same for both objects, or is in the question already."""
    new, true, subject = fact.target_new, fact.target_true, fact.prompt.subject
    questions: list[Question] = []
    if back := _reversed().get(fact.relation):
        questions.append(Question("reversed", back.replace("{}", new), subject, subject, back.replace("{}", true)))
    about = _written()["relations"].get(fact.relation, {})
    templates: list[tuple[Kind, str | None, Mapping[str, str]]] = [
        ("another language", about.get("German"), _written()["German"]),
        *((kind, about[key]["text"], _written()["asks"][about[key]["asks"]])
          for kind, key in _BEYOND.items() if key in about),
    ]  # fmt: skip
    for kind, template, words in templates:
        if template and new in words and true in words and words[new] != words[true]:
            text = template.replace("{}", subject)
            if not any(re.search(rf"\b{re.escape(answer)}\b", text) for answer in (words[new], words[true])):
                questions.append(Question(kind, text, words[new], words[true]))
    return tuple(questions)


_BEYOND: Mapping[Kind, str] = {"one step away": "one step", "what is near": "near"}


def summarise_probes(changes: Sequence[Change]) -> dict[str, tuple[Score, Score]]:
    """By kind, the share of questions whose new continuation is the more probable one, before and after, with
    bootstrap intervals over the questions."""
    shares: dict[str, tuple[Score, Score]] = {}
    for kind in KINDS:
        alike = [change for change in changes if change.question.kind == kind]
        if alike:
            before = mean_score([float(change.before.lead > 0) for change in alike])
            shares[kind] = before, mean_score([float(change.after.lead > 0) for change in alike])
    return shares
