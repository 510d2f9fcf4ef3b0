"""Results that can be computed again, of all sessions together: bounded in number for each and in bytes for all.

The least recently used go first, whosever they are: a class of thirty takes no more memory than one visitor may.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import streamlit as st
import torch

EACH = 64  # results of one owner
BYTES = 512 * 2**20  # of all owners


def bytes_of(value: Any) -> int:
    """About how much memory a result takes: its arrays and texts, wherever they are within it, each counted once."""
    seen, total, left = set[int](), 0, [value]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, torch.nn.Module):
            continue
        seen.add(id(one))
        if isinstance(one, (torch.Tensor, np.ndarray)):
            total += int(one.nbytes)
        elif isinstance(one, (str, bytes, bytearray)):
            total += len(one)
        elif isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            left += one
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            left += [getattr(one, each.name) for each in dataclasses.fields(one)]
        else:
            total += sys.getsizeof(one)
    return total


class Shelf:
    """Results by owner and key."""

    def __init__(self, most_bytes: int = BYTES, each: int = EACH) -> None:
        self._most_bytes, self._each = most_bytes, each
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Hashable], tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def put(self, owner: str, key: Hashable, value: Any) -> None:
        """Keep a result; one that is larger than the shelf goes at once."""
        size = bytes_of(value)
        with self._lock:
            self._drop((owner, key))
            self._kept[owner, key] = value, size
            self.bytes += size
            mine = [place for place in self._kept if place[0] == owner]
            for place in mine[: max(0, len(mine) - self._each)]:
                self._drop(place)
            while self.bytes > self._most_bytes and self._kept:
                self._drop(next(iter(self._kept)))

    def get(self, owner: str, key: Hashable) -> Any:
        """The result, or None; it is kept longest now."""
        with self._lock:
            if (owner, key) not in self._kept:
                return None
            self._kept.move_to_end((owner, key))
            return self._kept[owner, key][0]

    def clear(self, owner: str) -> None:
        """Give back all that one owner has."""
        with self._lock:
            for place in [place for place in self._kept if place[0] == owner]:
                self._drop(place)

    def _drop(self, place: tuple[str, Hashable]) -> None:
        if place in self._kept:
            self.bytes -= self._kept.pop(place)[1]


@st.cache_resource(show_spinner=False)
def shelf() -> Shelf:
    return Shelf()
