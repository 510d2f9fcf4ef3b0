"""Seeing a disabling edit before it happens (Yang et al. 2024, arXiv 2406.11263; Gupta et al., arXiv 2403.07175)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.diagnosis.calibration import Calibration, Thresholds, Verdict, calibration_for
from rome_core.diagnosis.ordinary_facts import Reference, ordinary_keys, reference
from rome_core.editing.edit import Edit
from rome_core.editing.method import KeyProducts
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.shared_search import policies, repolicy
from rome_core.errors import EditError
from rome_core.model.edits import Delta, relative_norms
from rome_core.model.language_model import Kept, LanguageModel
from rome_core.model.tokens import encode

# For a model that nobody calibrated: ‖Δ‖_F/‖W‖_F of ordinary edits of the default model is 0.03 to 0.25, of those that
# were first seen to break it 15 and more.
PROVISIONAL, CAUTION, DISABLING = "relative_F", 0.5, 2.0


@dataclass(frozen=True)
class Diagnosis:
    """Every quantity a verdict rests on, all known before the edit is applied.

    calibrated: whether the thresholds were fitted to measured edits of this model. quantity, score: what the verdict
    rests on; it changes at caution_at and disabling_at, and with everything else as it is when the denominator falls
    to caution_below and disabling_below.
    moment_key: of the C that judges; other_moment: whether the edit was solved with another one.
    k0_k0, k0_kstar, kstar_kstar: k_0ᵀC⁻¹k_0, k_0ᵀC⁻¹k*, k*ᵀC⁻¹k*. denominator: the one the update divides by.
    k0_norm, kstar_norm: ‖k_0‖, ‖k*‖. value_ratio: ‖δ‖/‖v_0‖.
    norm_F: ‖Δ‖_F; relative_F, relative_2: ‖Δ‖/‖W‖ in Frobenius and spectral norm.
    relative_C: ‖ΔC^½‖_F/‖WC^½‖_F, how far the module's output moves on general text (root mean square), in units of
    that output. relative_start: ‖Δk‖/‖Wk‖ at the first tokens of ordinary prompts, which every text has (mean).
    reference: the same quantities for ordinary facts (subject not first) at this layer.
    """

    verdict: Verdict
    explanation: str
    calibrated: bool
    quantity: str
    score: float
    caution_at: float
    disabling_at: float
    method: str
    layer: int
    moment_key: str
    other_moment: bool
    denominator: float
    caution_below: float
    disabling_below: float
    k0_k0: float
    k0_kstar: float
    kstar_kstar: float
    k0_norm: float
    kstar_norm: float
    cosine: float
    cosine_whitened: float
    subject_first: bool
    value_ratio: float
    norm_F: float
    relative_F: float
    relative_2: float
    relative_C: float
    relative_start: float
    reference: Reference

    @property
    def inverse_denominator(self) -> float:
        """1/denominator; one that is not positive counts as infinite."""
        return 1 / self.denominator if self.denominator > 0 else math.inf


@dataclass(frozen=True)
class Size:
    """How far an edit of any method moves the weights: ‖Δ‖_F, and ‖Δ‖_F/‖W‖_F by module, the largest one judged."""

    verdict: Verdict
    norm_F: float
    relative_F: float
    modules: dict[str, float]


def size_of(lm: LanguageModel, edit: Edit) -> Size:
    """The size of an edit and the verdict by size alone, which needs no key."""
    modules = relative_norms(lm, [edit])
    largest = max(modules.values(), default=0.0)
    return Size(thresholds_for(lm, "relative_F").verdict(largest), edit.delta_norm, largest, modules)


def thresholds_for(lm: LanguageModel, quantity: str) -> Thresholds:
    """The fitted thresholds of a quantity, or the provisional ones of ‖Δ‖_F/‖W‖_F."""
    found = calibration_of(lm)
    return found.thresholds[quantity] if found else Thresholds(CAUTION, DISABLING, math.nan, math.nan)


CALIBRATIONS = Kept[Calibration | None]("calibration", limit=1)


def calibration_of(lm: LanguageModel) -> Calibration | None:
    """The kept calibration of this very model, read once; None if nobody measured it."""
    return lm.remember(CALIBRATIONS, (), lambda: calibration_for(lm.fingerprint))


def has_key(edit: Edit) -> bool:
    """Whether the edit has one key and one denominator, by which it can be judged."""
    whole = edit.keys is not None and edit.keys.prompts is not None and edit.keys.delta is not None
    return edit.config.single_key and whole and len(edit.deltas) == 1


def diagnose(lm: LanguageModel, edit: Edit, moments: Mapping[int, Moment] | None = None) -> Diagnosis:
    """Judge an edit of a single key (the ROME family) from its keys, C and factors. Nothing is applied.

    moments: C by layer; None takes the kept one. The diagnosis says so where the edit was solved with another one.

        diagnose(lm, edit).verdict      # "safe" | "caution" | "disabling"
    """
    if not has_key(edit):
        raise EditError(
            f"Edits by '{edit.method}' have no single key to judge.", "", "Choose an edit by a ROME policy."
        )
    (delta,), (layer,), config = edit.deltas, edit.config.layers, edit.config
    moment = moments_for(lm, [layer], moments)[layer]
    k_0, k_mean = _own_keys(edit, layer)
    products, sizes = _products(k_0, k_mean, moment, config.conditioning), _sizes(lm, edit, delta, moment)
    denominator = config.denominator(edit, products)
    first = encode(lm.tokenizer, edit.requests[0].prompt).last_subject == 0
    cosine = float(torch.cosine_similarity(k_0, k_mean, dim=0))
    calibration = calibration_of(lm)
    quantity = calibration.quantity if calibration else PROVISIONAL
    scores = {**sizes, "inverse_denominator": 1 / denominator if denominator > 0 else math.inf}
    score, limits = scores[quantity], thresholds_for(lm, quantity)
    verdict = limits.verdict(score)
    solved_with = edit.moment_keys.get(layer, moment.key)
    assert edit.keys is not None and edit.keys.delta is not None
    return Diagnosis(
        verdict=verdict,
        explanation=_explain(verdict, first, cosine, config.explain_denominator(products), quantity, score)
        + (OTHER_C if solved_with != moment.key else ""),
        calibrated=calibration is not None,
        quantity=quantity,
        score=score,
        caution_at=limits.caution,
        disabling_at=limits.disabling,
        method=edit.method,
        layer=layer,
        moment_key=moment.key,
        other_moment=solved_with != moment.key,
        denominator=denominator,
        caution_below=abs(denominator) * score / limits.caution,
        disabling_below=abs(denominator) * score / limits.disabling,
        k0_norm=float(k_0.norm()),
        kstar_norm=float(k_mean.norm()),
        cosine=cosine,
        cosine_whitened=products.k0_kstar / max((products.k0_k0 * products.kstar_kstar) ** 0.5, 1e-300),
        subject_first=first,
        value_ratio=float(edit.keys.delta.norm() / edit.v_0.norm()),
        norm_F=delta.norm(),
        reference=reference(lm, moment, config.conditioning, config.prefixes_used),
        **asdict(products),
        **sizes,
    )


def _own_keys(edit: Edit, layer: int) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, " d_mlp"]]:
    """k_0 and the mean key of the prefixed prompts, float64."""
    assert edit.keys is not None and edit.keys.prompts is not None
    k_0, k_mean = edit.k_0.cpu().double(), edit.keys.prompts.keys.cpu().double().mean(0)
    if not all(bool(key.isfinite().all()) and bool(key.any()) for key in (k_0, k_mean)):
        raise EditError(
            f"A key of this edit at layer {layer} is zero or not finite.",
            "The quantities of a diagnosis divide by it.",
            "Solve the edit again, or choose another layer or subject.",
        )
    return k_0, k_mean


def _products(
    k_0: Float[Tensor, " d_mlp"], k_mean: Float[Tensor, " d_mlp"], moment: Moment, ridge: float
) -> KeyProducts:
    both = torch.stack([k_0, k_mean])
    gram = both @ moment.solve(both.T, ridge)
    return KeyProducts(float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1]))


def _sizes(lm: LanguageModel, edit: Edit, delta: Delta, moment: Moment) -> dict[str, float]:
    W, C = lm.matrix(delta.module).detach().cpu().double(), moment.C.double()
    start = ordinary_keys(lm, moment.layer, edit.config.prefixes_used).start
    return {
        "relative_F": delta.norm() / float(W.norm()),
        "relative_2": float(delta.singular_values()[0]) / float(torch.linalg.matrix_norm(W, 2)),
        "relative_C": delta.norm_under(C) / float(((W @ C) * W).sum().sqrt()),
        "relative_start": float((delta(start).norm(dim=1) / (start @ W.T).norm(dim=1)).mean()),
    }


MOVES = {
    "relative_F": "The weights would move by {:.3g} times their own Frobenius norm.",
    "relative_2": "In the worst direction the weights would move by {:.3g} times their own spectral norm.",
    "relative_C": "On general text the layer's output would move by {:.3g} times its own size.",
    "relative_start": "At the first token of every text the output would move by {:.3g} times its own size.",
    "inverse_denominator": "1/denominator would be {:.3g}.",
}


def _explain(verdict: Verdict, first: bool, cosine: float, cause: str, quantity: str, score: float) -> str:
    """Why the verdict is what it is, in the quantity that it rests on."""
    where = (
        f"The subject is the first token: its bare key is the attention sink's, {abs(cosine):.0%} aligned with the "
        "mean key. "
        if first
        else f"The bare key is {abs(cosine):.0%} aligned with the mean key. "
    )
    size = MOVES[quantity].format(score)
    end = {
        "safe": "",
        "caution": " Look at perplexity and neighbours after applying it.",
        "disabling": " Expect the model to break.",
    }[verdict]
    return where + cause + size + end


OTHER_C = " It was solved with another C than the one that judges it here."


def forecast(lm: LanguageModel, edit: Edit, moments: Mapping[int, Moment] | None = None) -> dict[str, Diagnosis]:
    """The diagnosis of the same request, δ and keys under every key policy, without optimising again."""
    used = moments_for(lm, edit.config.layers, moments)
    return {name: diagnose(lm, repolicy(lm, edit, name, used), used) for name in policies()}
