"""One fact with everything that tracing, editing and measuring an edit of it need."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rome_core.model.tokens import EditRequest, Prompt

N_NEIGHBOURS = 10  # as many as CounterFact gives
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Probe:
    """A prompt whose right answer is known. kind: what it asks for, as its file calls it (Reasoning, Forgetfulness)."""

    prompt: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Fact:
    """One fact; what its source lacks is empty, also `target_new` (a fact that can be traced, not edited).

    neighbours: prompts about other things, whose right answer is `neighbour_true`, or, where they differ, their own in
    `neighbour_answers`. portability: what must follow from the edit. id: what its source calls it, for people.
    """

    id: str
    relation: str
    prompt: Prompt
    target_true: str
    target_new: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    neighbour_true: str = ""
    generations: tuple[str, ...] = ()
    reversed: str | None = None
    neighbour_answers: tuple[str, ...] = ()
    portability: tuple[Probe, ...] = ()

    @property
    def request(self) -> EditRequest:
        """The edit that it asks for; raises PromptError where it names no new object."""
        return EditRequest(self.prompt, self.target_new, self.target_true or None)

    @property
    def near(self) -> tuple[tuple[str, str], ...]:
        """The neighbours, each with its right answer."""
        answers = self.neighbour_answers or (self.neighbour_true,) * len(self.neighbours)
        return tuple(zip(self.neighbours, answers, strict=False))


def distinct(facts: Iterable[Fact]) -> list[Fact]:
    """The facts in order, each with an id of its own: of equal ids the second becomes 'id (2)', and so on.

    Files that were joined repeat their ids. A fact's identity is its place; its id only says so to people.
    """
    facts, seen, taken = list(facts), Counter[str](), set[str]()
    taken.update(fact.id for fact in facts)
    result = []
    for fact in facts:
        seen[fact.id] += 1
        name = fact.id
        while seen[fact.id] > 1 and name in taken:
            name = f"{fact.id} ({seen[fact.id]})"
            if name in taken:
                seen[fact.id] += 1
        taken.add(name)
        result.append(fact if name == fact.id else replace(fact, id=name))
    return result


def part_of(fact: Fact) -> Part:
    """Which part a fact is in: half of all subjects train hypernetworks, a tenth validates, the rest is scored.

    A hash of the subject decides, so facts about one subject never stand in two parts, in any file, on any machine.
    """
    digest = hashlib.blake2b(fact.prompt.subject.strip().casefold().encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 100
    return "train" if place < 50 else "validation" if place < 60 else "test"


def editable(facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose new object is another one than the true one: only of these can an edit be measured."""
    return [fact for fact in facts if fact.target_new and fact.target_new != fact.target_true]
