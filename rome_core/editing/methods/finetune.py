"""Fine-tuning one matrix on the fact: the baselines FT, FT-M and FT+L (Meng et al. 2022, Zhu et al. 2020).

What is trained is Δ, an overlay that begins at zero; the weights themselves are never written. Where a family has a
bias beside W, it stays as it is: an edit is a change of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit, Step, make_edit
from rome_core.editing.method import EditContext, LayerConfig, Term
from rome_core.editing.second_moment import Moment
from rome_core.editing.teacher_forcing import Forced, forced_rows, precise
from rome_core.model.edits import dense_delta
from rome_core.model.hooks import Overlay
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.settings import setting

AUTHORS = "Meng et al. 2022, the authors' code"


@dataclass(frozen=True)
class FineTune(LayerConfig):
    """Hyper-parameters of fine-tuning one down projection with Adam."""

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "FT: fine-tuning one matrix; all of the target's tokens are trained behind the bare prompt."
    formula: ClassVar[str] = r"\Delta = \arg\min_\Delta -\frac{1}{T} \sum_t \log p_{W+\Delta}(o_t \mid x)"
    batches: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = False  # whether each token of the target sees those before it

    lr: float = setting(5e-4, "Learning rate", "Of Adam on Δ.", source=AUTHORS, bounds=(1e-6, 0.1, 1e-4))
    steps: int = setting(
        25,
        "Steps",
        "Evaluations of the loss; the last one is not followed by an update.",
        source=AUTHORS,
        bounds=(1, 500, 1),
    )
    stop_loss: float = setting(
        0.01,
        "Stop below",
        "The training ends once the target's NLL is below this.",
        source=AUTHORS,
        bounds=(0.0, 5.0, 0.01),
        unit="nats",
    )
    weight_decay: float = setting(
        0.0,
        "Weight decay",
        "Adam's: this times W + Δ is added to the gradient. It pulls the edited matrix to zero, not to W.",
        source=AUTHORS,
        bounds=(0.0, 1.0, 1e-4),
    )

    @property
    def bound(self) -> float | None:
        """How far every single weight may move; None: as far as it will."""
        return None

    def solve(self, on: EditContext, requests: Sequence[EditRequest]) -> Edit:
        """Adam on Δ, zero at first; the loss is the mean over the requests of their targets' mean NLL."""
        layer, lm = self.layer, on.lm
        self.check(lm, requests)
        assert layer is not None
        forced = forced_rows(lm, [(r.prompt.text, r.target_new) for r in requests], layer, on.edits)
        module = lm.down_projection(layer)
        W = precise(lm.matrix(module).detach())
        change, history = torch.zeros_like(W, requires_grad=True), list[Step]()
        adam = torch.optim.Adam([change], lr=self.lr)
        for index in on.track(range(self.steps), "Fine-tuning", self.steps):
            with torch.enable_grad():
                nll, first, p = losses(lm, forced, (module, lambda keys: keys @ change.T.to(keys)), self)
            decay = self.weight_decay / 2 * (W + change.detach()).square().sum().item()
            norm = change.detach().cpu().double().norm().item()
            limit = float("inf") if self.bound is None else self.bound * W.numel() ** 0.5
            rank = int((first[0] > first[0, forced.targets[0, 0]]).sum()) + 1
            step = Step(
                index=index,
                loss=nll.item() + decay,
                nll=nll.item(),
                kl=0.0,
                decay=decay,
                p_target=p,
                delta_norm=norm,
                limit=limit,
                rank=rank,
            )
            history.append(step)
            on.report(step)
            if step.nll < self.stop_loss or index == self.steps - 1:
                break
            (gradient,) = torch.autograd.grad(nll, [change])
            change.grad = gradient + self.weight_decay * (W + change.detach())
            adam.step()
            if self.bound is not None:
                with torch.no_grad():
                    change.clamp_(-self.bound, self.bound)
        return make_edit(lm, requests, self, (dense_delta(module, change.detach()),), on.edits, history=history)


@dataclass(frozen=True)
class FineTuneM(FineTune):
    name: ClassVar[str] = "ft-m"
    title: ClassVar[str] = "FT-M: fine-tuning one matrix; each token of the target is trained behind those before it."
    formula: ClassVar[str] = r"\Delta = \arg\min_\Delta -\frac{1}{T} \sum_t \log p_{W+\Delta}(o_t \mid x, o_{<t})"
    teacher_forced: ClassVar[bool] = True


@dataclass(frozen=True)
class FineTuneL(FineTune):
    """epsilon: half the edge of the box, in the units of the weights."""

    name: ClassVar[str] = "ft-l"
    title: ClassVar[str] = "FT+L: FT in an L∞ box: after each step every weight is put back to within ε of its value."
    formula: ClassVar[str] = (
        r"\Delta = \arg\min_{\lVert\Delta\rVert_\infty \le \varepsilon} "
        r"-\frac{1}{T} \sum_t \log p_{W+\Delta}(o_t \mid x)"
    )
    epsilon: float = setting(
        2e-3,
        "ε",
        "No weight may move farther than this.",
        source="5e-4 to 2e-3 by model in the authors' settings",
        bounds=(1e-6, 1.0, 1e-4),
    )

    @property
    def bound(self) -> float | None:
        return self.epsilon

    def terms(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Callable[[int], Moment | None]
    ) -> list[Term]:
        largest = max(float(delta.matrix().abs().max()) for delta in edit.deltas)
        return [
            Term(r"\lVert\Delta\rVert_\infty", largest, "the largest change of a weight"),
            Term(r"\varepsilon", self.epsilon, "how large it may be"),
        ]


def losses(
    lm: LanguageModel, forced: Forced, overlay: Overlay, config: FineTune
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch vocab"], float]:
    """The loss, the logits behind the bare prompts, and the mean p(target), teacher-forced whatever is trained."""
    log_p, first = forced.log_p(lm, [overlay])
    p = forced.mean(log_p.detach()).exp().mean().item()
    if not config.teacher_forced:  # every token at the prompt's last position, as published
        log_p = first.log_softmax(-1).gather(-1, forced.targets) * forced.counts
    return -forced.mean(log_p).mean(), first.detach(), p
