"""Evaluating many facts by several methods: one process or many, stopped and resumed at will, same numbers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rome_core.editing.methods import MethodConfig
from rome_core.editing.presets import resolve
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.value import N_SAMPLED
from rome_core.errors import DataError
from rome_core.evaluation.answers import known_facts
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.work import Done, Engine, Plan, Task
from rome_core.facts.datasets import Fact
from rome_core.facts.new_objects import require_new_objects
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.settings import first_fault

FACTS_AT_ONCE = 16  # facts, when the model is asked which of them it knows


def choose_facts(facts: Sequence[Fact], n: int | None, seed: int) -> tuple[Fact, ...]:
    """The first n facts of a seeded order (None: all); a larger n begins with the same ones. n < 0 is a DataError."""
    order = list(facts)
    random.Random(seed).shuffle(order)
    return tuple(order[: checked_number(n)])


def checked_number(n: int | None) -> int | None:
    """How many facts; a negative number, which Python would count from the end, is a DataError."""
    if n is not None and n < 0:
        raise DataError(f"{n} facts cannot be chosen.", "", "Give 1 or more; None is all of them.")
    return n


def choose_known(
    lm: LanguageModel, facts: Sequence[Fact], n: int | None, seed: int, track: Track = silent
) -> tuple[Fact, ...]:
    """The first n facts of the same order that the unedited model knows; fewer if it knows no more.

    Raises DataError if it knows none, if there are no facts, or if n is negative.
    """
    checked_number(n)
    if not facts:
        raise DataError("There are no facts of which the model could know some.", "", "Choose another file or part.")
    order, known = choose_facts(facts, None, seed), list[Fact]()
    steps = range(0, len(order), FACTS_AT_ONCE)
    for at in track(steps, "Asking what the model knows", len(steps)):
        batch = order[at : at + FACTS_AT_ONCE]
        known += [fact for fact, is_known in zip(batch, known_facts(lm, batch), strict=True) if is_known]
        if n is not None and len(known) >= n:
            break
    if not known:
        raise DataError(
            f"'{lm.name}' knows none of the {len(order):,} facts: it says the true object of none by itself.",
            "",
            "Take facts that it does not know, too, or another model.",
        )
    return tuple(known[:n])


def with_layers(configs: Mapping[str, MethodConfig], layers: Sequence[int]) -> dict[str, MethodConfig]:
    """Each method at each of the layers, labelled "r-rome@7"; without layers the methods as they are."""
    if not layers:
        return dict(configs)
    labelled: dict[str, MethodConfig] = {}
    for name, config in configs.items():
        placed = {f"{name}@{layer}": other for layer in layers if (other := config.at_layer(layer)) is not None}
        labelled |= placed or {name: config}
    return labelled


def list_tasks(plan: Plan, store: Store) -> list[Task]:
    """What is still to do, group after group, so that a run which is cut off has all methods on the same facts."""
    return [
        Task(group, methods)
        for group in range(len(plan.groups))
        for methods in _sharing(plan, [name for name in plan.methods if not store.has(name, group)])
    ]


def _sharing(plan: Plan, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Methods that look for the same δ stand together, behind the first that keeps it; no edit may come before."""
    groups: dict[str, list[str]] = {}  # by the first of each
    for name in names:
        donors = (first for first in groups if plan.methods[first].shares_search(plan.methods[name]))
        first = next(donors, name) if plan.group == 1 else name
        groups.setdefault(first, []).append(name)
    return [tuple(group) for group in groups.values()]


def describe_run(lm: LanguageModel, plan: Plan) -> dict[str, Any]:
    """What a run's folder says of it. A run may grow by more records of the same set in the same order."""
    return {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "facts": plan.source,
        "order_seed": plan.order_seed,
        "facts_hash": plan.set_hash or hash_of(plan.facts),
        "records": len(plan.facts),
        "group": plan.group,
        "prefixes": plan.prefixes,
        "measures": asdict(plan.measures),
        "methods": {name: asdict(config) for name, config in plan.methods.items()},
    }


def prepare(lm: LanguageModel, plan: Plan) -> Plan:
    """The plan with this model's values in all configs.

    Raises a RomeError where it cannot be carried out at all: no facts, no methods, facts without a new object, settings
    out of their range. What single facts or methods cannot do is said in their rows.
    """
    if not plan.facts:
        raise DataError("There is nothing to evaluate: there is no fact.", "", "Choose at least one.")
    if not plan.methods:
        raise DataError("There is nothing to evaluate: there is no method.", "", "Choose at least one.")
    if plan.group < 1 or (plan.prefixes is not None and not 1 <= plan.prefixes <= N_SAMPLED + 1):
        raise DataError(
            f"Groups of {plan.group} facts with {plan.prefixes} prefixes cannot be evaluated.",
            "",
            f"Give 1 fact or more, and 1 to {N_SAMPLED + 1} prefixes.",
        )
    if fault := first_fault(plan.measures):
        raise DataError(f"The measures cannot have this setting: {fault}")
    require_new_objects(plan.facts)
    methods = {}
    for name, config in plan.methods.items():
        methods[name] = resolve(lm, config)
        methods[name].check_settings(lm)
        if plan.prefixes is not None:
            methods[name] = methods[name].with_prefixes(lm, n=plan.prefixes - 1)
    return replace(plan, methods=methods)


Workers = Callable[[LanguageModel, Plan, Mapping[int, Moment], Sequence[Task]], Done]


def carry_out(
    lm: LanguageModel, plan: Plan, folder: str | Path, *, workers: Workers | None = None, track: Track = silent
) -> Iterator[Row]:
    """Do what is missing in the folder and give rows as they finish; each is on the disk before it is given.

    Leaving the loop, an exception in `track` or a kill stops the run; calling it again goes on. workers: how tasks are
    spread; None does them here, `rome_core.evaluation.runs.ray_workers.ray_workers` on many processes.
    """
    plan = prepare(lm, plan)
    store = Store(folder, describe_run(lm, plan))
    todo = list_tasks(plan, store)
    layers = sorted({layer for config in plan.methods.values() for layer in config.layers if 0 <= layer < lm.n_layers})
    moments = moments_for(lm, layers, None, track) if todo else {}
    began, finished = time.monotonic(), 0
    sitting = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "threads": torch.get_num_threads()}
    try:
        with closing((workers or in_this_process)(lm, plan, moments, todo)) as done:  # type: ignore[type-var]
            for task, results in track(done, "Facts by methods", len(todo)):
                for method, rows in results.items():
                    store.write(method, task.group, rows)
                    finished += 1
                    yield from rows
    finally:
        name = "this process" if workers is None else getattr(workers, "__name__", str(workers))
        seconds = round(time.monotonic() - began, 2)
        store.note_sitting({**sitting, "seconds": seconds, "parts": finished, "workers": name})


def in_this_process(lm: LanguageModel, plan: Plan, moments: Mapping[int, Moment], todo: Sequence[Task]) -> Done:
    """The tasks one after another. What the facts are like before any edit is measured once for all methods."""
    engine = Engine(lm, plan, moments)
    for task in todo:
        yield task, engine.work(task)
