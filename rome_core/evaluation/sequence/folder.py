"""A sequential run as a folder: its plan, a record a step, the edits. Whatever ends it, it goes on from there.

run.json        model, method, settings, seeds, versions, the hash of the facts, the run it branched off
facts.json      the facts in the order in which they are edited
records.jsonl   one record a step; a line is written once its edit is in its file
edits/          one safetensors file a step
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.editing.storage import config_of, load_edit, save_edit
from rome_core.errors import DataError, RomeError
from rome_core.evaluation.answers import Answer
from rome_core.evaluation.runs.folder import (
    PACKAGES,
    alone,
    append_line,
    cut_off,
    fact_record,
    hash_of,
    read_about,
    read_lines,
    write_json,
)
from rome_core.facts.datasets import Fact, Probe
from rome_core.files import versions, write_whole
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import Prompt
from rome_core.settings import first_fault, setting

FORMAT = "rome-explorer sequence 1"
RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Pace:
    """How many facts make one edit, and what is measured how often."""

    batch: int = setting(
        1,
        "Facts an edit",
        "Facts that are solved into one edit. More than one only with a method that takes several.",
        bounds=(1, 10_000, 1),
    )
    check_every: int = setting(
        10,
        "Check all every",
        "After so many facts, and at the end, every earlier edit is checked again and the probe texts are written. "
        "A new edit is always checked.",
        bounds=(1, 10_000, 1),
        unit="facts",
    )
    prefixes: int = setting(
        6,
        "Prefixes",
        "Texts in front of the prompt while a value is searched: all 21 that are sampled once from the unedited model, "
        "or the bare prompt and every fourth of the others, which takes a third of the time.",
        source="21: Meng et al. 2022, the authors' code; sampled once a process there, too",
        choices=(6, 21),
    )
    passages: int = setting(
        3, "Passages", "Of the project's general texts, for the perplexity after every edit.", bounds=(1, 71, 1)
    )
    new_tokens: int = setting(20, "Probe tokens", "Length of the probe texts.", bounds=(1, 200, 1))
    openings: tuple[str, ...] = ("My favourite place in the world is", "The recipe for a good soup begins with")


@dataclass(frozen=True)
class SequencePlan:
    """Everything that a run depends on, besides the model. config: resolved for it, with its prefixes."""

    config: MethodConfig
    facts: tuple[Fact, ...]
    pace: Pace = Pace()
    order_seed: int | None = None  # of the order of the facts, if they were shuffled


class Check(NamedTuple):
    """The answer to a fact's edit prompt as records keep it: geometric-mean token probabilities of the new and the true
    object, and whether greedy decoding says the new one. fact: its place in the plan."""

    fact: int
    p_new: float
    p_true: float
    said: bool

    @property
    def holds(self) -> bool:
        return self.p_new > self.p_true


def check_of(fact: int, answer: Answer) -> Check:
    """The stored form of an answer."""
    assert answer.true is not None, answer.question
    return Check(fact, answer.new.p_mean, answer.true.p_mean, answer.said)


@dataclass(frozen=True)
class Record:
    """The model after one step; step 0 is the unedited model, whose checks are of all facts.

    facts: those of this step. edited: how many have had their turn so far. error: why there is no edit.
    norms: ‖ΔW‖_F/‖W‖_F of all edits so far, by module. own: the same of this edit alone, of the module that moved most.
    before: this step's facts just before it. checks: this step's facts just after, and at every check all earlier ones
    whose edit was made. texts: continuations of the plan's openings, at every check.
    """

    step: int
    facts: tuple[int, ...]
    edited: int
    method: str
    edit: str
    error: str
    perplexity: float
    norms: Mapping[str, float]
    own: float
    before: tuple[Check, ...]
    checks: tuple[Check, ...]
    texts: tuple[str, ...]
    solve_seconds: float = field(default=0.0, compare=False)
    measure_seconds: float = field(default=0.0, compare=False)

    @property
    def norm(self) -> float:
        """‖ΔW‖_F/‖W‖_F of the module that moved most."""
        return max(self.norms.values(), default=0.0)

    @property
    def places(self) -> tuple[int, ...]:
        """The facts that it speaks of, by their places in the plan."""
        return (*self.facts, *(check.fact for check in (*self.before, *self.checks)))


@dataclass(frozen=True)
class SequenceRun:
    """A run's folder with its plan. model, fingerprint: what it was begun on. parent: run and step it branched off."""

    folder: Path
    plan: SequencePlan
    model: str
    fingerprint: str
    versions: Mapping[str, str]
    parent: tuple[str, int] | None = None

    @property
    def records(self) -> list[Record]:
        """What is finished. A line that a kill cut off is passed over."""
        return [_record(data) for data in read_lines(self.folder / RECORDS)]

    def edits(self, steps: int | None = None) -> list[Edit]:
        """The edits of the records, or of the first so many steps, in order."""
        made = [record for record in self.records if record.edit and (steps is None or record.step <= steps)]
        return [load_edit(self.path(record.step)) for record in made]

    def path(self, step: int) -> Path:
        """The file of a step's edit."""
        return self.folder / "edits" / f"{step:05}.safetensors"

    def append(self, record: Record, edit: Edit | None) -> None:
        """Keep a step: first its edit, in one piece, then its line."""
        if edit is not None:
            write_whole(self.path(record.step), lambda part: save_edit(edit, part))
        append_line(self.folder / RECORDS, asdict(record))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from going on with the run. Raises DataError if one does."""
        with alone(self.folder):
            cut_off(self.folder / RECORDS)
            yield


def create_run(folder: str | Path, lm: LanguageModel, plan: SequencePlan) -> SequenceRun:
    """An empty run in a new folder. Raises DataError if there is one already."""
    return _create(SequenceRun(Path(folder), plan, lm.name, lm.fingerprint, versions(PACKAGES)), [])


def _create(run: SequenceRun, kept: Sequence[tuple[Record, Edit | None]]) -> SequenceRun:
    """Write a run with its first records. run.json comes last: without it a folder is no run."""
    target, plan = run.folder, run.plan
    if (target / "run.json").exists():
        raise DataError(f"There is a run in '{target}' already.", "", "Go on with it, or choose another folder.")
    (target / "edits").mkdir(parents=True, exist_ok=True)
    (target / RECORDS).unlink(missing_ok=True)
    for record, edit in kept:
        run.append(record, edit)
    write_json(target / "facts.json", [fact_record(fact) for fact in plan.facts])
    write_json(target / "run.json", {"format": FORMAT, **_about(run)})
    return run


def discard_run(run: SequenceRun) -> None:
    """Take back a run of which no step is finished, so that its folder is free for another one.

    Raises DataError if a step is, or if another process works on it.
    """
    with run.alone():
        if run.records:
            raise DataError(f"The run in '{run.folder}' has finished steps.", "", "Delete its folder yourself.")
        for name in ("run.json", "facts.json", RECORDS):  # run.json first: without it the folder is no run
            (run.folder / name).unlink(missing_ok=True)
    (run.folder / ".lock").unlink(missing_ok=True)
    for folder in (run.folder / "edits", run.folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _about(run: SequenceRun) -> dict[str, Any]:
    plan = run.plan
    return {
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


def run_json(run: SequenceRun, records: Sequence[Record]) -> str:
    """The run with its settings, its facts and every record."""
    facts = [fact_record(fact) for fact in run.plan.facts]
    data = {"about": _about(run), "facts": facts, "records": [asdict(record) for record in records]}
    return json.dumps(data, indent=1)


def open_run(folder: str | Path) -> SequenceRun:
    """A run that was begun before. Raises DataError if the folder holds none that can be read."""
    source = Path(folder)
    try:
        about = read_about(source, FORMAT)
        facts = tuple(_fact(data) for data in json.loads((source / "facts.json").read_text(encoding="utf-8")))
        _check_texts(about["model"], about["fingerprint"], *about["versions"].values())
        if about["facts_hash"] not in (hash_of(facts), _former_hash(facts)):
            raise ValueError("its facts were changed")
        pace = Pace(**about["pace"] | {"openings": tuple(about["pace"]["openings"])})
        plan = SequencePlan(config_of(about["method"], about["config"]), facts, pace, about["order_seed"])
        if fault := first_fault(pace) or first_fault(plan.config):
            raise ValueError(fault)
        parent = about["parent"] and (str(about["parent"][0]), int(about["parent"][1]))
        run = SequenceRun(source, plan, about["model"], about["fingerprint"], about["versions"], parent)
        if not all(0 <= at < len(facts) for record in run.records for at in record.places):
            raise ValueError("its records are of other facts")
    except (RomeError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"'{source}' holds no sequential run that can be read.",
            error.what if isinstance(error, RomeError) else f"{type(error).__name__}: {error}.",
            "Choose a folder that was written by this program.",
        ) from error
    return run


def runs_in(folder: str | Path) -> list[SequenceRun]:
    """The readable runs in a folder's subfolders, by name."""
    runs = []
    for path in sorted(Path(folder).glob("*/run.json")):
        try:
            runs.append(open_run(path.parent))
        except DataError:
            continue
    return runs


def branch_run(
    run: SequenceRun, step: int, folder: str | Path, lm: LanguageModel, plan: SequencePlan | None = None
) -> SequenceRun:
    """A new run that begins with the first steps of another one and goes on by its own plan (None: by the same).

    The plan's method and pace may be others; the facts that had their turn already must be the same.
    """
    plan, kept = plan or run.plan, [record for record in run.records if record.step <= step]
    if not kept or kept[-1].step != step:
        raise DataError(f"The run '{run.folder.name}' has no step {step}.", "", f"It has {len(run.records)} records.")
    edited = kept[-1].edited
    if plan.facts[:edited] != run.plan.facts[:edited]:
        raise DataError(f"The first {edited} facts are not those of the run '{run.folder.name}'.", "", "Leave them.")
    if lm.fingerprint != run.fingerprint:
        raise DataError(f"The run '{run.folder.name}' is of another model than '{lm.name}'.", "", "Load that model.")
    copied = [(record, load_edit(run.path(record.step)) if record.edit else None) for record in kept]
    new = SequenceRun(Path(folder), plan, lm.name, lm.fingerprint, versions(PACKAGES), (run.folder.name, step))
    return _create(new, copied)


# --------------------------------------------------------------------------------------------------------------- files


def _record(data: dict[str, Any]) -> Record:
    checks = {name: tuple(Check(*check) for check in data[name]) for name in ("before", "checks")}
    record = Record(**data | checks | {"facts": tuple(data["facts"]), "texts": tuple(data["texts"])})
    asked = [number for check in (*record.before, *record.checks) for number in check[:3]]
    seconds = (record.solve_seconds, record.measure_seconds)
    _check_numbers(record.step, record.edited, record.perplexity, record.own, *record.norms.values(), *seconds, *asked)
    _check_texts(record.method, record.edit, record.error, *record.norms, *record.texts)
    return record


def _check_numbers(*values: object) -> None:
    """Raise TypeError for what is no number."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{value!r:.80} is no number")


def _check_texts(*values: object) -> None:
    """Raise TypeError for what is no text."""
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{value!r:.80} is no text")


def _fact(data: dict[str, Any]) -> Fact:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    probes = tuple(Probe(**probe) for probe in data.get("portability", ()))
    fact = Fact(**values | {"prompt": Prompt(**data["prompt"]), "portability": probes})
    lists = (*fact.paraphrases, *fact.neighbours, *fact.generations, *fact.neighbour_answers, fact.reversed or "")
    _check_texts(fact.id, fact.relation, fact.target_true, fact.target_new, fact.neighbour_true, *lists)
    return fact


def _former_hash(facts: Sequence[Fact]) -> str:
    """How the first version of the program named a run's facts."""
    text = json.dumps([fact_record(fact) for fact in facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
