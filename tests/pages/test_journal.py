"""The server's log as JSON: what was done and how long it took, and nothing of what somebody typed."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pytest

from benchmarks.load import Tab
from pages.parts.evaluation import run as evaluation_run
from pages.parts.sequence import jobs as sequence_jobs
from pages.shared import journal, session
from pages.shared.track import Job
from rome_core.errors import RomeError
from rome_core.evaluation.sequence.folder import runs_in
from tests.pages.conftest import ROOT, free_port, wait_until_healthy
from tests.tiny import save_model, tiny_model

SECRET = "Zyzzyva Quuxwood"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON while the test runs; afterwards everything is as it was."""
    written = io.StringIO()
    handlers, kept = logging.root.handlers[:], {}
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        kept[name] = logger.handlers[:], logger.propagate
    monkeypatch.setenv(journal.SETTING, "json")
    monkeypatch.setattr(sys, "stderr", written)
    journal.begin()
    yield written
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    for name, (own, propagates) in kept.items():
        logging.getLogger(name).handlers[:] = own
        logging.getLogger(name).propagate = propagates


def test_how_work_ended_is_told_without_what_it_was_about(lines: io.StringIO) -> None:
    def fine(job: Job[None, int]) -> int:
        return 1

    def wrong(job: Job[None, int]) -> int:
        raise ValueError(f"shapes of {SECRET}")

    def refused(job: Job[None, int]) -> int:
        raise RomeError(f"'{SECRET}' is no subject.")

    for work in (fine, wrong, refused):
        Job[None, int](f"{SECRET} → Rome").run(work)
    logging.getLogger("streamlit.elsewhere").error(f"Uncaught: {SECRET}")
    logging.getLogger("streamlit.elsewhere").error("Uncaught of '%s'", SECRET)

    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    ends = [(one["state"], one.get("error"), one["seconds"] >= 0) for one in said if one["event"] == "work"]
    assert ends == [("done", None, True), ("error", "ValueError", True), ("error", "RomeError", True)]
    assert [one["event"] for one in said][-2:] == ["a message", "Uncaught of '%s'"]
    assert any(one["event"] == "Work of '%s' failed" and one["at"].startswith("test_journal.py:") for one in said)
    assert SECRET not in lines.getvalue() and "Rome" not in lines.getvalue().replace("RomeError", "")


def test_without_the_setting_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(journal.SETTING, raising=False)
    before = logging.root.handlers[:]

    journal.begin()

    assert logging.root.handlers == before


def test_the_kind_of_work_is_the_page_that_it_is_of() -> None:
    assert journal.kind_of(partial(sequence_jobs.go_on, 1, 2)) == "sequence"
    assert journal.kind_of(evaluation_run.start) == "evaluation"
    assert journal.kind_of(session.try_again) == "session"
    assert journal.kind_of(json.dumps) == journal.kind_of(print) == "other"


# ----------------------------------------------------------------------------------------------------- a real server


async def work_and_leave(url: str, query: dict[str, str], server: subprocess.Popen[bytes], cache: Path) -> None:
    """A trace to its end; then a sequence, within which the server is told to stop."""
    tab = Tab(url.replace("http", "ws") + "/_stcore/stream")
    await tab.open("tracing", **query, **{"trace-samples": "1", "trace-window": "1"})
    await tab.press("run")
    await asyncio.wait_for(tab.until(lambda: not tab.busy), 120)
    other = Tab(url.replace("http", "ws") + "/_stcore/stream")
    await other.open("sequential", **query, method="ft", layer="1")
    await other.press("run-sequence")
    end = time.monotonic() + 120
    while not any(len(path.read_bytes().splitlines()) > 2 for path in cache.glob("sequences/*/records.jsonl")):
        assert time.monotonic() < end, other.errors
        await asyncio.sleep(0.05)
    server.send_signal(signal.SIGTERM)
    await tab.close()
    await other.close()


@pytest.mark.slow
def test_a_server_that_is_stopped_ends_what_it_writes_and_has_told_no_secret(tmp_path: Path) -> None:
    folder, cache = save_model(tiny_model(), tmp_path / "tiny"), tmp_path / "cache"
    query = {"model": str(folder), "template": "The {} is in", "subject": SECRET, "target": SECRET}
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}"]
    env = {**os.environ, journal.SETTING: "json", "ROME_EXPLORER_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stderr:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=stderr, stderr=stderr)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}")
            asyncio.run(work_and_leave(f"http://127.0.0.1:{port}", query, server, cache))
            assert server.wait(60) == 0
        finally:
            server.kill()

    said = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    works = [(one["kind"], one["state"]) for one in said if one["event"] == "work"]
    assert works == [("models", "done"), ("tracing", "done"), ("sequence", "stopped")], log.read_text()
    assert SECRET not in log.read_text() and urlencode({"s": SECRET})[2:] not in log.read_text()
    assert not list(cache.rglob("*.part"))
    (run,) = runs_in(cache / "sequences")
    edits = [record for record in run.records if record.edit]
    assert 2 < len(run.records) < 21 and len(run.edits()) == len(edits) > 0
