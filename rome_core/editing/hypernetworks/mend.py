"""MEND: a network maps the factors of a gradient to those of a better one (Mitchell et al. 2022, arXiv 2110.11309)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rome_core.editing.hypernetworks.hypernetwork import Gradient, HyperConfig, HyperNetwork, Shapes
from rome_core.model.edits import Delta

C_EDIT = 0.1  # weight of the edit's loss against locality (Mitchell et al. 2022, section 3.2)


class Residual(nn.Module):
    """z + max(0, s_l ⊙ (U V z + b) + o_l): U, V, b are shared by all matrices of one shape, s_l and o_l belong to one.

    With U = 0, b = 0, o = 0 it is the identity (equation 3; its second layer has no b, which o_l makes superfluous).
    """

    def __init__(self, width: int, rank: int, n: int) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.zeros(width, rank))
        self.V = nn.Parameter(torch.randn(rank, width) * (2 / (rank + width)) ** 0.5)
        self.b = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(n, width))
        self.shift = nn.Parameter(torch.zeros(n, width))

    def forward(self, z: Float[Tensor, "tokens width"], index: int) -> Float[Tensor, "tokens width"]:
        inner = self.scale[index] * ((z @ self.V.T) @ self.U.T + self.b) + self.shift[index]
        return z + inner.clamp(min=0)  # unlike relu, clamp has a gradient at 0, where the training begins


class MendNetwork(HyperNetwork):
    """Two residual layers for each shape of matrix, and a learned step size α_l for each matrix.

    The factors go in normalised, entry by entry, with the mean and deviation of the training facts, and come out
    scaled back: at first an edit is one plain gradient step, W − α ∇W.
    """

    kind: ClassVar[str] = "mend"
    lr: ClassVar[float] = 2e-4

    def __init__(self, shapes: Shapes, rank: int = 128, alpha: float = 0.01) -> None:
        super().__init__()
        self.size = {"rank": rank}
        kinds = sorted(set(shapes.values()))
        self.place: dict[str, tuple[int, int]] = {}
        for kind, shape in enumerate(kinds):
            members = [module for module, own in shapes.items() if own == shape]
            self.place |= {module: (kind, index) for index, module in enumerate(members)}
        counts = [sum(kind == own for own, _ in self.place.values()) for kind in range(len(kinds))]
        self.layers = nn.ModuleList(
            nn.ModuleList(Residual(sum(shape), rank, n) for _ in range(2))
            for shape, n in zip(kinds, counts, strict=True)
        )
        self.log_alpha = nn.ParameterList(torch.full((n,), math.log(alpha)) for n in counts)
        for kind, (shape, n) in enumerate(zip(kinds, counts, strict=True)):
            self.register_buffer(f"mean_{kind}", torch.zeros(n, sum(shape)))
            self.register_buffer(f"deviation_{kind}", torch.ones(n, sum(shape)))

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """The step sizes learn faster: they are logarithms (the authors give them a rate of their own, too)."""
        steps = list(self.log_alpha)
        others = [p for p in self.parameters() if not any(p is step for step in steps)]
        return [{"params": others, "lr": lr}, {"params": steps, "lr": 50 * lr}]

    def prepare(self, found: Sequence[Sequence[Gradient]]) -> None:
        """Mean and deviation of every entry of (x, δ) over the tokens of some training facts."""
        for module, (kind, index) in self.place.items():
            rows = torch.cat([torch.cat([g.x, g.delta], 1) for fact in found for g in fact if g.module == module])
            self.get_buffer(f"mean_{kind}")[index] = rows.mean(0)
            self.get_buffer(f"deviation_{kind}")[index] = rows.std(0, correction=0).clamp(min=1e-8)

    def updates(self, found: Sequence[Gradient], text: Float[Tensor, "tokens d_text"]) -> tuple[Delta, ...]:
        return tuple(self._update(gradient) for gradient in found)

    def _update(self, gradient: Gradient) -> Delta:
        kind, index = self.place[gradient.module]
        mean = self.get_buffer(f"mean_{kind}")[index]
        deviation = self.get_buffer(f"deviation_{kind}")[index]
        z = (torch.cat([gradient.x, gradient.delta], 1).to(mean.dtype) - mean) / deviation
        layers = self.layers[kind]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            z = layer(z, index)
        x, delta = (mean + deviation * z).split([gradient.x.shape[1], gradient.delta.shape[1]], 1)
        return Delta(gradient.module, -self.log_alpha[kind][index].exp() * delta.T, x)

    def loss(self, nll: Tensor, kl: Tensor) -> Tensor:
        """Equation 4."""
        return C_EDIT * nll + kl

    def score(self, nll: float, kl: float) -> float:
        return C_EDIT * nll + kl


@dataclass(frozen=True)
class Mend(HyperConfig):
    name: ClassVar[str] = "mend"
    title: ClassVar[str] = (
        "MEND: a trained network turns the gradient of each MLP matrix of the last three blocks into an update."
    )
    formula: ClassVar[str] = (
        r"\Delta_l = -\alpha_l \sum_t \tilde\delta_t\, \tilde x_t^\top,\quad (\tilde x, \tilde\delta) = g(x, \delta)"
    )
    batches: ClassVar[bool] = True
    network: ClassVar[type[HyperNetwork]] = MendNetwork
