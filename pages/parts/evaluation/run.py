"""The work behind the page that evaluates, as a job, and runs as they are shown: name, settings, rows so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pages.shared import session, track
from rome_core import LanguageModel, RomeError
from rome_core.evaluation.runs.execution import carry_out
from rome_core.evaluation.runs.request import RunRequest
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.tables import Line, as_parquet, score_lines
from rome_core.files import STUDIES

SHIPPED = STUDIES / "evaluation"


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
            found = score_lines(self.rows, known_only=known_only)
            session.remember(key, (now, found))
        return list(found)


def start(lm: LanguageModel, asked: RunRequest) -> track.Job[Shown, Shown]:
    """Queue the run. Its partial result is the run so far, with what was there before."""
    folder = asked.folder(lm)

    def work(job: track.Job[Shown, Shown]) -> Shown:
        plan = asked.plan(lm, job.track)
        store: Store | None = None
        for _ in carry_out(lm, plan, folder, track=job.track):
            store = store or Store(folder)
            job.partial = select_rows(store, asked)
        return select_rows(store or Store(folder), asked)

    return track.submit(
        asked.label,
        work,
        asked=asked,
        begins_with="choosing facts, reading C",
        outlives=True,
        facts=asked.n,
        generated=asked.n * len(asked.configs) * asked.measures.generated,
    )


def select_rows(store: Store, asked: RunRequest) -> Shown:
    """The rows that the form asks for."""
    return Shown(asked.label, store.about, asked.rows(store))


def open_folder(path: str, name: str = "") -> Shown:
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
