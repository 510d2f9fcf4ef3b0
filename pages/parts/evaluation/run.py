"""The work behind the page that evaluates, without its widgets: what is asked, its folder, its rows as they finish."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from pages.shared import session, track
from rome_core import LanguageModel, RomeError
from rome_core.editing.methods import METHODS, MethodConfig
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.runs.runner import choose_facts, choose_known, described, run, with_layers
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.tables import Line, as_parquet, lines
from rome_core.evaluation.runs.work import Plan
from rome_core.facts.datasets import Fact, facts_of
from rome_core.files import STUDIES, cache_dir
from rome_core.progress import Track, silent

SHIPPED = STUDIES / "evaluation"


@dataclass(frozen=True, eq=False)
class Asked:
    """What the form says."""

    source: str
    set_hash: str
    facts: tuple[Fact, ...]
    n: int
    order_seed: int = 0
    test_only: bool = True
    known_only: bool = False
    methods: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    prefixes: int | None = None
    group: int = 1
    measures: MeasureSettings = field(default_factory=MeasureSettings)

    def choose(self, lm: LanguageModel, track: Track = silent) -> tuple[Fact, ...]:
        """The facts of the run; for those that the model knows, it is asked."""
        pool = facts_of("test", self.facts) if self.test_only else list(self.facts)
        if self.known_only:
            return choose_known(lm, pool, self.n, self.order_seed, track)
        return choose_facts(pool, self.n, self.order_seed)

    @property
    def configs(self) -> dict[str, MethodConfig]:
        return with_layers({name: METHODS[name]() for name in self.methods}, self.layers)

    def plan(self, lm: LanguageModel, track: Track = silent) -> Plan:
        return Plan(
            self.choose(lm, track),
            self.configs,
            self.measures,
            self.group,
            self.prefixes,
            described(self.source, test_only=self.test_only, known_only=self.known_only),
            self.set_hash,
            self.order_seed,
        )

    def folder(self, lm: LanguageModel) -> Path:
        """Where the rows are kept: the same for more facts or methods, so that a run can grow and be gone on with."""
        facts = [self.set_hash, self.order_seed, self.test_only, self.known_only]
        text = json.dumps([lm.fingerprint, *facts, self.layers, self.prefixes, self.group, asdict(self.measures)])
        return cache_dir() / "runs" / hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        return f"{self.source}, {self.n} {'known ' * self.known_only}facts, {', '.join(self.methods)}"


@dataclass(frozen=True, eq=False)
class Shown:
    """A run as it is shown: what it is called, what its folder says, its rows so far."""

    name: str
    about: dict[str, object]
    rows: tuple[Row, ...]

    def lines(self, known_only: bool) -> list[Line]:
        """The table, computed once for as many rows as there are: the bootstrap takes a moment."""
        key = ("evaluation lines", self.name, known_only)  # one entry a run, however many rows come
        now = (str(self.about), len(self.rows))
        before, found = session.recall(key) or (None, [])
        if before != now:
            found = lines(self.rows, known_only=known_only)
            session.remember(key, (now, found))
        return list(found)


def start(lm: LanguageModel, asked: Asked) -> track.Job:
    """Queue the run. Its partial result is the run so far, with what was there before."""
    folder = asked.folder(lm)

    def work(job: track.Job) -> Shown:
        plan = asked.plan(lm, job.track)
        store: Store | None = None
        for _ in run(lm, plan, folder, track=job.track):
            store = store or Store(folder)
            job.partial = shown(store, asked)
        return shown(store or Store(folder), asked)

    return track.submit(asked.label, work)


def shown(store: Store, asked: Asked) -> Shown:
    """The rows that the form asks for: a folder may hold more facts and methods."""
    wanted = set(asked.configs)
    rows = tuple(row for row in store.rows() if row.method in wanted and row.position < asked.n)
    return Shown(asked.label, store.about, rows)


def opened(path: str, name: str = "") -> Shown:
    """Any run's folder, of this page or of rome-evaluate. The session keeps what it has read of it."""
    key, store = ("run's folder", path.strip()), Store(path.strip())
    former: Store | None = session.recall(key)
    if former is not None and former.about == store.about:
        store = former
    session.remember(key, store)
    rows = tuple(store.rows())
    if not rows:
        raise RomeError(f"'{path}' holds no finished rows.", "", "Choose another run, or wait for its first fact.")
    return Shown(name or store.folder.name, store.about, rows)


def studies() -> dict[str, Path]:
    """The runs that come with the project, by the name that is shown."""
    return {f"study: {path.parent.name}": path.parent for path in sorted(SHIPPED.glob("*/run.json"))}


def parquet(some: Sequence[Line], about: dict[str, object]) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        as_parquet(some, about, path)
        return path.read_bytes()
