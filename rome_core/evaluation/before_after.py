"""What an edit did: the same questions and texts put to the model before it and after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rome_core.diagnosis.calibration import Verdict
from rome_core.diagnosis.inspection import target_rank
from rome_core.diagnosis.verdict import Diagnosis, Size, diagnose, has_key, size_of
from rome_core.editing.edit import Edit, Step
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.second_moment import Moment
from rome_core.evaluation.answers import Change, Kind, Question, ask_before_and_after
from rome_core.facts.datasets import Fact, load_facts
from rome_core.facts.namesakes import make_namesakes
from rome_core.model.generation import generate_many
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.progress import Track, silent

NEW_TOKENS = 30
NAMESAKES = 2


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
    changes: tuple[Change, ...]  # of the answers, the edited prompt's first
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


def list_objects(request: EditRequest) -> tuple[str, ...]:
    """The objects that compete: the new one and, if it is known, the true one."""
    return tuple(target.strip() for target in (request.target_new, request.target_true) if target and target.strip())


def find_own_fact(request: EditRequest) -> Fact | None:
    """The project's own fact about this subject and its true object: it brings paraphrases and neighbours with it."""
    subject, true = _bare(request.prompt.subject), (request.target_true or "").strip()
    facts = [fact for fact in load_facts() if _bare(fact.prompt.subject) == subject]
    same = [fact for fact in facts if fact.prompt.text == request.prompt.text]
    return next(iter([*same, *(fact for fact in facts if fact.target_true == true)]), None)


def _bare(subject: str) -> str:
    return subject.strip().removeprefix("The ").removeprefix("the ").casefold()


def same_fact(edit: Edit, request: EditRequest) -> bool:
    """Whether an edit is about this very prompt."""
    return any(other.prompt.text == request.prompt.text for other in edit.requests)


def choose_questions(request: EditRequest, limit: int = 4) -> list[Question]:
    """The edited prompt, namesakes of its subject, and, where the fact is known, paraphrases, neighbours in the same
    words, and the reverse."""
    fact = find_own_fact(request)
    texts: list[tuple[Kind, str]] = [("edit", request.prompt.text)]
    if fact:
        texts += [("paraphrase", text) for text in _paraphrases(request, fact)[:limit]]
        texts += [("neighbour", text) for text in _neighbours(request, fact)[:limit]]
    texts += [("namesake", prompt.text) for prompt in make_namesakes(request.prompt, NAMESAKES, "measure")]
    questions = [_question(request, kind, text) for kind, text in texts]
    if fact and fact.reversed:
        text = fact.reversed.replace(fact.target_new, request.target_new.strip())
        questions.append(Question("reversed", text, request.prompt.subject.strip().removeprefix("The ")))
    return questions


def own_questions(request: EditRequest, lines: Iterable[str], limit: int = 10) -> list[Question]:
    """The user's own prompts, one a line."""
    texts = [line.rstrip() for line in lines if line.strip()]
    return [_question(request, "yours", text) for text in texts[:limit]]


def _question(request: EditRequest, kind: Kind, text: str) -> Question:
    new, *true = list_objects(request)
    return Question(kind, text, new, next(iter(true), None))


def _paraphrases(request: EditRequest, fact: Fact) -> list[str]:
    others = [fact.prompt.text] if fact.prompt.text != request.prompt.text else []
    return [*others, *fact.paraphrases]


def _neighbours(request: EditRequest, fact: Fact) -> list[str]:
    """The neighbours' subjects in the words of the request, so that only the subject differs."""
    head, tail = fact.prompt.template.split("{}")
    subjects = [text[len(head) : len(text) - len(tail)] for text in fact.neighbours]
    return [Prompt(request.prompt.template, subject).text for subject in subjects]


def generation_texts(request: EditRequest) -> list[str]:
    """Openings whose continuation shows whether the edit is a belief or only an answer."""
    fact = find_own_fact(request)
    opening = request.prompt.template.split("{}")[0] + request.prompt.subject + " is"
    return [opening, *(fact.generations[:1] if fact else [])]


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


def measure_edit(
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
        changes=ask_before_and_after(lm, choose_questions(request), [edit], below, track),
        continuations=continuations(lm, edit, below, generation_texts(request), track=track),
        seconds=seconds,
    )


def solve_and_measure(
    lm: LanguageModel,
    request: EditRequest,
    config: MethodConfig,
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
    return measure_edit(lm, edit, below, track, time.monotonic() - began, moments)
