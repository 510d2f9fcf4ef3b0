"""What an edit did, measured before and after: plain data for the edit and diagnostics pages, no widgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rome_core import EditRequest, LanguageModel, Moment, diagnose, solve
from rome_core.diagnosis.calibration import Verdict
from rome_core.diagnosis.inspection import target_rank
from rome_core.diagnosis.verdict import Diagnosis, Size, has_key, size_of
from rome_core.editing.edit import Edit, Step
from rome_core.facts.datasets import Fact, load_facts
from rome_core.facts.namesakes import make_namesakes
from rome_core.model.generation import generate_many
from rome_core.model.scoring import score
from rome_core.model.tokens import Prompt, as_target
from rome_core.progress import Track, silent

NEW_TOKENS = 30
NAMESAKES = 2


@dataclass(frozen=True)
class Probe:
    """Probabilities of the answers on one prompt, before and after: the new object first, then the true one; on a
    reversed prompt the subject."""

    kind: str  # edit, paraphrase, neighbour, namesake, reversed, yours
    text: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def shown(self) -> str:
        """The prompt, with the answer where it is not the object."""
        return self.text + (" … (the subject)" if self.kind == "reversed" else "")


@dataclass(frozen=True)
class Continuation:
    """What the model writes behind a text, before and after, with the same seed."""

    text: str
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class Report:
    """An edit with everything measured around it. below: the edits that it was solved on top of."""

    edit: Edit
    below: tuple[Edit, ...]
    size: Size
    diagnosis: Diagnosis | None  # of methods with a single key
    rank: tuple[int, int]  # of the new object's first token, before and after; 1 = the model's answer
    probes: tuple[Probe, ...]
    continuations: tuple[Continuation, ...]
    seconds: float

    @property
    def request(self) -> EditRequest:
        return self.edit.requests[0]

    @property
    def verdict(self) -> Verdict:
        """By the quantity that tells most, where there is a single key; else by size."""
        return self.diagnosis.verdict if self.diagnosis else self.size.verdict

    @property
    def relative_norm(self) -> float:
        return self.size.relative_F


def answers(request: EditRequest) -> tuple[str, ...]:
    """The answers to compare: the new object and, if it is known, the true one."""
    return tuple(as_target(answer) for answer in (request.target_new, request.target_true) if answer and answer.strip())


def known_fact(request: EditRequest) -> Fact | None:
    """The project's own fact about this subject and its true object: it brings paraphrases and neighbours with it."""
    subject, true = _bare(request.prompt.subject), (request.target_true or "").strip()
    facts = [fact for fact in load_facts() if _bare(fact.prompt.subject) == subject]
    same = [fact for fact in facts if fact.prompt.text == request.prompt.text]
    return next(iter([*same, *(fact for fact in facts if fact.target_true == true)]), None)


def _bare(subject: str) -> str:
    return subject.strip().removeprefix("The ").removeprefix("the ").casefold()


def same_fact(edit: Edit, request: EditRequest) -> bool:
    """Whether an edit is about this very prompt."""
    return any(one.prompt.text == request.prompt.text for one in edit.requests)


@dataclass(frozen=True)
class Question:
    """A prompt to ask before and after, what it tests, and the answers to follow."""

    kind: str  # edit, paraphrase, neighbour, namesake, reversed, yours
    text: str
    answers: tuple[str, ...]


def questions(request: EditRequest, limit: int = 4) -> list[Question]:
    """The edited prompt, namesakes of its subject, and, where the fact is known, paraphrases, neighbours in the same
    words, and the reverse."""
    wanted, fact = answers(request), known_fact(request)
    asked = [Question("edit", request.prompt.text, wanted)]
    if fact:
        asked += [Question("paraphrase", text, wanted) for text in _paraphrases(request, fact)[:limit]]
        asked += [Question("neighbour", text, wanted) for text in _neighbours(request, fact)[:limit]]
    asked += [Question("namesake", one.text, wanted) for one in make_namesakes(request.prompt, NAMESAKES, "measure")]
    if fact and fact.reversed:
        text = fact.reversed.replace(fact.target_new, request.target_new.strip())
        asked.append(Question("reversed", text, (as_target(_bare_case(request.prompt.subject)),)))
    return asked


def _paraphrases(request: EditRequest, fact: Fact) -> list[str]:
    others = [fact.prompt.text] if fact.prompt.text != request.prompt.text else []
    return [*others, *fact.paraphrases]


def _neighbours(request: EditRequest, fact: Fact) -> list[str]:
    """The neighbours' subjects in the words of the request, so that only the subject differs."""
    head, tail = fact.prompt.template.split("{}")
    subjects = [text[len(head) : len(text) - len(tail)] for text in fact.neighbours]
    return [Prompt(request.prompt.template, subject).text for subject in subjects]


def _bare_case(subject: str) -> str:
    return subject.strip().removeprefix("The ")


def own_questions(request: EditRequest, lines: Iterable[str], limit: int = 10) -> list[Question]:
    """The user's own prompts, one a line."""
    texts = [line.rstrip() for line in lines if line.strip()]
    return [Question("yours", text, answers(request)) for text in texts[:limit]]


def generation_texts(request: EditRequest) -> list[str]:
    """Openings whose continuation shows whether the edit is a belief or only an answer."""
    fact = known_fact(request)
    opening = request.prompt.template.split("{}")[0] + request.prompt.subject + " is"
    return [opening, *(fact.generations[:1] if fact else [])]


def probe(
    lm: LanguageModel, edit: Edit, below: Sequence[Edit], asked: Sequence[Question], track: Track = silent
) -> tuple[Probe, ...]:
    """The answers' probabilities on each prompt, without and with the edit: one batch each."""
    pairs = [(one.text, answer) for one in asked for answer in one.answers]
    before, after = (
        iter(score(lm, pairs, edits=edits)) for edits in track((below, [*below, edit]), "Asking before and after", 2)
    )
    return tuple(
        Probe(
            one.kind,
            one.text,
            tuple(next(before).p_joint for _ in one.answers),
            tuple(next(after).p_joint for _ in one.answers),
        )
        for one in asked
    )


def continuations(
    lm: LanguageModel,
    edit: Edit,
    below: Sequence[Edit],
    texts: Sequence[str],
    temperature: float = 0.0,
    seed: int = 0,
    track: Track = silent,
) -> tuple[Continuation, ...]:
    """What the model writes without and with the edit, from the same seed."""
    write = partial(generate_many, lm, texts, NEW_TOKENS, temperature=temperature, seed=seed)
    before, after = (write(edits=edits) for edits in track((below, [*below, edit]), "Writing before and after", 2))
    return tuple(Continuation(*row) for row in zip(texts, before, after, strict=True))


def measure(
    lm: LanguageModel,
    edit: Edit,
    below: tuple[Edit, ...],
    track: Track = silent,
    seconds: float = 0.0,
    moments: Mapping[int, Moment] | None = None,
) -> Report:
    """Diagnose an edit and ask the model before and after it. moments: C by layer; None: the kept ones."""
    request = edit.requests[0]
    return Report(
        edit=edit,
        below=below,
        size=size_of(lm, edit),
        diagnosis=diagnose(lm, edit, moments) if has_key(edit) else None,
        rank=(target_rank(lm, request, edits=below), target_rank(lm, request, edits=[*below, edit])),
        probes=probe(lm, edit, below, questions(request), track),
        continuations=continuations(lm, edit, below, generation_texts(request), track=track),
        seconds=seconds,
    )


def solve_and_measure(
    lm: LanguageModel,
    request: EditRequest,
    config: Any,
    below: tuple[Edit, ...],
    track: Track = silent,
    publish: Callable[[tuple[Step, ...]], None] = lambda steps: None,
    moments: Mapping[int, Moment] | None = None,
) -> Report:
    """Solve one edit on top of others, hand out the steps as they come, then measure what it did.

    moments: C by layer; None: the kept ones.
    """
    began, steps = time.monotonic(), []

    def report(step: Step) -> None:
        steps.append(step)
        publish(tuple(steps))

    edit = solve(lm, [request], config, moments=moments, edits=below, track=track, report=report)
    return measure(lm, edit, below, track, time.monotonic() - began, moments)
