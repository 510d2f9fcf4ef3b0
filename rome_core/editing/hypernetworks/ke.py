"""KE, KnowledgeEditor: a network that reads the edit gates the gradient (De Cao et al. 2021, arXiv 2104.08164)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rome_core.editing.hypernetworks.hypernetwork import Gradient, HyperConfig, HyperNetwork, Shapes
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel

MARGIN = 0.1  # nats of KL that training allows where nothing shall change, a third of it on neighbours
RATE = 0.5  # how fast the multiplier follows the constraint


class KeNetwork(HyperNetwork):
    """A bidirectional LSTM reads prompt and target; for each matrix it gives two rank-one masks and a scale.

    ΔW = σ(η)·(∇W ⊙ A + B) with A = γ softmax(α)ᵀ and B = β' softmax(β)ᵀ (section 3.2). γ and β' are zero at first, and
    so is the edit. Shrunk: one LSTM layer, and a bottleneck before the heads. The old answer is not read: it is what
    the model says itself. A's softmax is scaled to a mean of 1, so that γ has the size of a learning rate.
    """

    kind: ClassVar[str] = "ke"
    lr: ClassVar[float] = 3e-4

    def __init__(self, shapes: Shapes, d_text: int, hidden: int = 128, bottleneck: int = 64) -> None:
        super().__init__()
        self.size = {"d_text": d_text, "hidden": hidden, "bottleneck": bottleneck}
        self.index = {module: place for place, module in enumerate(shapes)}
        self.reader = nn.LSTM(d_text, hidden, bidirectional=True)
        self.narrow = nn.Linear(2 * hidden, bottleneck)
        heads = [nn.Linear(bottleneck, 2 * (out + width) + 1) for out, width in shapes.values()]
        with torch.no_grad():
            for head, (out, _) in zip(heads, shapes.values(), strict=True):
                head.weight[: 2 * out] = 0
                head.bias[: 2 * out] = 0
        self.heads = nn.ModuleList(heads)
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.ones(()))

    @staticmethod
    def sizes(lm: LanguageModel) -> dict[str, int]:
        return {"d_text": lm.d_model + 1}

    def updates(self, found: Sequence[Gradient], text: Float[Tensor, "tokens d_text"]) -> tuple[Delta, ...]:
        _, (last, _) = self.reader(text.to(self.narrow.weight.dtype)[:, None])
        read = torch.tanh(self.narrow(last[:, 0].flatten()))
        return tuple(self._update(gradient, self.heads[self.index[gradient.module]](read)) for gradient in found)

    def _update(self, gradient: Gradient, said: Float[Tensor, " all"]) -> Delta:
        """∇W ⊙ (a cᵀ) = Σ_t (a ⊙ δ_t)(c ⊙ x_t)ᵀ: the gated gradient stays in factors, and B adds one more."""
        out, width = gradient.delta.shape[1], gradient.x.shape[1]
        gamma, column, alpha, beta, eta = said.split([out, out, width, width, 1])
        U = torch.cat([(gradient.delta * gamma).T, column[:, None]], 1)
        V = torch.cat([gradient.x * width * alpha.softmax(0), beta.softmax(0)[None]])
        return Delta(gradient.module, eta.sigmoid() * U, V)

    def loss(self, nll: Tensor, kl: Tensor) -> Tensor:
        """The Lagrangian of: least NLL with a KL of at most the margin (equations 1 and 2)."""
        return nll + self.multiplier * (kl - MARGIN)

    def score(self, nll: float, kl: float) -> float:
        return nll + 10 * max(0.0, kl - MARGIN)

    def stepped(self, kl: float) -> None:
        """Ascent on the multiplier, which is never negative."""
        self.multiplier += RATE * (kl - MARGIN)
        self.multiplier.clamp_(min=0)


@dataclass(frozen=True)
class Ke(HyperConfig):
    name: ClassVar[str] = "ke"
    title: ClassVar[str] = (
        "KE: a trained network reads the edit and gates the gradient of each MLP matrix of the last three blocks."
    )
    formula: ClassVar[str] = r"\Delta_l = \sigma(\eta_l)\,(\nabla_{W_l}\mathcal L \odot A_l + B_l)"
    network: ClassVar[type[HyperNetwork]] = KeNetwork
