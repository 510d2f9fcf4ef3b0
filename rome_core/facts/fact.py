"""One fact with everything that tracing, editing and measuring an edit of it need."""

from __future__ import annotations

import hashlib
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


def lacks_new_object(fact: Fact) -> bool:
    """Whether there is nothing to edit a fact to: no new object is given, or it is the true one."""
    return not fact.target_new.strip() or fact.target_new.strip().casefold() == fact.target_true.strip().casefold()


def tell_apart(facts: Sequence[Fact]) -> list[str]:
    """A name of each fact that no other has: its id or, where an earlier fact has that already, the id with a number.

    Joined files repeat ids, and a name that two facts share would give one what was measured of the other. The first
    facts keep their names when a set grows at its end.
    """
    names = dict[str, None]()
    for fact in facts:
        name, number = fact.id, 1
        while name in names:
            number += 1
            name = f"{fact.id} ({number})"
        names[name] = None
    return list(names)


def distinct(facts: Iterable[Fact]) -> list[Fact]:
    """The facts in order, each with an id of its own: of equal ids the second becomes 'id (2)', and so on."""
    facts = list(facts)
    return [
        fact if fact.id == name else replace(fact, id=name) for fact, name in zip(facts, tell_apart(facts), strict=True)
    ]


def part_of(fact: Fact) -> Part:
    """Which part a fact is in: half of all subjects train hypernetworks, a tenth validates, the rest is scored.

    A hash of the subject decides, so facts about one subject never stand in two parts, in any file, on any machine.
    """
    digest = hashlib.blake2b(fact.prompt.subject.strip().casefold().encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 100
    return "train" if place < 50 else "validation" if place < 60 else "test"
