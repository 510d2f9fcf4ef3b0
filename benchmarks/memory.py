"""How much a process grows by diagnosing: one edit a hundred times, and a list of a hundred requests.

python -m benchmarks.memory
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.common import MEGABYTE, give_back, machine, memory_of, parse, parser_of, write
from rome_core import EditRequest, Prompt, diagnose, load_facts, load_model, solve
from rome_core.diagnosis.many import diagnose_many
from rome_core.editing.methods.n_rome import NRome

REQUEST = EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome", "Paris")
FIRST = 5  # after so many the allocator and the caches have what they need


def growth(steps: Iterator[object]) -> float:
    """MB that the process grows by, from the fifth step to the last."""
    for _ in zip(range(FIRST), steps, strict=False):
        pass
    before = resident()
    for _ in steps:
        pass
    return (resident() - before) / MEGABYTE


def resident() -> int:
    give_back()
    return memory_of("VmRSS")


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--n", type=int, default=100)
    options = parse(parser)
    lm, n = load_model(), FIRST + options.n
    config = NRome(steps=2, n_prefixes=2)  # short searches: what is kept does not depend on how long they are
    edit, facts = solve(lm, [REQUEST], config), list(load_facts())
    random.Random(0).shuffle(facts)
    grown = {
        "one edit": growth(diagnose(lm, edit) for _ in range(n)),
        "a list of requests": growth(diagnose_many(lm, [fact.request for fact in facts[:n]], config)),
    }
    for name, megabytes in grown.items():
        print(f"{name}, {options.n} diagnoses after the first {FIRST}: {megabytes:.1f} MB")
    write(options.out, machine=machine(lm), memory=[grown])


if __name__ == "__main__":
    main()
