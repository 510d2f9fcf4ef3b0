"""Edits as overlays: low-rank terms added to a module's output while it runs. The weights are never written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import EditError
from rome_core.model.tokens import EditRequest

if TYPE_CHECKING:
    from rome_core.model.language_model import LanguageModel

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
        U, V = (factor.to(keys.device, keys.dtype) for factor in (self.U, self.V))
        return (keys @ V.T) @ U.T

    @cached_property
    def _whole(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.matrix().to(self.U.dtype)

    def matrix(self) -> Float[Tensor, "d_model d_mlp"]:
        """Δ = U V in float64."""
        return self.U.double() @ self.V.double()

    def norm(self) -> float:
        """‖Δ‖_F, computed from the factors."""
        gram_u, gram_v = self.U.double().T @ self.U.double(), self.V.double() @ self.V.double().T
        return float(torch.sum(gram_u * gram_v).clamp(min=0).sqrt())

    def norm_under(self, C: Float[Tensor, "d_mlp d_mlp"]) -> float:
        """‖ΔC^½‖_F, the root of E‖Δk‖² over keys with second moment C."""
        U, V = self.U.double().cpu(), self.V.double().cpu()
        return float(((U.T @ U) * (V @ C.double() @ V.T)).sum().clamp(min=0).sqrt())

    def singular_values(self) -> Float[Tensor, " rank"]:
        """Of Δ, largest first, float64: those of the small matrix between the orthonormal factors of U and V."""
        small = torch.linalg.qr(self.U.double().cpu()).R @ torch.linalg.qr(self.V.double().cpu().T).R.T
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


@dataclass(frozen=True)
class Step:
    """One evaluation of the loss while v* is optimised. Losses in nats; norms in units of the value space.

    Methods that train the weights themselves put ‖Δ‖_F for ‖δ‖, and an infinite limit where nothing bounds it.
    """

    index: int
    loss: float
    nll: float
    kl: float
    decay: float
    p_target: float  # mean over the prompts of the geometric-mean probability of the target's tokens
    delta_norm: float  # ‖δ‖
    limit: float  # the clamp, clamp·‖v_0‖
    rank: int  # place of the target's first token among all tokens after the bare prompt, 1 = the model's answer


@dataclass(frozen=True, eq=False)
class Edit:
    """A solved edit. It does nothing until it is passed to a call: `generate(lm, text, edits=[edit])`.

    k_star, v_star: the key and the value that the update associates, d_mlp and d_model (one row a request in batches).
    k_0, v_0: key and MLP output of the bare prompt, before the edit. Methods without keys leave these four empty.
    base: fingerprint of the model that the edit was solved for; on: ids of the edits that were active then.
    corpus: what C was made from, or the hypernetwork was trained on. extras: what the method wants to keep, e.g. δ and
    the prefixed prompts' keys.
    """

    requests: tuple[EditRequest, ...]
    method: str
    config: Any
    deltas: tuple[Delta, ...]
    k_star: Float[Tensor, "*n d_mlp"]
    v_star: Float[Tensor, "*n d_model"]
    k_0: Float[Tensor, "*n d_mlp"]
    v_0: Float[Tensor, "*n d_model"]
    history: tuple[Step, ...]
    base: str
    on: tuple[str, ...] = ()
    corpus: str = ""
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
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

    def scaled(self, factor: float) -> Edit:
        """The same edit with its update multiplied: 0 is no edit, 1 the edit as solved."""
        return replace(self, deltas=tuple(replace(delta, U=delta.U * factor) for delta in self.deltas))


def factors(edits: Sequence[Edit]) -> dict[str, Delta]:
    """All updates of some edits, one delta a module: low-rank terms on one module are stacked, as long as their rank
    stays below the matrix's own."""
    parts: dict[str, list[Delta]] = {}
    for delta in (delta for edit in edits for delta in edit.deltas):
        parts.setdefault(delta.module, []).append(delta)
    return {module: _stacked(module, deltas) for module, deltas in parts.items()}


def relative_norms(lm: LanguageModel, edits: Sequence[Edit]) -> dict[str, float]:
    """‖ΔW‖_F/‖W‖_F of all edits together, by module."""
    return {
        module: delta.norm() / float(lm.matrix(module).detach().double().norm())
        for module, delta in factors(edits).items()
    }


def _stacked(module: str, deltas: Sequence[Delta]) -> Delta:
    first = deltas[0]
    if len(deltas) == 1:
        return first
    if sum(delta.U.shape[1] for delta in deltas) < min(first.U.shape[0], first.V.shape[1]):
        return Delta(module, torch.cat([d.U for d in deltas], 1), torch.cat([d.V for d in deltas], 0))
    whole = first.matrix()
    for delta in deltas[1:]:
        whole += delta.matrix()
    return dense_delta(module, whole.to(first.U.dtype))


def merged(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The same model from few overlays: one edit a method, one delta a module. A forward pass under a hundred
    rank-one overlays takes a multiple of the time.

    Requests, keys and what a later edit of the method needs of the earlier ones (`extras`, side by side) are kept; the
    searches are not. `on` names the edits that were merged.
    """
    if len({edit.base for edit in edits}) > 1:
        raise EditError("Edits of different models cannot be merged.", "", "Merge those of one model.")
    groups: dict[str, list[Edit]] = {}
    for edit in edits:
        groups.setdefault(edit.method, []).append(edit)
    return tuple(_one(group) if len(group) > 1 else group[0] for group in groups.values())


def _one(edits: Sequence[Edit]) -> Edit:
    last = edits[-1]
    vectors: dict[str, Any] = {
        name: torch.cat([torch.atleast_2d(getattr(edit, name)) for edit in edits])
        for name in ("k_star", "v_star", "k_0", "v_0")
    }
    names = dict.fromkeys(name for edit in edits for name in edit.extras if name.startswith("keys_"))
    return replace(
        last,
        requests=tuple(request for edit in edits for request in edit.requests),
        deltas=tuple(factors(edits).values()),
        history=(),
        on=tuple(edit.id for edit in edits),
        extras={name: torch.cat([edit.extras[name] for edit in edits if name in edit.extras], 1) for name in names},
        **vectors,
    )
