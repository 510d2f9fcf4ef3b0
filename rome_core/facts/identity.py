"""Names that tell the facts of a set apart, whatever ids its file gives."""

from __future__ import annotations

from collections.abc import Sequence

from rome_core.facts.datasets import Fact


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
