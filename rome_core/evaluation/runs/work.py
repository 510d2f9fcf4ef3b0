"""The engine of every evaluation: a group of facts solved by some methods, each measured before, after and at the end.

A fact that a method cannot edit is a row with the reason. Anything else that goes wrong is a fault of the program or of
the machine: it is logged with its traceback and recorded as the reason of the whole task, because a run of many hours
is worth more than its end, and `Store.forget_failures` has the task done again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.second_moment import Moment
from rome_core.evaluation.fact_measures import Measured, MeasureSettings, measure_fact
from rome_core.evaluation.generation_measures import References
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.evaluation.runs.store import Row, answer_record
from rome_core.evaluation.solving import FAILURES, explain, solve_by_each
from rome_core.facts.datasets import Fact
from rome_core.model.edits import relative_norms
from rome_core.model.language_model import LanguageModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to evaluate: facts in their order, methods with their settings by label, in groups of so many edits.

    group: 1 edits each fact by itself on the untouched model; k edits k facts on top of each other (or at once, by the
    methods that can), and measures each after its own edit and again at the group's end.
    prefixes: so many of the sampled prefixes for every method, to save time; None leaves each method its own number.
    source, set_hash, order_seed: where the facts come from and how they were ordered; kept with the run.
    below: edits that are active at every stage, of the model that counts as untouched.
    """

    facts: tuple[Fact, ...]
    methods: Mapping[str, MethodConfig]
    measures: MeasureSettings = field(default_factory=MeasureSettings)
    group: int = 1
    prefixes: int | None = None
    source: str = ""
    set_hash: str = ""
    order_seed: int | None = None
    references: References | None = None
    below: tuple[Edit, ...] = ()

    @property
    def groups(self) -> list[tuple[Fact, ...]]:
        """Consecutive facts that are edited together; the last group may be smaller."""
        return [self.facts[at : at + self.group] for at in range(0, len(self.facts), self.group)]


@dataclass(frozen=True, eq=False)
class Task:
    """One piece of work: a group of facts by methods that look for the same δ, behind the one that searches."""

    group: int
    methods: tuple[str, ...]


@dataclass(eq=False)
class Unedited:
    """What is measured of a plan before any edit: each fact of one group once for all methods, and perplexity, which
    no fact changes, once for all."""

    plan: Plan
    group: int = -1
    measured: dict[tuple[str, str], Measured] = field(default_factory=dict)  # by fact and prefix
    perplexity: float | None = None

    def measure(self, lm: LanguageModel, group: int, fact: Fact, prefix: str) -> Measured:
        """Measure a fact behind a prefix, or look it up. Forgets other groups."""
        settings, below = self.plan.measures, self.plan.below
        if group != self.group:
            self.group, self.measured = group, {}
        if self.perplexity is None and (passages := general_texts()[: settings.passages]):
            self.perplexity = perplexity(lm, passages, edits=below)
        if (fact.id, prefix) not in self.measured:
            measured = measure_fact(lm, fact, replace(settings, passages=0), edits=below, prefix=prefix)
            self.measured[fact.id, prefix] = replace(measured, perplexity=self.perplexity)
        return self.measured[fact.id, prefix]


@dataclass(frozen=True, eq=False)
class Turn:
    """One fact's edit on top of the former ones of its group, or the reason why there is none."""

    fact: Fact
    edit: Edit | None
    active: tuple[Edit, ...] = ()
    seconds: float = 0.0
    error: str = ""


def work(
    lm: LanguageModel, plan: Plan, moments: Mapping[int, Moment], task: Task, unedited: Unedited
) -> dict[str, list[Row]]:
    """The rows of one task by method. moments: C by layer; what is missing is loaded or estimated."""
    try:
        return {
            name: list(_rows(lm, plan, task.group, name, turns, unedited))
            for name, turns in _solve(lm, plan, moments, task).items()
        }
    except Exception as error:
        log.exception("Group %d by %s failed", task.group, ", ".join(task.methods))
        return give_up(plan, task, explain(error))


def give_up(plan: Plan, task: Task, why: str) -> dict[str, list[Row]]:
    """The rows of a task that could not be done at all."""
    return {
        name: [
            Row(name, task.group * plan.group + i, fact.id, fact.prompt.subject, "after", error=why)
            for i, fact in enumerate(plan.groups[task.group])
        ]
        for name in task.methods
    }


# ----------------------------------------------------------------------------------------------------------- solving


def _solve(lm: LanguageModel, plan: Plan, moments: Mapping[int, Moment], task: Task) -> dict[str, list[Turn]]:
    facts, configs = plan.groups[task.group], [plan.methods[name] for name in task.methods]
    if plan.group == 1:
        turns = _each(lm, plan, facts[0], configs, moments)
        return {name: [turn] for name, turn in zip(task.methods, turns, strict=True)}
    return {
        name: (_at_once if config.batches else _in_turn)(lm, plan, facts, config, moments)
        for name, config in zip(task.methods, configs, strict=True)
    }


def _each(
    lm: LanguageModel, plan: Plan, fact: Fact, configs: Sequence[MethodConfig], moments: Mapping[int, Moment]
) -> Iterator[Turn]:
    searches: dict[str, float] = {}
    for solved in solve_by_each(lm, fact.request, configs, moments=moments, edits=plan.below):
        active = plan.below if solved.edit is None else (*plan.below, solved.edit)
        searches.setdefault(solved.config.name, solved.seconds)
        yield Turn(fact, solved.edit, active, solved.seconds + searches.get(solved.shared, 0.0), solved.error)


def _at_once(
    lm: LanguageModel, plan: Plan, facts: Sequence[Fact], config: MethodConfig, moments: Mapping[int, Moment]
) -> list[Turn]:
    began = time.monotonic()
    try:
        edit = solve(lm, [fact.request for fact in facts], config, moments=moments, edits=plan.below)
    except FAILURES as error:
        return [Turn(fact, None, error=explain(error)) for fact in facts]
    seconds = (time.monotonic() - began) / len(facts)
    return [Turn(fact, edit, (*plan.below, edit), seconds) for fact in facts]


def _in_turn(
    lm: LanguageModel, plan: Plan, facts: Sequence[Fact], config: MethodConfig, moments: Mapping[int, Moment]
) -> list[Turn]:
    turns, active = list[Turn](), plan.below
    for fact in facts:
        began = time.monotonic()
        try:
            edit = solve(lm, [fact.request], config, moments=moments, edits=active)
        except FAILURES as error:
            turns.append(Turn(fact, None, active, error=explain(error)))
            continue
        active = (*active, edit)
        turns.append(Turn(fact, edit, active, time.monotonic() - began))
    return turns


# --------------------------------------------------------------------------------------------------------- measuring


def _rows(
    lm: LanguageModel, plan: Plan, group: int, method: str, turns: Sequence[Turn], unedited: Unedited
) -> Iterator[Row]:
    end = next((turn.active for turn in reversed(turns) if turn.edit is not None), plan.below)
    for place, turn in enumerate(turns):
        fact = turn.fact
        row = Row(method, group * plan.group + place, fact.id, fact.prompt.subject, "after", error=turn.error)
        if turn.edit is None:
            yield row
            continue
        try:
            yield from list(_stages(lm, plan, group, turn, turn.edit, end, unedited, row))
        except FAILURES as error:
            yield replace(row, error=explain(error))


def _stages(
    lm: LanguageModel,
    plan: Plan,
    group: int,
    turn: Turn,
    edit: Edit,
    end: tuple[Edit, ...],
    unedited: Unedited,
    row: Row,
) -> Iterator[Row]:
    fact, prefix = turn.fact, edit.config.use_prefix
    row = replace(
        row,
        known=unedited.measure(lm, group, fact, "").known,
        edit=edit.id,
        delta_norm=edit.delta_norm,
        relative_norm=max(relative_norms(lm, [edit]).values(), default=0.0),
        solve_seconds=turn.seconds,
    )
    began = time.monotonic()
    before = unedited.measure(lm, group, fact, prefix)
    yield _stage(row, "before", before, before.values(None, plan.references, fact.target_new), began)
    for stage, active in {"after": turn.active, **({"end": end} if plan.group > 1 else {})}.items():
        began = time.monotonic()
        measured = measure_fact(lm, fact, plan.measures, edits=active, prefix=prefix)
        yield _stage(row, stage, measured, measured.values(before, plan.references, fact.target_new), began)


def _stage(row: Row, stage: str, measured: Measured, values: dict[str, float], began: float) -> Row:
    changes: dict[str, Any] = {
        "stage": stage,
        "measure_seconds": time.monotonic() - began,
        "values": values,
        "answers": [answer_record(answer) for answer in measured.answers],
        "texts": list(measured.texts),
    }
    return replace(row, **changes)
