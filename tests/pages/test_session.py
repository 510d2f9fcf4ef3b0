"""What a session keeps: edits, jobs and what was typed for as long as it lasts, results while they are looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import streamlit as st

from pages.shared import session
from pages.shared.shelf import EACH
from pages.shared.track import Job, my_jobs, settle_jobs, submit
from rome_core import EditRequest, Prompt
from tests.tiny import REQUEST, random_edit, tiny_model

OTHER = EditRequest(Prompt("The capital of {} is", "France"), "London")


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A session without a server."""
    empty: dict[str, Any] = {}
    monkeypatch.setattr(st, "session_state", empty)
    return empty


# ---------------------------------------------------------------------------------------------------- what is dropped


def test_nothing_that_was_waited_for_is_dropped_by_looking_at_other_things() -> None:
    running, ended = Job[None, str]("runs"), Job[None, str]("ended")
    ended.run(lambda job: "a report")
    session.keep_job(("edit", "job"), ended)
    session.keep_job("running", running)
    session.put_edit(random_edit(tiny_model()), "an edit")
    session.keep("typed", list[str]).append("a fact")

    for number in range(200):
        session.remember(("cell", number), number)

    assert session.find_job("running") is running
    assert session.find_job(("edit", "job")) is ended and ended.result == "a report"
    assert [item.label for item in session.edits()] == ["an edit"]
    assert session.keep("typed", list[str]) == ["a fact"]


def test_the_result_that_was_least_recently_used_goes_first() -> None:
    for number in range(EACH):
        session.remember(number, f"result {number}")
    assert session.recall(0) == "result 0", "used: now number 1 is the oldest"

    session.remember("one more", "result")

    assert session.recall(0) == "result 0"
    assert session.recall(1) is None
    assert session.recall(2) == "result 2"


def test_a_result_is_computed_once() -> None:
    calls = []

    def make() -> int:
        calls.append(1)
        return len(calls)

    assert [session.compute_once("key", make) for _ in range(3)] == [1, 1, 1]


def test_a_job_is_replaced_stopped_and_forgotten() -> None:
    first, second = Job[None, None]("first"), Job[None, None]("second")
    session.keep_job("key", first)
    session.stop_job("key")
    session.keep_job("key", second)
    first.run(lambda job: None)

    assert first.state == "stopped"
    assert session.find_job("key") is second
    session.forget_job("key")
    session.stop_job("key")
    assert session.find_job("key") is None


# -------------------------------------------------------------------------------------------------------------- edits


def test_an_edit_takes_the_place_of_those_of_the_same_fact_only() -> None:
    lm = tiny_model()
    old, new, other = (random_edit(lm, seed=seed) for seed in range(3))
    other = replace(other, requests=(OTHER,))
    session.put_edit(old, "old")
    session.put_edit(other, "other")

    session.put_edit(new, "new", replaces=new.requests, on=False)

    assert [(item.label, item.on) for item in session.edits()] == [("other", True), ("new", False)]
    session.put_edit(new, "again", replaces=[REQUEST])
    assert [(item.label, item.on) for item in session.edits()] == [("other", True), ("new", True)], "it was there"


def test_a_new_edit_is_solved_on_the_others() -> None:
    lm = tiny_model()
    edit, other = random_edit(lm), replace(random_edit(lm, seed=1), requests=(OTHER,))
    session.put_edit(edit, "edit")
    session.put_edit(other, "other")

    assert session.active() == (edit, other)
    assert session.active(but=[REQUEST]) == (other,)


def test_the_worker_leaves_the_session_alone_and_the_script_takes_the_result_once() -> None:
    edit = random_edit(tiny_model())
    job = submit("solving", lambda job: edit, then=lambda solved: session.put_edit(solved, "solved"))
    while job.live:
        pass

    assert session.edits() == []
    assert settle_jobs()
    assert [item.label for item in session.edits()] == ["solved"]
    session.remove_edit(edit.id)
    assert not settle_jobs() and session.edits() == [] and my_jobs() == []


def test_a_job_that_failed_brings_nothing() -> None:
    def fail(job: Job[None, str]) -> str:
        raise ValueError("no")

    taken: list[str] = []
    job = submit("failing", fail, then=taken.append)
    while job.live:
        pass

    assert settle_jobs() and taken == [] and job.state == "error"
