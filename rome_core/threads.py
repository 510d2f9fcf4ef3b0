"""How many threads may compute: no more than there are cores that nobody else is using."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import torch

from rome_core.errors import RomeError

SETTING = "ROME_EXPLORER_THREADS"
CGROUP = Path("/sys/fs/cgroup")
SAMPLE_SECONDS = 0.2


def cores_allowed() -> int:
    """The cores that this process may use: its affinity, and a container's quota (cgroup 1 or 2)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(_quota()) or 1))


def _quota() -> float:
    """A container's share in cores; infinite (as many as there are) without one."""
    everything = float(os.cpu_count() or 1)
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()[:2]
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        share = float(quota) / float(period)
    except (OSError, ValueError):  # no cgroups here, or "max"
        return everything
    return share if share > 0 else everything


def cores_taken(seconds: float = SAMPLE_SECONDS) -> float:
    """How many cores other programs keep busy, measured over so many seconds."""
    own, machine, began = _own_seconds(), _machine_seconds(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return max(0.0, (_machine_seconds() - machine) - (_own_seconds() - own)) / passed


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    return float(sum(times) - idle - guest)


def threads_to_use() -> int:
    """The setting, or the allowed cores that nobody else keeps busy, one at least. Raises RomeError."""
    if chosen := os.environ.get(SETTING, "").strip():
        if not chosen.isdecimal() or not 1 <= int(chosen) <= 1024:
            hint = "Set it to a whole number from 1 to 1024, or leave it out."
            raise RomeError(f"{SETTING} is '{chosen}'.", "", hint)
        return int(chosen)
    allowed = cores_allowed()
    return 1 if allowed == 1 else max(1, allowed - round(cores_taken()))


def use_free_cores() -> int:
    """Let the calling thread's tensors compute on as many threads; how many. A thread is asked anew at each task."""
    n = threads_to_use()
    if n != torch.get_num_threads():
        torch.set_num_threads(n)
    return n
