"""Edits as overlays: low-rank terms added to a module's output while it runs. The weights are never written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.tokens import EditRequest


@dataclass(frozen=True, eq=False)
class Delta:
    """An update of one down projection in factors: W_hat = W + U V, W in d_model × d_mlp orientation."""

    module: str
    U: Float[Tensor, "d_model rank"]
    V: Float[Tensor, "rank d_mlp"]

    def __call__(self, keys: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """What the update adds to the module's output, in the keys' precision."""
        U, V = (factor.to(keys.device, keys.dtype) for factor in (self.U, self.V))
        return (keys @ V.T) @ U.T

    def matrix(self) -> Float[Tensor, "d_model d_mlp"]:
        """Δ = U V in float64."""
        return self.U.double() @ self.V.double()

    def norm(self) -> float:
        """‖Δ‖_F, computed from the factors."""
        gram_u, gram_v = self.U.double().T @ self.U.double(), self.V.double() @ self.V.double().T
        return float(torch.sum(gram_u * gram_v).clamp(min=0).sqrt())


@dataclass(frozen=True)
class Step:
    """One evaluation of the loss while v* is optimised. Losses in nats; norms in units of the value space."""

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
    k_0, v_0: key and MLP output of the bare prompt, before the edit.
    base: fingerprint of the model that the edit was solved for; on: ids of the edits that were active then.
    corpus: what C was made from. extras: what the method wants to keep, e.g. δ and the prefixed prompts' keys.
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
