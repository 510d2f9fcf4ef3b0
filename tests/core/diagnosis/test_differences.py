"""Differences of one weight: exact where there are any, none where a file only rounded, and the floor of rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rome_core.diagnosis.differences import difference_of, noise_floor
from rome_core.errors import ModelError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_difference_is_exact() -> None:
    W, delta = random(6, 9), random(6, 9, seed=1)

    found = difference_of("w", W, W + delta, "base")

    assert found is not None and found.weight == "w"
    assert torch.equal(found.delta, (W + delta).double() - W.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_is_no_difference(dtype: torch.dtype) -> None:
    W = random(6, 9)

    assert difference_of("w", W, W.to(dtype), "base") is None
    assert difference_of("w", W.to(dtype), W.to(dtype), "base") is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_stays_below_the_floor(dtype: torch.dtype) -> None:
    """A rank-one change, written in the lower precision: its second singular value is rounding's."""
    W, delta = random(60, 90), random(60, 1, seed=1) @ random(1, 90, seed=2)

    found = difference_of("w", W, (W + delta).to(dtype), "base")

    assert found is not None
    values = torch.linalg.svdvals(found.delta)
    assert values[0] > found.floor > values[1]


def test_the_floor_grows_with_entries_precision_and_sides() -> None:
    W = torch.full((16, 4), 3.0)

    assert noise_floor(W, 0.5) == pytest.approx(0.5 * 3 * (4 + 2))


@pytest.mark.parametrize(
    ("theirs", "sentence"),
    [
        (random(9, 6), r"'w' has shape \(9, 6\); 'base' has \(6, 9\) there\. .* Load its base model first"),
        (torch.full((6, 9), torch.nan), r"'w' holds numbers that are not finite\. .* Save it again"),
    ],
)
def test_what_cannot_be_compared(theirs: Tensor, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        difference_of("w", random(6, 9), theirs, "base")
