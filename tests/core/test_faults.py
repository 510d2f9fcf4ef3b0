"""Faults that a long run meets: killed processes, two at once, a full disk, no memory, numbers that are not finite."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rome_core import EditError, ModelError, Prompt, TraceConfig, load_edit, save_edit, trace
from rome_core.editing.second_moment import load_moment, save_moment
from rome_core.evaluation.runs.folder import append_line, cut_off, read_lines
from rome_core.files import write_whole
from rome_core.model.replay import sweep
from rome_core.tracing import restoration
from tests.tiny import random_edit, random_moment, tiny_model

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
CONFIG = TraceConfig(samples=3, window=2, noise_from="vocabulary")
KILLS = 8

# Forked, so that a child writes at once; it touches no thread of its parent.
fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def kill_while(work: Callable[[], None], after: float) -> None:
    """Let a process work, and kill it as nothing can be told of or caught."""
    child = fork.Process(target=work)
    child.start()
    time.sleep(after)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_leaves_the_old_edit_or_the_new_one_whole(tmp_path: Path, seed: int) -> None:
    lm, path, moments = tiny_model(), tmp_path / "edit.safetensors", random.Random(seed)
    edits = [random_edit(lm, seed=number) for number in range(2)]
    save_edit(edits[0], path)

    def write() -> None:
        for number in range(10**6):
            save_edit(edits[number % 2], path)

    for _ in range(KILLS):
        kill_while(write, moments.uniform(0.01, 0.1))
        found = load_edit(path, lm)
        assert any(torch.equal(found.deltas[0].U, edit.deltas[0].U) for edit in edits)


def test_a_kill_leaves_the_old_c_or_the_new_one_whole(tmp_path: Path) -> None:
    lm, path, moments = tiny_model(), tmp_path / "C.npz", random.Random(0)
    both = [random_moment(lm, seed=number) for number in range(2)]
    save_moment(both[0], path)

    def write() -> None:
        for number in range(10**6):
            save_moment(both[number % 2], path)

    for _ in range(KILLS):
        kill_while(write, moments.uniform(0.01, 0.1))
        found = load_moment(path, lm)
        assert any(torch.allclose(found.C, moment.C, rtol=1e-5) for moment in both)


def test_records_are_whole_after_kills_and_the_next_ones_follow_them(tmp_path: Path) -> None:
    path, moments, long = tmp_path / "records.jsonl", random.Random(1), "x" * 20_000
    before = 0

    def write() -> None:
        for number in range(before, 10**6):
            append_line(path, {"number": number, "text": long})

    for _ in range(KILLS):
        kill_while(write, moments.uniform(0.02, 0.15))
        cut_off(path)
        numbers = [record["number"] for record in read_lines(path)]
        assert numbers == list(range(len(numbers))) and len(numbers) >= before
        before = len(numbers)
    assert before > 0


def test_two_processes_and_two_threads_may_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"

    def write(mark: str) -> None:
        for _ in range(200):
            write_whole(path, lambda part: part.write_text(json.dumps([mark] * 500), encoding="utf-8"))

    children = [fork.Process(target=write, args=(mark,)) for mark in "ab"]
    threads = [threading.Thread(target=write, args=(mark,)) for mark in "cd"]
    for worker in (*children, *threads):
        worker.start()
    while any(worker.is_alive() for worker in (*children, *threads)):
        if path.exists():
            marks = json.loads(path.read_text(encoding="utf-8"))
            assert len(marks) == 500 and len(set(marks)) == 1
    for worker in (*children, *threads):
        worker.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, path = tiny_model(), tmp_path / "edit.safetensors"
    save_edit(random_edit(lm), path)
    old = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rome_core.editing.storage.save_file", full)
    with pytest.raises(EditError, match="No space left on device"):
        save_edit(random_edit(lm, seed=1), path)

    assert path.read_bytes() == old and [file.name for file in tmp_path.iterdir()] == ["edit.safetensors"]


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], list[int]]:
    """Batches of more than so many restored runs end in an error; the sizes that were tried."""

    def limit(most: int, error: Exception) -> list[int]:
        tried: list[int] = []

        def swept(lm: Any, clean: Any, corrupted: Any, cells: Any, tail: int) -> Any:
            tried.append(len(cells))
            for number, finished in enumerate(sweep(lm, clean, corrupted, cells, tail)):
                if len(cells) > most and number == 1:  # in the middle of its blocks
                    raise error
                yield finished

        monkeypatch.setattr(restoration, "sweep", swept)
        return tried

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_where_memory_ends_batches_are_halved_and_the_heat_map_is_the_same(
    little_memory: Callable[[int, Exception], list[int]], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny_model(layers=8)
    whole = trace(lm, PROMPT, CONFIG)

    tried = little_memory(3, error)
    found = trace(lm, PROMPT, CONFIG)

    np.testing.assert_allclose(found.indirect_effect, whole.indirect_effect, rtol=1e-5, atol=1e-8)
    assert {8, 4, 2} <= set(tried)
    assert "going on with half of them" in caplog.text


def test_one_run_that_does_not_fit_is_one_sentence(little_memory: Callable[[int, Exception], list[int]]) -> None:
    little_memory(0, torch.OutOfMemoryError("CUDA out of memory"))

    with pytest.raises(ModelError, match=r"not enough memory for one restored run of .* tokens and 3 noise draws"):
        trace(tiny_model(), PROMPT, CONFIG)


def test_another_error_is_not_taken_for_one_of_memory(little_memory: Callable[[int, Exception], list[int]]) -> None:
    little_memory(3, RuntimeError("a fault of the program"))

    with pytest.raises(RuntimeError, match="a fault of the program"):
        trace(tiny_model(layers=8), PROMPT, CONFIG)


# ------------------------------------------------------------------------------------------------ what is not finite


def test_a_model_that_yields_no_numbers_is_one_sentence() -> None:
    lm = tiny_model()
    edit = random_edit(lm)
    broken = replace(edit, deltas=(replace(edit.deltas[0], U=edit.deltas[0].U * torch.nan),))

    with pytest.raises(ModelError, match="computes numbers that are not finite on this prompt"):
        trace(lm, PROMPT, CONFIG, edits=[broken])
    assert trace(lm, PROMPT, CONFIG).complete, "nothing of it stays"
