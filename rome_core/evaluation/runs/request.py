"""A run as it is asked for: which facts, by which methods; and the folder that serves all runs of the same settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rome_core.editing.methods import METHODS, MethodConfig
from rome_core.errors import DataError
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.runs.execution import choose_facts, choose_known, with_layers
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.work import Plan
from rome_core.facts.datasets import Fact, facts_of
from rome_core.files import cache_dir
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent


@dataclass(frozen=True, eq=False)
class RunRequest:
    """n of the facts of a set by some methods. set_hash: of the whole set, which may be larger than `facts`."""

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
        if self.facts and not pool:
            raise DataError(
                f"None of the {len(self.facts):,} facts is in the test part.",
                "Half of all subjects are those that hypernetworks are trained on, a tenth validates them.",
                "Take all parts.",
            )
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
            self.described,
            self.set_hash,
            self.order_seed,
        )

    @property
    def described(self) -> str:
        """The facts of the run in a few words, as its folder tells them."""
        return self.source + ", test part" * self.test_only + ", known" * self.known_only

    def folder(self, lm: LanguageModel) -> Path:
        """Where the rows are kept: the same for more facts or methods, so that a run can grow and be gone on with."""
        facts = [self.set_hash, self.order_seed, self.test_only, self.known_only]
        text = json.dumps([lm.fingerprint, *facts, self.layers, self.prefixes, self.group, asdict(self.measures)])
        return cache_dir() / "runs" / hashlib.sha256(text.encode()).hexdigest()[:12]

    def rows(self, store: Store) -> tuple[Row, ...]:
        """What is asked for of a folder, which may hold more facts and methods."""
        names = set(self.configs)
        return tuple(row for row in store.rows() if row.method in names and row.position < self.n)

    @property
    def label(self) -> str:
        return f"{self.source}, {self.n} {'known ' * self.known_only}facts, {', '.join(self.methods)}"
