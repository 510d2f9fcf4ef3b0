"""The one measurement of an edit: what the model says of the new and of the true object behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rome_core.editing.edit import Edit
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import Scored, score
from rome_core.model.tokens import as_target

Kind = Literal[
    "edit",
    "paraphrase",
    "neighbour",
    "neighbour+",
    "namesake",
    "yours",
    "reversed",
    "another language",
    "one step away",
    "what is near",
]


@dataclass(frozen=True)
class Question:
    """A text and the objects that compete behind it. kind "neighbour+": the edit's sentence stands in front.

    true: None where it is not known. true_text: what stands before the true answer, where that is another text than
    before the new one (of a reversed fact the texts differ and the answer, the subject, is the same).
    """

    kind: Kind
    text: str
    new: str
    true: str | None = None
    true_text: str | None = None

    def behind(self, prefix: str) -> Question:
        """The same question with a text in front."""
        front = None if self.true_text is None else prefix + self.true_text
        return replace(self, text=prefix + self.text, true_text=front)


@dataclass(frozen=True)
class Answer:
    """The new and the true object after a question's text, teacher-forced."""

    question: Question
    new: Scored
    true: Scored | None

    @property
    def lead(self) -> float:
        """How far the object that should win is ahead, in geometric-mean token probability; the true object should win
        on neighbours. Of an unknown true object the probability counts as ½."""
        ahead = self.new.p_mean - (self.true.p_mean if self.true else 0.5)
        return -ahead if self.question.kind.startswith("neighbour") else ahead

    @property
    def said(self) -> bool:
        """Whether greedy decoding writes the new object: every token is the first choice."""
        return all(self.new.hits)


def ask(lm: LanguageModel, questions: Sequence[Question], *, edits: Sequence[Edit] = ()) -> tuple[Answer, ...]:
    """Answers in the order of the questions, from as few passes as there are different texts."""
    pairs = [pair for question in questions for pair in _pairs(question)]
    scored = iter(score(lm, pairs, edits=edits))
    return tuple(
        Answer(question, next(scored), next(scored) if question.true is not None else None) for question in questions
    )


def _pairs(question: Question) -> list[tuple[str, str]]:
    new = [(question.text, as_target(question.new))]
    if question.true is None:
        return new
    return [*new, (question.text if question.true_text is None else question.true_text, as_target(question.true))]
