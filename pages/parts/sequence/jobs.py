"""The work behind the page of sequential edits, as jobs, and where its runs are kept."""

from __future__ import annotations

from pathlib import Path

from pages.shared import track
from rome_core import LanguageModel
from rome_core.evaluation.sequence.folder import SequenceRun, runs_in
from rome_core.evaluation.sequence.start import SequenceStart, open_or_create
from rome_core.evaluation.sequence.steps import edit_in_sequence
from rome_core.files import STUDIES, cache_dir

SHIPPED = STUDIES / "sequence"


def folder() -> Path:
    """Where the page keeps its runs: they survive the server."""
    return cache_dir() / "sequences"


def all_runs() -> dict[str, SequenceRun]:
    """The page's runs, newest first, then the project's own, smallest batches first; by the name that is shown."""
    own = sorted(runs_in(folder()), key=lambda run: -(run.folder / "run.json").stat().st_mtime)
    shipped = sorted(runs_in(SHIPPED), key=lambda run: run.plan.pace.batch)
    return {**{run.folder.name: run for run in own}, **{f"study: {run.folder.name}": run for run in shipped}}


def work(lm: LanguageModel, start: SequenceStart, job: track.Job[None, int]) -> int:
    """Begin the run that is asked for, or go on with it, to its end. Runs as a job."""
    return go_on(lm, open_or_create(lm, start, folder()), job)


def go_on(lm: LanguageModel, run: SequenceRun, job: track.Job[None, int]) -> int:
    """Go on with a run as it was begun. Runs as a job."""
    return sum(1 for _ in edit_in_sequence(lm, run, track=job.track))
