"""Progress is injected: the silent default changes nothing, and any callable of the right form fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rome_core.progress import Track, silent

T = TypeVar("T")


def test_silent_hands_every_item_through_in_order_and_lazily() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(3):
            made.append(i)
            yield i

    tracked = iter(silent(items(), "anything", 3))

    assert next(tracked) == 0 and made == [0]
    assert list(tracked) == [1, 2]


def test_a_plain_function_is_a_track() -> None:
    def track(items: Iterable[T], label: str, total: int, /) -> Iterable[T]:
        return items

    assert isinstance(track, Track)
    assert isinstance(silent, Track)
    assert not isinstance(3, Track)
