"""Where files are, and how they are written: what comes with the project, what can be made again, nothing by halves."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

_HERE = Path(__file__).parent
# Beside the package in a clone, inside it in a wheel; the studies' data come with a clone only.
ASSETS = _HERE / "assets" if (_HERE / "assets").is_dir() else _HERE.parent / "assets"
STUDIES = _HERE.parent / "docs" / "studies"


def cache_dir() -> Path:
    """The folder for everything that can be made again: $ROME_EXPLORER_CACHE, else the user's cache."""
    if chosen := os.environ.get("ROME_EXPLORER_CACHE"):
        return expanded(chosen).absolute()
    return user_cache_path("rome-explorer", appauthor=False).absolute()


def expanded(path: str | Path) -> Path:
    """A path as a user wrote it, with `~` as their home; one of a user who does not exist stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path` and move it there in one step: a kill leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def null_if_infinite(value: float) -> float | None:
    """JSON has neither infinity nor NaN: a value that left the numbers is null."""
    return value if math.isfinite(value) else None


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python, the machine and those of the packages that are installed: they are kept with results."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
