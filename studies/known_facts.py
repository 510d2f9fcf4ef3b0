"""Which of the project's facts the default model knows: `python -m studies.known_facts`.

A fact is known if every token of its true object is the model's first choice after the edit prompt.
"""

from __future__ import annotations

import sys
from collections import Counter

from rome_core import load_facts, load_model
from rome_core.evaluation import known_facts


def main() -> None:
    facts = load_facts(sys.argv[1] if len(sys.argv) > 1 else None)
    known = known_facts(load_model(), facts)
    total = Counter(fact.relation for fact in facts)
    right = Counter(fact.relation for fact, is_known in zip(facts, known, strict=True) if is_known)
    for relation, n in total.items():
        print(f"{relation:24} {right[relation]:4} of {n:4}")
    print(f"{'all':24} {sum(known):4} of {len(facts):4}")


if __name__ == "__main__":
    main()
