"""Progress as an injected iterable: the library never prints, the caller decides what is shown and when to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


class Stopped(Exception):
    """Raised inside a tracked loop once somebody wants the work to end."""


@runtime_checkable
class Track(Protocol):
    """Wraps the items of a long loop. `tqdm.tqdm` fits as it is; raising inside the loop cancels the work."""

    def __call__(self, items: Iterable[T], label: str, total: int, /) -> Iterable[T]: ...


def silent(items: Iterable[T], label: str, total: int, /) -> Iterator[T]:
    """The default: no progress shown."""
    return iter(items)
