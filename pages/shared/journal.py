"""What the server writes down of its work, for those who run it for others: a JSON object a line, on stderr.

With `ROME_EXPLORER_LOG=json`. Kinds of work, how they ended, how long they waited and took; of a fault its type and
place. Never what somebody typed, brought or was told: a message's own words are kept, what is filled into it is not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SETTING = "ROME_EXPLORER_LOG"
PAGES = Path(__file__).resolve().parents[1]

log = logging.getLogger("rome-explorer")


class AsJson(logging.Formatter):
    """A record as one line of JSON, without the values of its message and without an error's words."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.msg if isinstance(record.msg, str) and record.args else "a message",
        }
        if hasattr(record, "numbers"):  # of this module: its words are its own
            line |= {"event": record.getMessage(), **record.numbers}
        if record.exc_info and (error := record.exc_info[1]):
            line |= described(error)
        return json.dumps(line)


def described(error: BaseException) -> dict[str, str]:
    """A fault's type and where it was raised, and nothing that it says."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return {"error": type(error).__name__, "at": at}


def begin() -> None:
    """Let all that is logged in this process be JSON, where the setting says so. Called at every run of a page:
    Streamlit and others give handlers of their own to what they load later."""
    if os.environ.get(SETTING, "").strip().casefold() != "json":
        return
    if not any(isinstance(handler.formatter, AsJson) for handler in logging.root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(AsJson())
        logging.root.handlers[:] = [handler]
        logging.captureWarnings(True)
        log.setLevel(logging.INFO)
    for name in list(logging.root.manager.loggerDict):
        other = logging.getLogger(name)
        if other.handlers:
            other.handlers.clear()
            other.propagate = True


def note(event: str, **numbers: float | str) -> None:
    """Write down something that happened; `event` and texts among the numbers are words of the program."""
    log.info(event, extra={"numbers": numbers})


def note_work(work: Callable[..., Any], state: str, waited: float, seconds: float, error: Exception | None) -> None:
    """Write down how a piece of work ended. Times in seconds."""
    times = {"waited": round(waited, 3), "seconds": round(seconds, 3)}
    note("work", kind=kind_of(work), state=state, **times, **({} if error is None else described(error)))


def kind_of(work: Callable[..., Any]) -> str:
    """Of which page, or part of one, a piece of work is: by the file that it is written in."""
    while isinstance(work, partial):
        work = work.func
    code = getattr(work, "__code__", None)
    if code is None or not (path := Path(code.co_filename).resolve()).is_relative_to(PAGES):
        return "other"
    first, *rest = path.relative_to(PAGES).parts
    return rest[0] if first == "parts" else path.stem
