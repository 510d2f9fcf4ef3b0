"""What holds for all tests: which are offline, in which order they run, and which need a browser."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("without a clock", deadline=None)  # a busy machine is no fault
settings.load_profile("without a clock")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; set before huggingface_hub reads it
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # side by side, each has its share of the cores
    share = max(1, (os.cpu_count() or 1) // int(processes))
    os.environ["OMP_NUM_THREADS"] = str(share)  # for the processes that tests start
    os.environ["ROME_EXPLORER_THREADS"] = str(share)  # and for the jobs of the pages
    torch.set_num_threads(share)

CHROME_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chrome() -> str | None:
    """Path of the browser that tests drive: $CHROME, else the first one found."""
    return os.environ.get("CHROME") or next(filter(None, map(shutil.which, CHROME_NAMES)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then slow ones, then the browser, so that a simple mistake shows within seconds."""
    no_chrome = pytest.mark.skip(reason="no Chromium found: install it, or set CHROME to its path")
    for item in items:
        if item.get_closest_marker("browser") and chrome() is None:
            item.add_marker(no_chrome)
    items.sort(key=_cost)


@pytest.fixture(autouse=True)
def nothing_from_outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test loads no pretrained model: it sees an empty cache and a pip that downloads nothing."""
    if _cost(request.node) == 0:
        empty: Path = request.getfixturevalue("tmp_path") / "cache"
        monkeypatch.setenv("ROME_EXPLORER_CACHE", str(empty))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", "")


@pytest.fixture
def random_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """C is at hand for every tiny model: nothing is estimated."""
    from tests.tiny import random_moment

    monkeypatch.setattr("rome_core.editing.second_moment.stored_moment", random_moment)


@pytest.fixture
def few_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit is judged beside four ordinary facts."""
    monkeypatch.setattr("rome_core.diagnosis.ordinary_facts.REFERENCE_FACTS", 4)


def _cost(item: pytest.Item) -> int:
    if item.get_closest_marker("browser"):
        return 2
    return 1 if item.get_closest_marker("slow") else 0
