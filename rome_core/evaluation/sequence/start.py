"""Beginning a sequential run: a folder named by everything that the run depends on, so that asking again goes on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rome_core.editing.methods import MethodConfig
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.sequence.folder import Pace, SequenceRun, branch_run, create_run, open_run
from rome_core.evaluation.sequence.steps import plan_sequence
from rome_core.facts.datasets import Fact
from rome_core.model.language_model import LanguageModel


@dataclass(frozen=True)
class SequenceStart:
    """A run as it is asked for. branch: name of the run and step that it branches off, if it does."""

    facts: tuple[Fact, ...]
    config: MethodConfig
    pace: Pace
    order_seed: int
    branch: tuple[str, int] | None = None

    def name(self, lm: LanguageModel) -> str:
        """The same start has the same name, so that it is gone on with and not begun again."""
        inputs = [
            lm.fingerprint,
            hash_of(self.facts),
            *(self.config.name, asdict(self.config), asdict(self.pace), self.order_seed, self.branch),
        ]
        mark = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:6]
        batch = f"-{self.pace.batch}" if self.pace.batch > 1 else ""
        return f"{self.config.name}{batch}-{len(self.facts)}-{mark}"


def open_or_create(lm: LanguageModel, start: SequenceStart, folder: Path) -> SequenceRun:
    """The run of this start in a folder of runs: the one that is there, else a new one."""
    target = folder / start.name(lm)
    if (target / "run.json").exists():
        return open_run(target)
    if start.branch is None:
        return create_run(target, lm, plan_sequence(lm, start.facts, start.config, start.pace, start.order_seed))
    former, step = open_run(folder / start.branch[0]), start.branch[1]
    return branch_run(former, step, target, lm, plan_sequence(lm, start.facts, start.config, start.pace))


def branch_facts(run: SequenceRun, step: int, facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """The facts that had their turn up to a step, then the others, as many in all as there are others, or one more."""
    edited = next(record.edited for record in run.records if record.step == step)
    done = run.plan.facts[:edited]
    return (*done, *without(facts, done))[: max(len(facts), edited + 1)]


def without(facts: Sequence[Fact], done: Sequence[Fact]) -> tuple[Fact, ...]:
    """The facts but for those that had their turn; one that is there twice is left out as often as it had."""
    left, rest = Counter(done), list[Fact]()
    for fact in facts:
        if left[fact]:
            left[fact] -= 1
        else:
            rest.append(fact)
    return tuple(rest)
