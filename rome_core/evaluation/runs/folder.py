"""What every run's folder has: run.json, which says what the run is, and files that grow by whole lines.

A folder without run.json is no run, so whoever makes one writes it last; a kill leaves a line that does not end, which
nobody reads and the next writer cuts off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rome_core.errors import DataError
from rome_core.facts.datasets import Fact
from rome_core.files import write_whole

PACKAGES = ("rome-explorer", "torch", "transformers", "numpy", "pyarrow", "ray")  # whose versions a run keeps


def hash_of(facts: Sequence[Fact]) -> str:
    """A short name of facts in their order, which changes with any prompt or object of them."""
    text = json.dumps([fact_record(fact) for fact in facts], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fact_record(fact: Fact) -> dict[str, Any]:
    """A fact as its hash has it: the fields that came later only where they hold something, so that old names stay."""
    later = ("neighbour_answers", "portability")
    return {name: value for name, value in asdict(fact).items() if value or name not in later}


def read_about(folder: Path, format: str) -> dict[str, Any]:
    """What the folder says of its run. Raises DataError where it holds none of this format."""
    hint = "Choose a folder that this program has written."
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"'{folder}' is no run's folder.", "It has no run.json.", hint) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{folder}' is no run's folder.", str(error), hint) from None
    if not isinstance(about, dict) or about.get("format") != format:
        raise DataError(f"'{folder}' was written by another version.", "", hint)
    return about


def write_json(path: Path, data: object) -> None:
    """Write a JSON file as a whole."""
    write_whole(path, lambda part: part.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8"))


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file of JSON lines; it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, none if there is no file; a line that a kill cut off is passed over.

    Raises DataError for a whole line that is no record.
    """
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if line.endswith(b"\n"):
                yield _record_of(line, f"'{path}', line {number}")


def _record_of(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON.", str(error)[:200], "Take the line out of the file.") from None
    if not isinstance(record, dict):
        raise DataError(f"{place} is no record.", "", "Take the line out of the file.")
    return record


def cut_off(path: Path) -> None:
    """Remove a last line that was not finished, so that the next one does not begin in it."""
    if path.exists():
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if kept != whole:
            with path.open("r+b") as file:
                file.truncate(len(kept))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from going on with the run in a folder. Raises DataError if one does."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"The run '{folder.name}' is under way in another process.", "", "Stop it there, or wait."
        ) from None
    try:
        yield
    finally:
        lock.release()
