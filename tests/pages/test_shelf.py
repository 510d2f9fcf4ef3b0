"""Results are bounded in number for each visitor and in bytes for all; the least recently used go first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pages.shared.shelf import Shelf, bytes_of


@dataclass
class Result:
    states: torch.Tensor
    more: dict


def test_the_bytes_of_a_result_are_those_of_its_arrays_and_texts_once_each() -> None:
    states = torch.zeros(100, dtype=torch.float64)
    result = Result(states, {"again": [states, states], "table": np.zeros(10, dtype=np.float32), "text": "x" * 50})

    assert 800 + 40 + 50 <= bytes_of(result) <= 800 + 40 + 50 + 100
    assert bytes_of(torch.nn.Linear(100, 100)) == 0  # a model is everybody's
    loop: list = [states]
    loop.append(loop)
    assert bytes_of(loop) == 800


def test_one_owner_keeps_so_many_and_pushes_out_only_their_own() -> None:
    shelf = Shelf(each=3)
    shelf.put("b", 0, "of b")
    for number in range(3):
        shelf.put("a", number, number)
    assert shelf.get("a", 0) == 0  # used: 1 is the oldest now
    shelf.put("a", 3, 3)

    assert [shelf.get("a", number) for number in range(4)] == [0, None, 2, 3] and shelf.get("b", 0) == "of b"


def test_all_together_take_so_many_bytes_and_the_least_used_goes() -> None:
    shelf, hundred = Shelf(most_bytes=350), torch.zeros(100, dtype=torch.int8)
    for owner in "abc":
        shelf.put(owner, "x", hundred.clone())
    assert shelf.get("a", "x") is not None and shelf.bytes == 300
    shelf.put("d", "x", hundred.clone())

    assert shelf.get("b", "x") is None and shelf.get("a", "x") is not None and shelf.bytes == 300
    shelf.put("d", "x", hundred.clone())  # in place of the former
    assert shelf.bytes == 300
    shelf.clear("d")
    assert shelf.bytes == 200 and shelf.get("d", "x") is None
    shelf.put("a", "large", torch.zeros(400, dtype=torch.int8))
    assert shelf.get("a", "large") is None and shelf.bytes == 0
