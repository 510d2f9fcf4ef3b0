"""Edits as overlays: low-rank terms added to a module's output while it runs. The weights are never written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import EditError

if TYPE_CHECKING:
    from rome_core.model.language_model import LanguageModel

E = TypeVar("E", bound="Update")
RANK_BELOW = 1e-6  # of the largest singular value


@dataclass(frozen=True, eq=False)
class Delta:
    """An update of one linear module, mostly a down projection, in factors: W_hat = W + U V, W such that y = W x."""

    module: str
    U: Float[Tensor, "d_model rank"]
    V: Float[Tensor, "rank d_mlp"]

    def __call__(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """What the update adds to the module's output, in the keys' precision, the cheaper way."""
        (d_model, rank), d_mlp = self.U.shape, self.V.shape[1]
        if rank * (d_model + d_mlp) > d_model * d_mlp:
            return keys @ self._whole.to(keys.device, keys.dtype).T
        U, V = (factor.to(keys.device, keys.dtype) for factor in self.balanced)
        return (keys @ V.T) @ U.T

    @cached_property
    def balanced(self) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank d_mlp"]]:
        """Factors of the same Δ for half precision, which ends at 65,504: U's columns and V's rows have equal norms, up
        to a factor of two. They are scaled by powers of two, so nothing is rounded."""
        U, V = self.U, self.V
        # Infinite or NaN where a factor is zero. The scale is a constant to whoever differentiates: it cancels.
        ratio = V.detach().float().norm(dim=1) / U.detach().float().norm(dim=0)
        exponent = (ratio.log2() / 2).round().nan_to_num(0.0, 0.0, 0.0)
        scale = exponent.exp2().to(U.dtype)
        return U * scale, V / scale[:, None]

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether every number of it is finite, in the precision that it is applied in, too."""
        return all(bool(factor.to(dtype).isfinite().all()) for factor in self.balanced)

    @cached_property
    def _whole(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.matrix().to(self.U.dtype)

    def matrix(self) -> Float[Tensor, "d_model d_mlp"]:
        """Δ = U V in float64, on the processor: Apple's GPUs have no float64."""
        return self.U.cpu().double() @ self.V.cpu().double()

    def norm(self) -> float:
        """‖Δ‖_F, computed from the factors."""
        U, V = self.U.cpu().double(), self.V.cpu().double()
        return float(torch.sum((U.T @ U) * (V @ V.T)).clamp(min=0).sqrt())

    def norm_under(self, C: Float[Tensor, "d_mlp d_mlp"]) -> float:
        """‖ΔC^½‖_F, the root of E‖Δk‖² over keys with second moment C."""
        U, V = self.U.cpu().double(), self.V.cpu().double()
        return float(((U.T @ U) * (V @ C.double() @ V.T)).sum().clamp(min=0).sqrt())

    def singular_values(self) -> Float[Tensor, " rank"]:
        """Of Δ, largest first, float64: those of the small matrix between the orthonormal factors of U and V."""
        small = torch.linalg.qr(self.U.cpu().double()).R @ torch.linalg.qr(self.V.cpu().double().T).R.T
        if not bool(small.isfinite().all()):
            return torch.full((len(small),), torch.nan, dtype=small.dtype)
        return torch.linalg.svdvals(small)

    def rank(self) -> int:
        """Numerical rank: singular values above a millionth of the largest, as factors keep the model's precision."""
        values = self.singular_values()
        return int((values > RANK_BELOW * values.max().clamp(min=1e-300)).sum())


def dense_delta(module: str, matrix: Float[Tensor, "out in"]) -> Delta:
    """An update that has no smaller factors: one of them is the identity, so every entry of Δ is kept as it is."""
    out, width = matrix.shape
    eye = torch.eye(min(out, width), dtype=matrix.dtype, device=matrix.device)
    return Delta(module, eye, matrix) if out <= width else Delta(module, matrix, eye)


@dataclass(frozen=True, eq=False)
class Update:
    """Updates of some matrices of one model. It does nothing until it is passed to a call: `edits=[update]`.

    base: fingerprint of the model that it is for.
    """

    deltas: tuple[Delta, ...]
    base: str

    @cached_property
    def id(self) -> str:
        """A short hash of the factors."""
        digest = hashlib.blake2b(digest_size=6)
        for delta in self.deltas:
            digest.update(delta.module.encode())
            for factor in (delta.U, delta.V):
                digest.update(factor.detach().cpu().contiguous().double().numpy().tobytes())
        return digest.hexdigest()

    @property
    def delta_norm(self) -> float:
        """Frobenius norm of the whole update, all modules together."""
        return sum(delta.norm() ** 2 for delta in self.deltas) ** 0.5

    def scaled(self: E, factor: float) -> E:
        """The same with its update multiplied: 0 is no edit, 1 the edit as solved."""
        return replace(self, deltas=tuple(replace(delta, U=delta.U * factor) for delta in self.deltas))


def factors(edits: Sequence[Update]) -> dict[str, Delta]:
    """All updates of some edits, one delta a module: low-rank terms on one module are stacked, as long as their rank
    stays below the matrix's own."""
    parts: dict[str, list[Delta]] = {}
    for delta in (delta for edit in edits for delta in edit.deltas):
        parts.setdefault(delta.module, []).append(delta)
    return {module: _stacked(module, deltas) for module, deltas in parts.items()}


def outputs_of(
    lm: LanguageModel, module: str, edits: Sequence[Update], keys: Float[Tensor, "d_mlp n"]
) -> Float[Tensor, "d_model n"]:
    """W K of a matrix with the updates of it, float64."""
    outputs = lm.matrix(module).detach().cpu().double() @ keys
    for delta in (delta for edit in edits for delta in edit.deltas if delta.module == module):
        outputs = outputs + delta.matrix().cpu() @ keys
    return outputs


@torch.no_grad()
def outputs_as_applied(
    lm: LanguageModel, module: str, edits: Sequence[Update], keys: Float[Tensor, "d_mlp n"]
) -> Float[Tensor, "d_model n"]:
    """W K as the model computes it: keys, matrix, overlays and their sum in its own precision; returned in float64."""
    W = lm.matrix(module).detach()
    rows = keys.T.to(W.device, W.dtype)
    outputs = rows @ W.T
    for delta in (delta for edit in edits for delta in edit.deltas if delta.module == module):
        outputs = outputs + delta(rows)
    return outputs.T.cpu().double()


def check_base(lm: LanguageModel, edits: Sequence[Update]) -> None:
    """Raise EditError unless the edits are for this model."""
    if any(edit.base != lm.fingerprint for edit in edits):
        raise EditError(
            f"This edit was solved for another model than '{lm.name}'.",
            "The same model in another precision counts as another one: its weights were rounded differently.",
            "Solve it again on this model, or load the model in the precision that the edit was solved in.",
        )


def relative_norms(lm: LanguageModel, edits: Sequence[Update]) -> dict[str, float]:
    """‖ΔW‖_F/‖W‖_F of all edits together, by module."""
    return {
        module: delta.norm() / float(lm.matrix(module).detach().cpu().double().norm())
        for module, delta in factors(edits).items()
    }


def _stacked(module: str, deltas: Sequence[Delta]) -> Delta:
    first = deltas[0]
    if len(deltas) == 1:
        return first
    if sum(delta.U.shape[1] for delta in deltas) < min(first.U.shape[0], first.V.shape[1]):
        U, V = torch.cat([d.U.to(first.U) for d in deltas], 1), torch.cat([d.V.to(first.V) for d in deltas], 0)
        return Delta(module, U, V)
    whole = first.matrix()
    for delta in deltas[1:]:
        whole += delta.matrix()
    return dense_delta(module, whole.to(first.U.dtype))
