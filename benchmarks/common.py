"""What the benchmarks share: options, clocks, the machine's own rates, tables and result files."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.functional import linear

from rome_core import LanguageModel
from rome_core.files import versions

T = TypeVar("T")
Row = dict[str, Any]
MEGABYTE = 2**20


def parser_of(doc: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there, as JSON")
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; the threads are set."""
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """A call's result, and how many seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def spread(items: Sequence[T], n: int) -> list[T]:
    """n of the items, evenly spread: the middles of n equal parts."""
    n = min(n, len(items))
    return [items[int((k + 0.5) * len(items) / n)] for k in range(n)]


def matmul_rate(lm: LanguageModel, rows: int, seconds: float = 1.0) -> float:
    """FLOP/s that this machine reaches in the two matrix multiplications of an MLP at this many rows, by themselves."""
    up, down = torch.randn(lm.d_mlp, lm.d_model), torch.randn(lm.d_model, lm.d_mlp)
    narrow, wide = torch.randn(rows, lm.d_model), torch.randn(rows, lm.d_mlp)
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        taken.append(timed(lambda: (linear(narrow, up), linear(wide, down)))[1])
    return 4 * rows * lm.d_model * lm.d_mlp / statistics.median(taken)


def with_memory(call: Callable[[], T]) -> tuple[T, float, int | None, int | None]:
    """A call's result, its seconds, the process's peak memory meanwhile and how far above the start that is, in bytes.

    The peak is the kernel's (VmHWM, reset before the call); None where there is no /proc.
    """
    give_back()
    before = peak = None
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        before = memory_of("VmRSS")
    result, seconds = timed(call)
    if before is not None:
        peak = memory_of("VmHWM")
    return result, seconds, peak, None if before is None or peak is None else peak - before


def give_back() -> None:
    """What is free already goes back to the system: it would count, or hide what the next call takes."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_of(field: str) -> int:
    """Bytes that the kernel counts for this process, by its own name: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine(lm: LanguageModel, *packages: str) -> Row:
    """What the numbers were measured with."""
    return {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        **versions(("torch", "transformers", *packages)),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def table(columns: Mapping[str, tuple[str, str]], rows: Sequence[Row]) -> str:
    """A Markdown table. columns: heading by field, with the format of its values; a missing value is a dash."""
    cells = [[heading for heading, _ in columns.values()]]
    for row in rows:
        cells.append(["–" if row.get(k) is None else format(row[k], form) for k, (_, form) in columns.items()])
    widths = [max(len(line[c]) for line in cells) for c in range(len(columns))]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def heading(about: Row) -> str:
    """The machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in about.items() if value is not None and name != "fingerprint")


def write(path: Path | None, **results: Any) -> None:
    """The results as one JSON object."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
