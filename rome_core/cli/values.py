"""Values that are typed behind an option, each read and checked where it enters; argparse says what is wrong."""

from __future__ import annotations

import codecs
import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rome_core.editing.methods import METHODS
from rome_core.settings import read_value


def of_field(config: Any, name: str) -> Callable[[str], Any]:
    """Values of a settings field, within its range."""
    return partial(_field, config, name)


def _field(config: Any, name: str, text: str) -> Any:
    try:
        return read_value(config, name, text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Whole numbers from low to high."""
    return partial(_whole, low, high)


def _whole(low: int, high: int | None, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        wanted = f"of {low} or more" if high is None else f"from {low} to {high:,}"
        raise ArgumentTypeError(f"a whole number {wanted} is needed, not '{text[:80]}'")
    return value


def amount(text: str) -> float:
    """A number of 0 or more; "inf" is without end."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ArgumentTypeError(f"a number of 0 or more is needed, not '{text[:80]}'")
    return value


def gpus(text: str) -> float:
    """GPUs of a worker: a share of one, or whole ones."""
    value = amount(text)
    if not math.isfinite(value) or (value > 1 and value != int(value)):
        raise ArgumentTypeError(f"a share of one GPU or whole ones are needed, not '{text[:80]}'")
    return value


def records(text: str) -> int | None:
    """How many facts; -1 or "all" is all of them, None."""
    if text.strip() in ("-1", "all"):
        return None
    try:
        return whole(1)(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"a whole number of 1 or more is needed, or -1 for all, not '{text[:80]}'") from None


def layers(text: str) -> tuple[int, ...]:
    """Numbers of layers with commas between them, each once."""
    try:
        return tuple(dict.fromkeys(whole(0)(part) for part in text.split(",") if part.strip()))
    except ArgumentTypeError:
        raise ArgumentTypeError(f"numbers of layers are needed, e.g. 3,5,7; not '{text[:80]}'") from None


def method_names(text: str) -> tuple[str, ...]:
    """Names of methods with commas between them, each once; "all" is every one."""
    if text.strip() == "all":
        return tuple(METHODS)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in METHODS]:
        raise ArgumentTypeError(f"there is no method '{unknown[0][:80]}'; choose of {', '.join(METHODS)}")
    if not names:
        raise ArgumentTypeError(f"at least one method is needed: {', '.join(METHODS)}")
    return names


def device(text: str) -> str:
    """A device that this machine has, or "auto"."""
    there = devices()
    if text not in ("auto", *there):
        raise ArgumentTypeError(f"this machine has no device '{text[:80]}'; it has {', '.join(there)} (or auto)")
    return text


def devices() -> list[str]:
    """The devices of this machine as torch calls them."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return ["cpu"]
    return ["cpu", found.type, *(f"{found.type}:{i}" for i in range(torch.accelerator.device_count()))]


def encoding(text: str) -> str:
    """The name of an encoding that Python can read."""
    try:
        codecs.lookup(text)
    except (LookupError, ValueError):
        raise ArgumentTypeError(f"there is no encoding '{text[:80]}'; e.g. utf-8, utf-16 or windows-1252") from None
    return text


def cluster(text: str) -> str:
    """The address of a Ray cluster."""
    if not text.strip():
        raise ArgumentTypeError('an address is needed, e.g. 10.0.0.1:6379, or "auto" for the cluster of this machine')
    return text.strip()


# --------------------------------------------------------------------------------------------------------------- paths


def file(text: str) -> Path:
    """A file that is there."""
    path = _path(text)
    if not path.is_file():
        raise ArgumentTypeError(f"'{path}' is a folder, not a file" if path.is_dir() else f"there is no file '{path}'")
    return path


def folder(text: str) -> Path:
    """A folder that is there."""
    path = _path(text)
    if not path.is_dir():
        raise ArgumentTypeError(
            f"'{path}' is a file, not a folder" if path.exists() else f"there is no folder '{path}'"
        )
    return path


def folder_to_write(text: str) -> Path:
    """A folder that is there or can be made."""
    path = _path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"'{path}' is a file; give a folder")
    return _writable(path)


def file_to_write(text: str) -> Path:
    """A file that is there or can be made, with its folder."""
    path = _path(text)
    if path.is_dir() or not path.name:
        raise ArgumentTypeError(f"'{path}' is a folder; give a file")
    return _writable(path)


def _path(text: str) -> Path:
    """A path with ~ expanded."""
    if not text.strip():
        raise ArgumentTypeError("a path is needed")
    try:
        path = Path(text).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:  # too long, no permission, an unknown ~user, a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArgumentTypeError(f"'{text[:80]}' is no path that can be used: {reason}") from None
    return path


def _writable(path: Path) -> Path:
    """The path, if it or the nearest folder above it that is there can be written into."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if there != path.absolute() and not there.is_dir():
        raise ArgumentTypeError(f"'{there}' is a file, so nothing can be in it")
    if not os.access(there, os.W_OK):
        raise ArgumentTypeError(f"'{there}' cannot be written to")
    return path
