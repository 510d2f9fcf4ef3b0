"""Work is shared out fairly between sessions, short work passes long work, and work of a session that is gone stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pages.shared.worker import GONE_AFTER, Task, Worker

LONG = 30.0  # s, that no test takes


@dataclass(eq=False)
class Stub:
    """A job that waits until it is let go or stopped."""

    name: str
    log: list[str]
    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        self.log.append(self.name)
        self.began.set()
        assert self.go.wait(LONG)
        self.ended.set()

    def stop(self) -> None:
        self.log.append(f"{self.name} stopped")
        self.go.set()


@pytest.fixture
def log() -> list[str]:
    return []


def submit(worker: Worker, log: list[str], name: str, **about: object) -> Stub:
    job = Stub(name, log)
    worker.submit(Task(job, job.run, **{"owner": name[0], **about}))  # type: ignore[arg-type]
    return job


def names(jobs: list) -> list[str]:
    return [job.name for job in jobs]


def test_sessions_take_turns(log: list[str]) -> None:
    worker = Worker()
    jobs = [submit(worker, log, "a1")]
    assert jobs[0].began.wait(LONG)
    jobs += [submit(worker, log, name) for name in ("a2", "a3", "b1", "c1", "b2")]

    assert names(worker.ahead(jobs[2])) == ["a1", "a2", "b1", "c1"]  # a3 comes after the others' first
    assert names(worker.ahead(jobs[5])) == ["a1", "a2", "b1", "c1", "a3"]
    for job in jobs:
        job.go.set()
    for job in jobs:
        assert job.ended.wait(LONG)
    assert log == ["a1", "a2", "b1", "c1", "a3", "b2"]
    assert worker.ahead(jobs[0]) == []


def test_short_work_does_not_wait_for_long_work(log: list[str]) -> None:
    worker = Worker()
    long = submit(worker, log, "a")
    assert long.began.wait(LONG)

    short = submit(worker, log, "b", short=True)

    assert short.began.wait(LONG) and not long.ended.is_set() and worker.ahead(short) == []
    short.go.set()
    long.go.set()


def test_work_of_a_session_that_is_gone_stops_unless_it_outlives_it(log: list[str]) -> None:
    here = {"a": True, "b": True}
    is_there: Callable[[str], bool | None] = here.get
    worker = Worker(is_there)
    jobs = {name: submit(worker, log, name, outlives=name == "a2") for name in ("a1", "a2", "a3", "b1", "c1")}
    assert jobs["a1"].began.wait(LONG)
    here["a"] = False

    worker.stop_abandoned(100.0)
    worker.stop_abandoned(100.0 + GONE_AFTER / 2)
    assert "a1 stopped" not in log  # a tab that is reloaded comes back
    here["a"] = True
    worker.stop_abandoned(101.0 + GONE_AFTER)
    here["a"] = False
    worker.stop_abandoned(200.0)
    worker.stop_abandoned(200.0 + GONE_AFTER)

    assert {entry for entry in log if "stopped" in entry} == {"a1 stopped", "a3 stopped"}  # of c nobody can tell
    for job in jobs.values():
        job.go.set()
    assert all(job.ended.wait(LONG) for job in jobs.values())


def test_a_server_that_ends_stops_all_work_and_waits_for_what_runs(log: list[str]) -> None:
    worker = Worker()
    jobs = {name: submit(worker, log, name) for name in ("a1", "a2", "b1")}
    assert jobs["a1"].began.wait(LONG)

    worker.close(LONG)

    assert all(job.ended.is_set() for job in jobs.values())
    assert sorted(entry for entry in log if "stopped" in entry) == ["a1 stopped", "a2 stopped", "b1 stopped"]


def test_a_server_that_ends_does_not_wait_for_ever(log: list[str]) -> None:
    worker = Worker()
    stuck = Stub("a", log)
    stuck.stop = lambda: None  # type: ignore[method-assign]
    worker.submit(Task(stuck, stuck.run, "a"))
    assert stuck.began.wait(LONG)

    worker.close(0.1)

    assert not stuck.ended.is_set()
    stuck.go.set()
