"""The one measurement of an edit: what the model says of the new and of the true object behind a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rome_core.editing.edit import Edit
from rome_core.facts.datasets import Fact
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import Scored, score
from rome_core.model.tokens import as_target
from rome_core.progress import Track, silent

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
Pairs = dict[str, list[tuple[float, float]]]  # by kind, probabilities of the new and the true object on each prompt


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
    def probabilities(self) -> tuple[float, ...]:
        """Of the whole new object and, if it is known, of the whole true one."""
        return tuple(scored.p_joint for scored in (self.new, self.true) if scored)

    @property
    def said(self) -> bool:
        """Whether greedy decoding writes the new object: every token is the first choice."""
        return all(self.new.hits)


@dataclass(frozen=True)
class Change:
    """The answers to one question without and with an edit."""

    before: Answer
    after: Answer

    @property
    def question(self) -> Question:
        return self.before.question


def questions_about(fact: Fact) -> tuple[Question, ...]:
    """A fact's edit prompt, paraphrases and neighbours; on neighbours the new object competes with theirs."""
    return (
        Question("edit", fact.prompt.text, fact.target_new, fact.target_true),
        *(Question("paraphrase", text, fact.target_new, fact.target_true) for text in fact.paraphrases),
        *(Question("neighbour", text, fact.target_new, answer) for text, answer in fact.near),
    )


def ask(lm: LanguageModel, questions: Sequence[Question], *, edits: Sequence[Edit] = ()) -> tuple[Answer, ...]:
    """Answers in the order of the questions, from as few passes as there are different texts."""
    pairs = [pair for question in questions for pair in _pairs(question)]
    scored = iter(score(lm, pairs, edits=edits))
    return tuple(
        Answer(question, next(scored), next(scored) if question.true is not None else None) for question in questions
    )


def ask_before_and_after(
    lm: LanguageModel,
    questions: Sequence[Question],
    edits: Sequence[Edit],
    below: Sequence[Edit] = (),
    track: Track = silent,
) -> tuple[Change, ...]:
    """Ask without and with some edits. below: those that are active in both cases."""
    if not questions:
        return ()
    stacks = track((tuple(below), (*below, *edits)), "Asking before and after", 2)
    before, after = (ask(lm, questions, edits=stack) for stack in stacks)
    return tuple(Change(*answers) for answers in zip(before, after, strict=True))


def _pairs(question: Question) -> list[tuple[str, str]]:
    new = [(question.text, as_target(question.new, question.text))]
    if question.true is None:
        return new
    text = question.text if question.true_text is None else question.true_text
    return [*new, (text, as_target(question.true, text))]


def known_facts(lm: LanguageModel, facts: Sequence[Fact], *, edits: Sequence[Edit] = ()) -> list[bool]:
    """For each fact, whether every token of its true object is the model's first choice after the edit prompt."""
    pairs = [(fact.prompt.text, as_target(fact.target_true, fact.prompt.text)) for fact in facts]
    return [all(scored.hits) for scored in score(lm, pairs, edits=edits)]


def pairs_of(answers: Iterable[Answer]) -> Pairs:
    """Answers as the studies keep them: geometric-mean token probabilities by kind, kinds without a prompt empty."""
    pairs: Pairs = {"edit": [], "paraphrase": [], "neighbour": []}
    for answer in answers:
        assert answer.true is not None, answer.question
        pairs[answer.question.kind].append((answer.new.p_mean, answer.true.p_mean))
    return pairs
