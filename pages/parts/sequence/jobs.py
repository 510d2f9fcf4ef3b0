"""The work behind the page of sequential edits, without its widgets: where runs are kept, beginning and branching."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pages.shared import track
from rome_core import LanguageModel
from rome_core.editing.edit import Edit, merge_edits
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.sequence.curves import rows
from rome_core.evaluation.sequence.folder import (
    Pace,
    Record,
    SequenceRun,
    branch_run,
    create_run,
    open_run,
    runs_in,
)
from rome_core.evaluation.sequence.steps import edit_in_sequence, plan_sequence
from rome_core.facts.datasets import Fact
from rome_core.files import STUDIES, cache_dir

SHIPPED = STUDIES / "sequence"


@dataclass(frozen=True)
class Wish:
    """A run as the form asks for it. start: the run and the step that it branches off, if it does."""

    facts: tuple[Fact, ...]
    config: MethodConfig
    pace: Pace
    order_seed: int
    start: tuple[str, int] | None = None

    def name(self, lm: LanguageModel) -> str:
        """The same wish has the same name, so that it is gone on with and not begun again."""
        inputs = [
            lm.fingerprint,
            hash_of(self.facts),
            *(self.config.name, asdict(self.config), asdict(self.pace), self.order_seed, self.start),
        ]
        mark = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:6]
        batch = f"-{self.pace.batch}" if self.pace.batch > 1 else ""
        return f"{self.config.name}{batch}-{len(self.facts)}-{mark}"


def folder() -> Path:
    """Where the page keeps its runs: they survive the server."""
    return cache_dir() / "sequences"


def all_runs() -> dict[str, SequenceRun]:
    """The page's runs, newest first, then the project's own, smallest batches first; by the name that is shown."""
    own = sorted(runs_in(folder()), key=lambda run: -(run.folder / "run.json").stat().st_mtime)
    shipped = sorted(runs_in(SHIPPED), key=lambda run: run.plan.pace.batch)
    return {**{run.folder.name: run for run in own}, **{f"study: {run.folder.name}": run for run in shipped}}


def work(lm: LanguageModel, wish: Wish, job: track.Job) -> int:
    """Begin the run that is wished for, or go on with it, to its end. Runs as a job."""
    target = folder() / wish.name(lm)
    if (target / "run.json").exists():
        run = open_run(target)
    elif wish.start is None:
        run = create_run(target, lm, plan_sequence(lm, wish.facts, wish.config, wish.pace, wish.order_seed))
    else:
        former, step = open_run(folder() / wish.start[0]), wish.start[1]
        run = branch_run(former, step, target, lm, plan_sequence(lm, wish.facts, wish.config, wish.pace))
    return sum(1 for _ in edit_in_sequence(lm, run, track=job.track))


def go_on(lm: LanguageModel, run: SequenceRun, job: track.Job) -> int:
    """Go on with a run as it was begun. Runs as a job."""
    return sum(1 for _ in edit_in_sequence(lm, run, track=job.track))


def branch_facts(run: SequenceRun, step: int, facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """The facts that had their turn, then the form's others, as many in all as the form has."""
    edited = next(record.edited for record in run.records if record.step == step)
    done = run.plan.facts[:edited]
    return (*done, *(fact for fact in facts if fact not in done))[: max(len(facts), edited + 1)]


def own_edits(lm: LanguageModel, run: SequenceRun, step: int) -> tuple[Edit, ...] | None:
    """The edits up to a step, merged; None if their files are not there or they are another model's."""
    there = [record for record in run.records if record.edit and record.step <= step]
    if run.fingerprint != lm.fingerprint or not all(run.path(record.step).exists() for record in there):
        return None
    return merge_edits(run.edits(step))


def as_json(run: SequenceRun, records: Sequence[Record]) -> str:
    """The run with its settings and every record."""
    plan = run.plan
    about = {
        "model": run.model,
        "fingerprint": run.fingerprint,
        "method": plan.config.name,
        "config": asdict(plan.config),
        "pace": asdict(plan.pace),
        "order_seed": plan.order_seed,
        "facts_hash": hash_of(plan.facts),
        "parent": run.parent,
        "versions": dict(run.versions),
    }
    facts = [asdict(fact) for fact in plan.facts]
    return json.dumps({"about": about, "facts": facts, "records": [asdict(record) for record in records]}, indent=1)


def as_csv(records: Sequence[Record], factor: float) -> str:
    """One row a step."""
    table = rows(records, factor)
    lines = [",".join(table[0])] if table else []
    lines += [",".join(_cell(value) for value in row.values()) for row in table]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text
