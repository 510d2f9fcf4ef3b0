"""Long work: threads that everybody shares, jobs that can be watched from any page, and a stop that answers at once.

Streamlit cannot cancel a running script and restarts it on every click, so nothing that takes more than about two
seconds runs inside one. A job runs in the worker; pages look at it through a polling fragment. Functions that run as
jobs must not call `st.*`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Literal, TypeVar

import streamlit as st

from pages.shared import belongings, journal, public
from pages.shared.text import literal
from pages.shared.worker import Task, Worker
from rome_core import RomeError
from rome_core.progress import Stopped
from rome_core.threads import use_free_cores

T = TypeVar("T")
P = TypeVar("P")  # what a job publishes while it runs
R = TypeVar("R")  # what it returns
State = Literal["queued", "running", "done", "stopped", "error"]
POLL_SECONDS, DRAW_SECONDS = 0.5, 1.0

log = logging.getLogger(__name__)


@dataclass
class Loop:
    """How far one tracked loop is. Loops may be nested: three heat maps, each of many cells."""

    label: str
    total: int
    began: float
    done: int = 0


@dataclass(eq=False)
class Progress:
    """How far a piece of work is, and whether it shall stop. what, done and total are those of the innermost loop.

    asked: what was asked, to be compared with what a form asks now. begins_with: what is done before the first loop.
    settle: what the session's own script does once it sees that the work is done; the worker never touches a session.
    """

    label: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    state: State = "queued"
    what: str = ""
    done: int = 0
    total: int = 0
    error: Exception | None = None
    asked_for: float = field(default_factory=time.monotonic)
    began: float = 0.0
    ended: float = 0.0
    asked: object = None
    begins_with: str = "preparing"
    settle: Callable[[], None] = lambda: None
    _stop: threading.Event = field(default_factory=threading.Event)
    _loops: list[Loop] = field(default_factory=list)
    _fraction: float = 0.0

    @property
    def live(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def seconds(self) -> float:
        """Working time so far, without the time in the queue."""
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0

    @property
    def fraction(self) -> float:
        """Done part of the outermost loop, the inner ones counted within it. Stays where it was after a stop."""
        share, total, loops = 1.0, 0.0, list(self._loops)
        for loop in loops:
            total += share * loop.done / max(1, loop.total)
            share /= max(1, loop.total)
        self._fraction = min(1.0, total) if loops else self._fraction
        return self._fraction

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the steps measured so far; None before the first one."""
        loops, fraction = list(self._loops), self.fraction
        return (time.monotonic() - loops[0].began) * (1 / fraction - 1) if loops and fraction else None

    def stop(self) -> None:
        self._stop.set()

    def track(self, items: Iterable[T], label: str, total: int, /) -> Iterator[T]:
        """A `rome_core.progress.Track`: counts the items and ends the work when Stop was pressed."""
        loop = Loop(label, total, time.monotonic())
        self._loops.append(loop)
        try:
            for done, item in enumerate(items):
                loop.done = done
                self.what, self.done, self.total = label, done, total
                if self._stop.is_set():
                    raise Stopped
                yield item
            self.done = loop.done = total
        finally:
            self._fraction = self.fraction
            self._loops.remove(loop)


@dataclass(eq=False)
class Job(Progress, Generic[P, R]):
    """One piece of work with what it has published so far and what it returned. The worker writes it, pages read it."""

    partial: P | None = None
    result: R | None = None

    def run(self, work: Callable[[Job[P, R]], R]) -> None:
        """Do the work in the calling thread and write down how it ended."""
        self.state, self.began = "running", time.monotonic()
        end: State = "done"
        try:
            if self._stop.is_set():
                raise Stopped
            use_free_cores()
            self.result = work(self)
        except Stopped:
            end = "stopped"
        except BaseException as error:  # whatever it was, the thread goes on with the next one's work
            if not isinstance(error, RomeError):
                log.exception("Work of '%s' failed", journal.kind_of(work))
            self.error = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            end = "error"
        self.ended = time.monotonic()
        journal.note_work(work, end, self.began - self.asked_for, self.seconds, self.error)
        self.state = end  # last, because pages look at it first


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    made = Worker(belongings.cloakroom().is_there, belongings.cloakroom().tidy)
    if belongings.is_served():
        made.watch()
        atexit.register(made.close)
    return made


def submit(
    label: str,
    work: Callable[[Job[P, R]], R],
    *,
    published: P | None = None,
    asked: object = None,
    begins_with: str = "preparing",
    then: Callable[[R], None] = lambda result: None,
    short: bool = False,
    outlives: bool = False,
    facts: int = 0,
    generated: int = 0,
) -> Job[P, R]:
    """Queue `work(job)`. It takes `job.track` as its Track and may publish results so far as `job.partial`.

    short: it ends within seconds, and does not wait for long work. outlives: it writes to disk what it finds, and goes
    on when its session is gone.
    published: what there is to show before it begins. asked, begins_with: see `Progress`.
    then: called once with its result, by the session's script and not by the worker, on whatever page the user is.
    facts, generated: see `public.check_work`, whose RomeError this raises.
    """
    job = Job[P, R](label, partial=published, asked=asked, begins_with=begins_with)

    def settle() -> None:
        if job.result is not None:
            then(job.result)

    job.settle = settle
    public.check_work(sum(job.live for job in my_jobs()), facts, generated)
    my_jobs().append(job)
    worker().submit(Task(job, partial(job.run, work), belongings.token(), short, outlives))
    return job


def my_jobs() -> list[Progress]:
    """This session's jobs that have not been seen to end yet, for the sidebar."""
    kept = belongings.mine()
    if "_jobs" not in kept:
        kept["_jobs"] = list[Progress]()
    jobs: list[Progress] = kept["_jobs"]
    return jobs


def settle_jobs() -> bool:
    """Take over what ended jobs of this session have brought. Whether any has ended since the last time."""
    ended = [job for job in my_jobs() if not job.live]
    for job in ended:
        with suppress(ValueError):  # another tab of the same visitor was first
            my_jobs().remove(job)
            if job.state == "done":
                job.settle()
    return bool(ended)


def panel(job: Job[P, R], draw: Callable[[Job[P, R]], None] = lambda job: None) -> None:
    """Progress with a Stop button, then `draw(job)`, both again and again until the job has ended."""

    was_live = job.live

    @st.fragment(run_every=POLL_SECONDS if was_live else None)
    def status() -> None:
        _status(job)
        rerun_at_the_end([job] if was_live else [])

    # Apart, and less often: a figure costs a hundred times what a bar does, here and in the browser.
    @st.fragment(run_every=DRAW_SECONDS if was_live else None)
    def picture() -> None:
        with no_traceback():
            draw(job)

    status()
    picture()


def rerun_at_the_end(live: Sequence[Progress]) -> None:
    """Run the whole page once more when one of the jobs that were live has ended, so that polling stops."""
    if not all(job.live for job in live):
        settle_jobs()
        st.rerun()


def _status(job: Progress) -> None:
    with st.container(key=f"status-{job.id}"):  # keeps its height when the bar goes
        if job.live:
            bar, button = st.columns([6, 1], vertical_alignment="center")
            bar.progress(job.fraction, describe(job))
            button.button("Stop", key=f"stop-{job.id}", on_click=job.stop, width="stretch")
        elif job.state == "error":
            show_error(job.error)
        else:
            st.caption(describe(job))


def describe(job: Progress) -> str:
    """One line: what runs, how far it is, how long it took and will take."""
    label = literal(job.label)
    if job.state == "queued":
        return " · ".join([label, *_waits_for([other for other in worker().ahead(job) if isinstance(other, Progress)])])
    if job.state == "done":
        return f"{label} · done in {job.seconds:.1f} s"
    if job.state == "stopped":
        return f"{label} · stopped after {job.seconds:.1f} s; what was finished is shown"
    parts = [literal(job.what)] if job.what else [label, job.begins_with]
    if job.total:
        parts.append(f"{job.done} of {job.total}")
    parts.append(f"{job.seconds:.1f} s")
    if job.seconds_left is not None:
        parts.append(f"about {job.seconds_left:.0f} s left")
    return " · ".join(parts)


def _waits_for(ahead: Sequence[Progress]) -> list[str]:
    """For which work a job waits, and how long at least. Of another visitor's only the kind is told."""
    if not ahead:
        return ["begins in a moment"]
    first, *others = ahead
    own = any(first is job for job in my_jobs())
    step = first.what or first.begins_with
    parts = [
        f"waits for {literal(first.label) if own else 'the work of another visitor'} ({step}, {first.fraction:.0%})"
    ]
    if others:
        parts.append(f"and {len(others)} more")
    left = first.seconds_left
    parts.append("no estimate yet" if left is None else f"at least {left:.0f} s")
    return parts


@contextmanager
def no_traceback() -> Iterator[None]:
    """Whatever goes wrong inside becomes one sentence on the page; what was not foreseen goes to the server's log."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, RomeError):
            log.exception("A page failed")
        show_error(error)


def show_error(error: Exception | None) -> None:
    """One sentence in a red box, never a traceback."""
    if isinstance(error, RomeError):
        st.error(literal(public.without_places(str(error))))
    else:
        st.error(public.describe_fault(error) if error else "Something unforeseen happened.")
