"""Threads: no more than there are cores for this process that others leave free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rome_core import threads
from rome_core.errors import RomeError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight cores, all of them allowed, nobody else there, no cgroup."""
    monkeypatch.delenv(threads.SETTING, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(threads, "cores_taken", lambda: 0.0)
    return tmp_path


def test_all_cores_are_used_where_nobody_else_is(machine: Path) -> None:
    assert threads.cores_allowed() == threads.threads_to_use() == 8


@pytest.mark.parametrize(("taken", "left"), [(0.3, 8), (0.9, 7), (3.0, 5), (7.9, 1), (20.0, 1)])
def test_what_others_keep_busy_is_left_to_them(
    machine: Path, monkeypatch: pytest.MonkeyPatch, taken: float, left: int
) -> None:
    monkeypatch.setattr(threads, "cores_taken", lambda: taken)
    assert threads.threads_to_use() == left


def test_affinity_and_a_containers_quota_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert threads.cores_allowed() == 3
    (machine / "cpu.max").write_text("200000 100000\n")
    assert threads.cores_allowed() == 2
    (machine / "cpu.max").write_text("50000 100000\n")  # half a core
    assert threads.cores_allowed() == 1
    (machine / "cpu.max").write_text("max 100000\n")
    assert threads.cores_allowed() == 3


def test_the_older_cgroups_count_as_well(machine: Path) -> None:
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in ((400_000, 4), (-1, 8)):
        (machine / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert threads.cores_allowed() == cores


def test_a_setting_overrides_and_a_bad_one_is_a_sentence(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.SETTING, "3")
    assert threads.threads_to_use() == 3
    for bad in ("0", "-1", "two", "1.5", "99999"):
        monkeypatch.setenv(threads.SETTING, bad)
        with pytest.raises(RomeError, match=r"Set it to a whole number from 1 to 1024"):
            threads.threads_to_use()


def test_the_calling_thread_is_set(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv(threads.SETTING, "1")
        assert threads.use_free_cores() == 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_what_others_take_is_never_less_than_nothing() -> None:
    assert 0.0 <= threads.cores_taken(0.01) <= (os.cpu_count() or 1) + 1
