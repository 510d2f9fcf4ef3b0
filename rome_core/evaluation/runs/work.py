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


Done = Iterator[tuple[Task, dict[str, list[Row]]]]  # tasks with their rows by method, as they finish


@dataclass(frozen=True, eq=False)
class Turn:
    """One fact's edit on top of the former ones of its group, or the reason why there is none."""

    fact: Fact
    edit: Edit | None
    active: tuple[Edit, ...] = ()
    seconds: float = 0.0
    error: str = ""


def give_up(plan: Plan, task: Task, why: str) -> dict[str, list[Row]]:
    """The rows of a task that could not be done at all."""
    return {
        name: [
            Row(name, task.group * plan.group + i, fact.id, fact.prompt.subject, "after", error=why)
            for i, fact in enumerate(plan.groups[task.group])
        ]
        for name in task.methods
    }


@dataclass(eq=False)
class Engine:
    """A model with a plan, which does its tasks. moments: C by layer; what is missing is loaded or estimated.

    What is measured before any edit is kept: each fact of one group for all methods, and perplexity, which no fact
    changes, for all.
    """

    lm: LanguageModel
    plan: Plan
    moments: Mapping[int, Moment]
    _group: int = -1
    _measured: dict[tuple[int, str], Measured] = field(default_factory=dict)  # by position and prefix
    _perplexity: float | None = None

    def work(self, task: Task) -> dict[str, list[Row]]:
        """The rows of one task by method."""
        try:
            return {name: list(self._rows(task.group, name, turns)) for name, turns in self._solve(task).items()}
        except Exception as error:
            log.exception("Group %d by %s failed", task.group, ", ".join(task.methods))
            return give_up(self.plan, task, explain(error))

    def _unedited(self, position: int, fact: Fact, prefix: str) -> Measured:
        """Measure the fact at a position behind a prefix, or look it up. Forgets other groups.

        Not by the fact's id: joined files give several facts the same.
        """
        settings, below = self.plan.measures, self.plan.below
        if (group := position // self.plan.group) != self._group:
            self._group, self._measured = group, {}
        if self._perplexity is None and (passages := general_texts()[: settings.passages]):
            self._perplexity = perplexity(self.lm, passages, edits=below)
        if (position, prefix) not in self._measured:
            measured = measure_fact(self.lm, fact, replace(settings, passages=0), edits=below, prefix=prefix)
            self._measured[position, prefix] = replace(measured, perplexity=self._perplexity)
        return self._measured[position, prefix]

    # ------------------------------------------------------------------------------------------------------- solving

    def _solve(self, task: Task) -> dict[str, list[Turn]]:
        facts, configs = self.plan.groups[task.group], [self.plan.methods[name] for name in task.methods]
        if self.plan.group == 1:
            return {name: [turn] for name, turn in zip(task.methods, self._each(facts[0], configs), strict=True)}
        return {name: self._together(facts, config) for name, config in zip(task.methods, configs, strict=True)}

    def _each(self, fact: Fact, configs: Sequence[MethodConfig]) -> Iterator[Turn]:
        searches, below = dict[str, float](), self.plan.below
        for solved in solve_by_each(self.lm, fact.request, configs, moments=self.moments, edits=below):
            active = below if solved.edit is None else (*below, solved.edit)
            searches.setdefault(solved.config.name, solved.seconds)
            yield Turn(fact, solved.edit, active, solved.seconds + searches.get(solved.shared, 0.0), solved.error)

    def _together(self, facts: Sequence[Fact], config: MethodConfig) -> list[Turn]:
        """One edit of all facts by a method that can, else one on top of another."""
        turns, active = list[Turn](), self.plan.below
        for batch in [facts] if config.batches else [[fact] for fact in facts]:
            began, requests = time.monotonic(), [fact.request for fact in batch]
            try:
                edit = solve(self.lm, requests, config, moments=self.moments, edits=active)
            except FAILURES as error:
                turns += [Turn(fact, None, active, error=explain(error)) for fact in batch]
                continue
            active, seconds = (*active, edit), (time.monotonic() - began) / len(batch)
            turns += [Turn(fact, edit, active, seconds) for fact in batch]
        return turns

    # ----------------------------------------------------------------------------------------------------- measuring

    def _rows(self, group: int, method: str, turns: Sequence[Turn]) -> Iterator[Row]:
        end = next((turn.active for turn in reversed(turns) if turn.edit is not None), self.plan.below)
        for place, turn in enumerate(turns):
            position, fact = group * self.plan.group + place, turn.fact
            row = Row(method, position, fact.id, fact.prompt.subject, "after", error=turn.error)
            try:
                yield from [row] if turn.edit is None else list(self._stages(row, turn, turn.edit, end))
            except FAILURES as error:
                yield replace(row, error=explain(error))

    def _stages(self, row: Row, turn: Turn, edit: Edit, end: tuple[Edit, ...]) -> Iterator[Row]:
        fact, prefix = turn.fact, edit.config.use_prefix
        known = self._unedited(row.position, fact, "").known
        size = max(relative_norms(self.lm, [edit]).values(), default=0.0)
        edited = {"after": turn.active, **({"end": end} if self.plan.group > 1 else {})}
        before: Measured | None = None
        for stage, active in {"before": None, **edited}.items():
            began = time.monotonic()
            if active is None:
                measured = self._unedited(row.position, fact, prefix)
            else:
                measured = measure_fact(self.lm, fact, self.plan.measures, edits=active, prefix=prefix)
            yield replace(
                row,
                stage=stage,
                known=known,
                edit=edit.id,
                delta_norm=edit.delta_norm,
                relative_norm=size,
                solve_seconds=turn.seconds,
                measure_seconds=time.monotonic() - began,
                values=measured.values(before, self.plan.references, fact.target_new),
                answers=[answer_record(answer) for answer in measured.answers],
                texts=list(measured.texts),
            )
            before = before or measured
