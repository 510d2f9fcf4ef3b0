"""How one weight differs from the base's: the difference itself, and what of it rounding alone may have made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rome_core.errors import ModelError


@dataclass(frozen=True, eq=False)
class Difference:
    """Δ of one weight, in the orientation that its module keeps, float64.

    floor: the largest singular value that rounding may have left in it.
    """

    weight: str
    delta: Tensor
    floor: float


def difference_of(weight: str, ours: Tensor, theirs: Tensor, base: str) -> Difference | None:
    """What a stored weight adds to the base's; None if they are equal. base: what the base is called.

    Raises ModelError where the two cannot be compared.
    """
    if ours.shape != theirs.shape:
        raise ModelError(
            f"'{weight}' has shape {tuple(theirs.shape)}; '{base}' has {tuple(ours.shape)} there.",
            "It is a checkpoint of another model.",
            "Load its base model first.",
        )
    if not bool(theirs.isfinite().all()):
        raise ModelError(
            f"'{weight}' holds numbers that are not finite.", "The file is broken.", "Save it again from its source."
        )
    # A file of lower precision is the base in that precision where nothing was edited.
    precision = theirs.dtype if torch.finfo(theirs.dtype).eps > torch.finfo(ours.dtype).eps else ours.dtype
    delta = theirs.double() - ours.to(precision).double()
    if not bool(delta.any()):
        return None
    both = (ours.double() ** 2 + theirs.double() ** 2).sqrt()  # the entries of either are rounded
    return Difference(weight, delta, noise_floor(both, torch.finfo(precision).eps))


def noise_floor(W: Tensor, eps: float) -> float:
    """The largest singular value that rounding W's entries may leave: errors of at most eps/2 of each entry, as if
    independent (the edge of the Marchenko–Pastur distribution), with a factor of two for safety."""
    rms = float(W.norm()) / W.numel() ** 0.5
    return eps * rms * sum(side**0.5 for side in W.shape)
