"""The app under test: in memory on a tiny model (AppTest), or for real in Chromium on the default one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest

import rome_core
from pages.shared import session, track
from pages.shared.track import Job
from rome_core.editing import presets
from rome_core.editing.presets import Preset
from tests.conftest import chrome
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
SECONDS = 60  # for one script run; this may be a busy machine
LONG = 300_000  # ms: the default model on a busy machine


# ------------------------------------------------------------------------------------------------------------ AppTest


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The app after its first run, with a tiny random model as the default one."""
    tiny = tiny_model("llama", layers=4)

    def load(name: str, **options: Any) -> rome_core.LanguageModel:
        return tiny if name == rome_core.DEFAULT_MODEL else rome_core.load_model(name, **options)

    monkeypatch.setattr("pages.shared.models.load_model", load)
    # Every AppTest run begins as a server's very first one does, and the rerun through app.py would swallow clicks.
    begin = PagesManager.__init__

    def begin_warm(self: PagesManager, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        PagesManager.uses_pages_directory = False

    monkeypatch.setattr(PagesManager, "__init__", begin_warm)
    st.cache_resource.clear()
    return AppTest.from_file(ROOT / "app.py", default_timeout=SECONDS).run()


def goto(app: AppTest, page: str, **query: str) -> AppTest:
    """Open a page as a link with this query does."""
    app.query_params.clear()
    app.query_params.update(query)
    return app.switch_page(f"pages/{page}.py").run()


def wait_for(app: AppTest, ended: Callable[[AppTest], bool]) -> AppTest:
    """Run the page again and again, as its polling does in a browser, until something has happened."""
    deadline = time.monotonic() + SECONDS
    while not ended(app):
        assert time.monotonic() < deadline, [e.value for e in app.error] or "nothing happened"
        time.sleep(0.05)
        app.run()
    return app.run()  # once more: it may have happened after the page was drawn


@contextmanager
def session_of(app: AppTest) -> Iterator[None]:
    """Inside, the functions of pages.shared.session and track speak of this app's session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(st, "session_state", app.session_state)
        yield


def edits_of(app: AppTest) -> list[session.ActiveEdit]:
    with session_of(app):
        return session.edits()


def job_of(app: AppTest, key: Hashable) -> Job[Any, Any]:
    with session_of(app):
        job = session.find_job(key)
    assert job is not None
    return job


def finish(app: AppTest, key: Hashable) -> Any:
    """Wait for a job that goes well, and draw the page; what the job has found."""
    job = job_of(app, key)
    wait_for(app, lambda app: not job.live)
    assert job.error is None and not app.exception
    return job.result if job.result is not None else job.partial


def draw_tabs(app: AppTest) -> list[str]:
    """Open every tab of an edit; their names."""
    names = [tab.label for tab in app.tabs]
    for name in names:
        app.session_state["edit-tab"] = name
        app.run()
        assert not app.error and not app.exception, (name, texts(app.error))
    return names


@pytest.fixture
def presets_of_first_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has been measured: layer 2, and layer 0 where the subject is the first token."""
    first = Preset(0, 6.0, "a test", steps=9)
    monkeypatch.setitem(presets.PRESETS, "tiny-llama", Preset(2, 1.5, "a test", steps=4, first_token=first))


def end_of_jobs(app: AppTest) -> AppTest:
    """Wait without drawing the page again and again, then draw it."""
    deadline = time.monotonic() + SECONDS
    with session_of(app):
        jobs = list(track.my_jobs())
    for job in jobs:
        while job.live and time.monotonic() < deadline:
            time.sleep(0.02)
    return app.run()


def texts(elements: Any) -> str:
    """The values of a kind of element, one after the other."""
    return "\n".join(str(element.value) for element in elements)


# ------------------------------------------------------------------------------------------------------------ browser


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """One running server for all tests that do not need a cold one."""
    with served() as url:
        yield url


@contextmanager
def served() -> Iterator[str]:
    """A freshly started server of the app."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_healthy(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as answer:
                if answer.read() == b"ok":
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the app did not start")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chrome(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of its own session. In the end nothing may have failed in it, nor asked another machine."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(LONG)
    opened = context.new_page()
    errors: list[str] = []
    outside: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: outside.append(request.url) if is_outside(request.url) else None)
    yield opened
    assert errors == []
    assert outside == [], "the app must not ask another machine for anything"
    assert opened.get_by_test_id("stException").count() == 0
    context.close()


def is_outside(url: str) -> bool:
    return url.startswith(("http", "ws")) and "//127.0.0.1" not in url


def screenshot(page: Any, name: str) -> None:
    """Keep a picture of the whole page where SCREENSHOTS says; for people, not for asserting."""
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        height = page.evaluate("document.querySelector('.stMain').scrollHeight")
        size = page.viewport_size
        page.set_viewport_size({"width": size["width"], "height": int(height) + 20})
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png")
        page.set_viewport_size(size)
