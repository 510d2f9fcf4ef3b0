"""Where files are, how they are written (nothing by halves) and how text is read from them (no letter guessed)."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import platform
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

from rome_core.errors import DataError

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
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula has an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def _inert(cell: object) -> object:
    """A cell that is no formula; numbers stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


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


# ---------------------------------------------------------------------------------------------------------------- text

WINDOWS = "windows-1252"  # what Excel writes on Windows as "CSV"
ENCODINGS = ("utf-8", WINDOWS, "utf-16")  # that a user may name
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class EncodingError(DataError):
    """A text is in none of the encodings that can be told from its bytes; it can be read if Windows-1252 is named."""


def decode(data: bytes, name: str = "the file", encoding: str | None = None) -> str:
    """A file's text, exactly, without its byte order mark; no letter is ever replaced.

    encoding: one that the user names; without one UTF-8, UTF-16 and UTF-32 are told from the bytes. `name` is how
    messages call the file. Raises EncodingError with what the text would read as in Windows-1252, DataError if the
    bytes are no text.
    """
    if encoding is not None:
        return _strictly(data, name, encoding)
    for mark, marked in _MARKS:
        if data.startswith(mark):
            return _strictly(data, name, marked)
    if b"\0" in data:  # UTF-16 without its mark has a zero beside every Latin letter
        even, odd = data[::2].count(0), data[1::2].count(0)
        return _strictly(data, name, "utf-16-be" if even > odd else "utf-16-le")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        word = _word_at(data, error.start)
        raise EncodingError(
            f"'{name}' is not UTF-8: the byte {data[error.start]:#04x} in line {line} is no letter there.",
            f"In Windows-1252 it would read '{word}'." if word else "",
            "If that is right, choose the encoding Windows-1252; else save the file as UTF-8.",
        ) from None


def _strictly(data: bytes, name: str, encoding: str) -> str:
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{name}' is not {encoding} text (byte {error.start + 1}).",
            "",
            "Save it as UTF-8, or choose its encoding.",
        ) from None
    except (LookupError, ValueError):  # no name at all, one with a zero in it, a codec that is none of texts
        raise DataError(
            f"There is no encoding '{encoding}'.", "", f"Choose of {', '.join(ENCODINGS)}, or leave it out."
        ) from None
    if "\0" in text:
        raise DataError(f"'{name}' is no text.", "", "Give a file that a text editor can open.")
    return text


def _word_at(data: bytes, at: int) -> str:
    """The words around a byte, as Windows-1252 has them; empty where it has no letter for a byte."""
    line = data[data.rfind(b"\n", 0, at) + 1 :].split(b"\n")[0]
    place = at - (data.rfind(b"\n", 0, at) + 1)
    try:
        return line[max(0, place - 12) : place + 12].decode(WINDOWS).strip()
    except UnicodeDecodeError:
        return ""


def read_text(path: str | Path, encoding: str | None = None) -> str:
    """The text of a file. Raises DataError where there is none that can be read."""
    source = expanded(path)
    return decode(read_bytes(source), source.name, encoding)


def read_bytes(path: str | Path) -> bytes:
    """What a file holds. Raises DataError with the reason in words."""
    source = expanded(path)
    try:
        return source.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file '{source}'.", "", "Check the spelling.") from None
    except IsADirectoryError:
        raise DataError(f"'{source}' is a folder.", "", "Name a file in it.") from None
    except OSError as error:
        raise DataError(f"'{source}' cannot be read.", f"{error.strerror}.", "Choose another file.") from None
    except ValueError:  # a zero or half a letter in it
        raise DataError(f"{str(source)!r} is no path.", "", "Check the spelling.") from None
