"""One piece of an evaluation: a group of facts solved by some methods, each measured before, after and at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.second_moment import Moment
from rome_core.editing.shared_search import reuse
from rome_core.errors import RomeError
from rome_core.evaluation.fact_measures import Measured, MeasureSettings, measure_fact
from rome_core.evaluation.generation_measures import References
from rome_core.evaluation.runs.store import Row, answer_record
from rome_core.facts.datasets import Fact
from rome_core.model.edits import relative_norms
from rome_core.model.language_model import LanguageModel

# What one fact can run into without the run being wrong: it is recorded, and the next one's turn comes.
FAILURES = (RomeError, RuntimeError, ValueError, LookupError, ArithmeticError, TypeError)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to evaluate: facts in their order, methods with their settings by label, in groups of so many edits.

    group: 1 edits each fact by itself on the untouched model; k edits k facts on top of each other (or at once, by the
    methods that can), and measures each after its own edit and again at the group's end.
    prefixes: so many of the sampled prefixes for every method, to save time; None leaves each method its own number.
    source, set_hash, order_seed: where the facts come from and how they were ordered; kept with the run.
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

    @property
    def groups(self) -> list[tuple[Fact, ...]]:
        """Consecutive facts that are edited together; the last group may be smaller."""
        return [self.facts[at : at + self.group] for at in range(0, len(self.facts), self.group)]


@dataclass(frozen=True, eq=False)
class Task:
    """One piece of work: a group of facts by methods that look for the same δ, behind the one that searches."""

    group: int
    methods: tuple[str, ...]


Kept = dict[tuple[int, str, str], Measured]  # what was measured before any edit, by (group, fact, prefix)


@dataclass(frozen=True, eq=False)
class Solved:
    """One fact's edit on top of the former ones of its group, or the reason why there is none."""

    fact: Fact
    edit: Edit | None
    active: tuple[Edit, ...] = ()
    seconds: float = 0.0
    error: str = ""


def work(lm: LanguageModel, plan: Plan, moments: Mapping[int, Moment], task: Task, kept: Kept) -> dict[str, list[Row]]:
    """The rows of one task by method. kept: grows, and forgets other groups."""
    for key in [key for key in kept if key[0] != task.group]:
        del kept[key]
    return {
        name: list(_rows(lm, plan, task.group, name, solved, kept))
        for name, solved in _solved(lm, plan, moments, task).items()
    }


def lost(plan: Plan, task: Task, why: str) -> dict[str, list[Row]]:
    """The rows of a task that could not be done at all."""
    return {
        name: [
            Row(name, task.group * plan.group + i, fact.id, fact.prompt.subject, "after", error=why)
            for i, fact in enumerate(plan.groups[task.group])
        ]
        for name in task.methods
    }


def reason(error: Exception) -> str:
    return str(error) if isinstance(error, RomeError) else f"{type(error).__name__}: {str(error)[:300]}"


# ----------------------------------------------------------------------------------------------------------- solving


def _solved(lm: LanguageModel, plan: Plan, moments: Mapping[int, Moment], task: Task) -> dict[str, list[Solved]]:
    facts, (first, *others) = plan.groups[task.group], task.methods
    config = plan.methods[first]
    results = {first: (_at_once if config.batches else _in_turn)(lm, facts, config, _of(config, moments))}
    for name in others:
        (shared,) = results[first]
        results[name] = [_again(lm, shared, plan.methods[name], moments)]
    return results


def _of(config: MethodConfig, moments: Mapping[int, Moment]) -> dict[int, Moment]:
    return {layer: moments[layer] for layer in config.layers if layer in moments}


def _at_once(
    lm: LanguageModel, facts: Sequence[Fact], config: MethodConfig, moments: Mapping[int, Moment]
) -> list[Solved]:
    began = time.monotonic()
    try:
        edit = solve(lm, [fact.request for fact in facts], config, moments=moments)
    except FAILURES as error:
        return [Solved(fact, None, error=reason(error)) for fact in facts]
    seconds = (time.monotonic() - began) / len(facts)
    return [Solved(fact, edit, (edit,), seconds) for fact in facts]


def _in_turn(
    lm: LanguageModel, facts: Sequence[Fact], config: MethodConfig, moments: Mapping[int, Moment]
) -> list[Solved]:
    results, active = list[Solved](), tuple[Edit, ...]()
    for fact in facts:
        began = time.monotonic()
        try:
            edit = solve(lm, [fact.request], config, moments=moments, edits=active)
        except FAILURES as error:
            results.append(Solved(fact, None, active, error=reason(error)))
            continue
        active = (*active, edit)
        results.append(Solved(fact, edit, active, time.monotonic() - began))
    return results


def _again(lm: LanguageModel, shared: Solved, config: MethodConfig, moments: Mapping[int, Moment]) -> Solved:
    """What another method makes of the same δ."""
    if shared.edit is None:
        return shared
    began = time.monotonic()
    try:
        edit = reuse(lm, shared.edit, config, _of(config, moments))
    except FAILURES as error:
        return Solved(shared.fact, None, error=reason(error))
    return Solved(shared.fact, edit, (edit,), shared.seconds + time.monotonic() - began)


# --------------------------------------------------------------------------------------------------------- measuring


def _rows(
    lm: LanguageModel, plan: Plan, group: int, method: str, solved: Sequence[Solved], kept: Kept
) -> Iterator[Row]:
    end = next((one.active for one in reversed(solved) if one.edit is not None), ())
    for place, one in enumerate(solved):
        common: dict[str, Any] = {
            "method": method,
            "position": group * plan.group + place,
            "fact": one.fact.id,
            "subject": one.fact.prompt.subject,
        }
        if one.edit is None:
            yield Row(**common, stage="after", error=one.error)
            continue
        try:
            yield from list(_stages(lm, plan, group, one, end, kept, common))
        except FAILURES as error:
            yield Row(**common, stage="after", error=reason(error))


def _stages(
    lm: LanguageModel,
    plan: Plan,
    group: int,
    one: Solved,
    end: tuple[Edit, ...],
    kept: Kept,
    common: Mapping[str, Any],
) -> Iterator[Row]:
    assert one.edit is not None
    prefix = one.edit.config.use_prefix

    def before(prefix: str) -> Measured:
        key = (group, one.fact.id, prefix)
        if key not in kept:
            kept[key] = measure_fact(lm, one.fact, plan.measures, prefix=prefix)
        return kept[key]

    common = {
        **common,
        "known": before("").known,
        "edit": one.edit.id,
        "delta_norm": one.edit.delta_norm,
        "relative_norm": max(relative_norms(lm, [one.edit]).values(), default=0.0),
        "solve_seconds": one.seconds,
    }
    stages: dict[str, tuple[Edit, ...] | None] = {"before": None, "after": one.active}
    if plan.group > 1:
        stages["end"] = end
    for stage, edits in stages.items():
        began, found = time.monotonic(), before(prefix)
        if edits is not None:
            found = measure_fact(lm, one.fact, plan.measures, edits=edits, prefix=prefix)
        base = None if edits is None else before(prefix)
        yield Row(
            **common,
            stage=stage,
            measure_seconds=time.monotonic() - began,
            values=found.values(base, plan.references, one.fact.target_new),
            answers=[answer_record(answer) for answer in found.answers],
            texts=list(found.texts),
        )
