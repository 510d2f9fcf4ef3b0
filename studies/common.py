"""What the studies share: results as one JSON record a line, so that a stopped study goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rome_core.files import STUDIES

RESULTS = STUDIES


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a results file; a last line that was cut off by a kill is passed over."""
    if not path.exists():
        return []
    return list(_records(path.read_text(encoding="utf-8")))


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
