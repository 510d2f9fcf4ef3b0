"""Facts that have no new object to be edited to: how many there are, and one of the same relation for each.

Sets of known facts give what a model should say and nothing else. Scored as it is, such a set has no success by
construction: p(new) > p(true) cannot be where both are one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rome_core.errors import DataError
from rome_core.facts.datasets import Facts
from rome_core.facts.fact import Fact, lacks_new_object
from rome_core.facts.tables import Place, Problem


def require_new_objects(facts: Sequence[Fact]) -> None:
    """Raise DataError with their number if some of the facts have no new object, or no true one to score it against."""
    if lacking := sum(map(lacks_new_object, facts)):
        raise DataError(
            f"{lacking:,} of {len(facts):,} facts have no new object to edit to.",
            "None is given, or it is the true one.",
            "Take for each another object of its relation, leave them out, or only trace them.",
        )
    if lacking := sum(not fact.target_true for fact in facts):
        raise DataError(
            f"{lacking:,} of {len(facts):,} facts have no true object.",
            "An edit is scored by p(new) against p(true).",
            "Add the true object (target_true, ground_truth), or edit such facts without scoring them.",
        )


def with_new_objects(facts: Iterable[Fact], seed: int) -> Facts:
    """The facts, those without a new object with a true object of another fact of the same relation.

    Same relation: the same relation id, or where a set has none the same template. The choice depends on the seed, the
    subject and which objects the relation has, not on the facts' order; an object that is true of the subject by
    another record is never chosen. Facts with no other object are left out, with their reason in `.problems`.
    """
    facts = list(facts)
    objects, true_of = defaultdict[str, set[str]](set), defaultdict[tuple[str, str], set[str]](set)
    for fact in facts:
        objects[_relation(fact)].add(fact.target_true.strip())
        true_of[_relation(fact), fact.prompt.subject.strip().casefold()].add(fact.target_true.strip().casefold())
    chosen, problems = list[Fact](), list[Problem]()
    for number, fact in enumerate(facts, 1):
        if not lacks_new_object(fact):
            chosen.append(fact)
            continue
        relation, subject = _relation(fact), fact.prompt.subject.strip()
        true = true_of[relation, subject.casefold()]
        if others := sorted(name for name in objects[relation] if name and name.casefold() not in true):
            chosen.append(replace(fact, target_new=random.Random(f"{seed} {subject}").choice(others)))
        else:
            why = f"The set has no other object of the relation '{relation}' for '{subject}'."
            problems.append(Problem(Place(number, "fact"), why))
    return Facts(chosen, problems)


def _relation(fact: Fact) -> str:
    return fact.relation.strip() or fact.prompt.template
