"""What a job says of itself: while it waits, before its first step, and who is before it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import streamlit as st

from pages.shared import track
from pages.shared.public import describe_fault
from pages.shared.track import Job, describe
from pages.shared.worker import Task, Worker


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A session without a server, and a worker of its own."""
    empty: dict[str, Any] = {}
    own = Worker()
    monkeypatch.setattr(st, "session_state", empty)
    monkeypatch.setattr(track, "worker", lambda: own)
    return empty


def test_a_job_that_waits_says_for_what_and_how_long(state: dict[str, Any]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(job: Job[Any, Any]) -> None:
        for step in job.track(range(4), "Optimising v*", 4):
            if step == 1:
                begun.set()
                go_on.wait(10)

    first = track.submit("Rome's secret", work)
    second = track.submit("a second", lambda job: None)
    third = track.submit("a third", lambda job: None)
    begun.wait(10)

    own = describe(second)
    assert "a second · waits for Rome's secret (Optimising v*, 25%) · at least" in own
    assert "and 1 more" in describe(third)
    state["_jobs"] = [second]  # another visitor's session
    assert "secret" not in describe(second)
    assert "waits for the work of another visitor (Optimising v*, 25%)" in describe(second)
    go_on.set()
    while third.live:
        pass
    assert first.state == "done"


def test_before_its_first_step_a_job_says_what_it_does() -> None:
    job = Job[None, None]("France → London", begins_with="reading C")
    assert describe(job).startswith("France → London · begins in a moment")
    said = list[str]()
    job.run(lambda job: said.append(describe(job)))

    assert said[0].startswith("France → London · reading C · ")


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), MemoryError("no memory")])
def test_whatever_ends_a_piece_of_work_the_thread_goes_on_with_the_next(fault: BaseException) -> None:
    made, first, second = Worker(), Job[None, str]("dies"), Job[None, str]("lives")

    def die(job: Job[None, str]) -> str:
        raise fault

    made.submit(Task(first, lambda: first.run(die)))
    made.submit(Task(second, lambda: second.run(lambda job: "done")))
    deadline = time.monotonic() + 30
    while second.live and time.monotonic() < deadline:
        time.sleep(0.01)

    assert second.result == "done"
    assert first.state == "error" and first.error is not None and "Something unforeseen" in describe_fault(first.error)
