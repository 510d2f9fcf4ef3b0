"""Who computes next: one thread for long work and one for short, each fair to all sessions in turn.

Sessions are served round robin, so that one with ten jobs does not hold up one with a single job. Work of a session
that is gone is stopped, unless it writes to disk what it finds and so outlives its session.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

GONE_AFTER = 3.0  # seconds without its session, then work is stopped; a tab that is reloaded comes back sooner
LOOKS_EVERY = 0.5
CLOSES_WITHIN = 20.0  # seconds that a server waits for its work when it is stopped


class Work(Protocol):
    """What the worker needs to know of a job."""

    def stop(self) -> None: ...


@dataclass(eq=False)
class Task:
    """One job in the queue. owner: its session. short: it ends within seconds. outlives: it is not stopped when its
    session is gone."""

    job: Work
    run: Callable[[], None]
    owner: str = ""
    short: bool = False
    outlives: bool = False
    alone_since: float = 0.0


class Lane:
    """A thread with a queue for each session. It does not keep a server from ending."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()  # the session that is next stands first
        self.running: Task | None = None
        threading.Thread(target=self._work, name=f"rome-{name}", daemon=True).start()

    def put(self, task: Task) -> None:
        with self._changed:
            self._waiting.setdefault(task.owner, deque()).append(task)
            self._changed.notify()

    def in_order(self) -> list[Task]:
        """The task that runs, then the others as their turns come."""
        with self._changed:
            queues = [list(queue) for queue in self._waiting.values()]
            first = [self.running] if self.running else []
        turns = max(map(len, queues), default=0)
        return [*first, *(queue[turn] for turn in range(turns) for queue in queues if turn < len(queue))]

    def _next(self) -> Task:
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            owner, queue = self._waiting.popitem(last=False)
            self.running = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind all others
            return self.running

    def _work(self) -> None:
        while True:
            task = self._next()
            try:
                task.run()
            finally:
                with self._changed:
                    self.running = None


class Worker:
    """The lanes, and a look at whether the sessions of their work are still there.

    is_there: whether a session is connected; None where nobody can tell. tidy: called now and then.
    """

    def __init__(
        self,
        is_there: Callable[[str], bool | None] = lambda owner: None,
        tidy: Callable[[float], None] = lambda now: None,
    ) -> None:
        self.lanes = {short: Lane("short" if short else "long") for short in (False, True)}
        self._is_there, self._tidy = is_there, tidy

    def watch(self) -> None:
        """Look from now on, in a thread of its own."""
        threading.Thread(target=self._look, name="rome-watch", daemon=True).start()

    def submit(self, task: Task) -> None:
        self.lanes[task.short].put(task)

    def ahead(self, job: Work) -> list[Work]:
        """The jobs that come before this one, the one that runs first."""
        for lane in self.lanes.values():
            jobs = [task.job for task in lane.in_order()]
            if job in jobs:
                return jobs[: jobs.index(job)]
        return []

    def close(self, seconds: float = CLOSES_WITHIN) -> None:
        """Stop all work and wait until what runs has ended: it finishes the step that it is at, and what it writes."""
        end = time.monotonic() + seconds
        for lane in self.lanes.values():
            for task in lane.in_order():
                task.job.stop()
        while any(lane.in_order() for lane in self.lanes.values()) and time.monotonic() < end:
            time.sleep(0.05)

    def _look(self) -> None:
        while True:
            time.sleep(LOOKS_EVERY)
            self.stop_abandoned(time.monotonic())
            self._tidy(time.monotonic())

    def stop_abandoned(self, now: float) -> None:
        """Stop what belongs to sessions that have been gone for a while."""
        for task in [task for lane in self.lanes.values() for task in lane.in_order()]:
            if task.outlives or not task.owner or self._is_there(task.owner) is not False:
                task.alone_since = 0.0
            elif not task.alone_since:
                task.alone_since = now
            elif now - task.alone_since >= GONE_AFTER:
                task.job.stop()
