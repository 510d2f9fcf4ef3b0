"""Seeing a disabling edit before it happens (Yang et al. 2024, arXiv 2406.11263; Gupta et al., arXiv 2403.07175)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.diagnosis.calibration import Calibration, Thresholds, Verdict, calibration_for
from rome_core.diagnosis.inspection import weight_of
from rome_core.diagnosis.ordinary_facts import Reference, ordinary_keys, reference
from rome_core.editing.methods.rome import POLICIES, repolicy
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.errors import EditError
from rome_core.model.edits import Delta, Edit
from rome_core.model.language_model import LanguageModel
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
    names = list(dict.fromkeys(delta.module for delta in edit.deltas))
    modules = {}
    for name in names:
        W = weight_of(lm, name).double().cpu()
        whole = torch.stack([delta.matrix().cpu() for delta in edit.deltas if delta.module == name]).sum(0)
        modules[name] = float(whole.norm() / W.norm())
    largest = max(modules.values(), default=0.0)
    return Size(thresholds_for(lm, "relative_F").verdict(largest), edit.delta_norm, largest, modules)


def thresholds_for(lm: LanguageModel, quantity: str) -> Thresholds:
    """The fitted thresholds of a quantity, or the provisional ones of ‖Δ‖_F/‖W‖_F."""
    found = calibration_of(lm)
    return found.thresholds[quantity] if found else Thresholds(CAUTION, DISABLING, math.nan, math.nan)


def calibration_of(lm: LanguageModel) -> Calibration | None:
    """The kept calibration of this very model, read once; None if nobody measured it."""
    if "calibration" not in lm.memo:
        lm.memo["calibration"] = calibration_for(lm.fingerprint)
    return lm.memo["calibration"]


def has_key(edit: Edit) -> bool:
    """Whether the edit is of the ROME family: one key, one denominator."""
    return "keys" in edit.extras and len(edit.deltas) == 1


def diagnose(lm: LanguageModel, edit: Edit, moments: Mapping[int, Moment] | None = None) -> Diagnosis:
    """Judge an edit of the ROME family from its keys, C and factors. Nothing is applied.

    diagnose(lm, edit).verdict      # "safe" | "caution" | "disabling"
    """
    if not has_key(edit):
        raise EditError(
            f"Edits by '{edit.method}' have no single key to judge.", "", "Choose an edit by a ROME policy."
        )
    (delta,), layer, ridge = edit.deltas, edit.config.layer, edit.config.ridge
    moment = moments_for(lm, [layer], moments)[layer]
    keys, sizes = _key_quantities(edit, moment, ridge), _sizes(lm, edit, delta, moment)
    k0_k0, k0_kstar, kstar_kstar = (keys[name] for name in ("k0_k0", "k0_kstar", "kstar_kstar"))
    own = float(delta.V[0].double().cpu() @ edit.k_0.double().cpu())  # n-rome's: its keys are measured by another C
    denominator = {"rome": k0_kstar, "p-rome": k0_k0, "n-rome": own}.get(edit.method, kstar_kstar)
    first = encode(lm.tokenizer, edit.requests[0].prompt).last_subject == 0
    calibration = calibration_of(lm)
    quantity = calibration.quantity if calibration else PROVISIONAL
    scores = {**sizes, "inverse_denominator": 1 / denominator if denominator > 0 else math.inf}
    score, limits = scores[quantity], thresholds_for(lm, quantity)
    verdict = limits.verdict(score)
    return Diagnosis(
        verdict=verdict,
        explanation=_explain(
            verdict, edit.method, first, keys["cosine"], denominator, kstar_kstar, sizes["relative_F"]
        ),
        calibrated=calibration is not None,
        quantity=quantity,
        score=score,
        caution_at=limits.caution,
        disabling_at=limits.disabling,
        method=edit.method,
        layer=layer,
        denominator=denominator,
        caution_below=abs(denominator) * score / limits.caution,
        disabling_below=abs(denominator) * score / limits.disabling,
        subject_first=first,
        value_ratio=float(edit.extras["delta"].norm() / edit.v_0.norm()),
        norm_F=delta.norm(),
        reference=reference(lm, moment, ridge, edit.config.prefixes or ("",)),
        **keys,
        **sizes,
    )


def _key_quantities(edit: Edit, moment: Moment, ridge: float) -> dict[str, float]:
    k_0, k_mean = edit.k_0.double().cpu(), edit.extras["keys"].double().cpu().mean(0)
    both = torch.stack([k_0, k_mean])
    if not bool(both.isfinite().all()) or not bool(both.any(1).all()):
        raise EditError(
            f"A key of this edit at layer {moment.layer} is zero or not finite.",
            "The quantities of a diagnosis divide by it.",
            "Solve the edit again, or choose another layer or subject.",
        )
    gram = both @ moment.solve(both.T, ridge)
    k0_k0, k0_kstar, kstar_kstar = float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1])
    return {
        "k0_k0": k0_k0,
        "k0_kstar": k0_kstar,
        "kstar_kstar": kstar_kstar,
        "k0_norm": float(k_0.norm()),
        "kstar_norm": float(k_mean.norm()),
        "cosine": float(torch.cosine_similarity(k_0, k_mean, dim=0)),
        "cosine_whitened": k0_kstar / max((k0_k0 * kstar_kstar) ** 0.5, 1e-300),
    }


def _sizes(lm: LanguageModel, edit: Edit, delta: Delta, moment: Moment) -> dict[str, float]:
    W, C = weight_of(lm, delta.module).double().cpu(), moment.C.double()
    start = ordinary_keys(lm, moment.layer, edit.config.prefixes or ("",)).start
    return {
        "relative_F": delta.norm() / float(W.norm()),
        "relative_2": spectral_norm(delta) / float(torch.linalg.matrix_norm(W, 2)),
        "relative_C": _rms(*_factors(delta), C) / float(((W @ C) * W).sum().sqrt()),
        "relative_start": float((delta(start).norm(dim=1) / (start @ W.T).norm(dim=1)).mean()),
    }


def _factors(delta: Delta) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank d_mlp"]]:
    return delta.U.double().cpu(), delta.V.double().cpu()


def spectral_norm(delta: Delta) -> float:
    """‖U V‖_2 from the factors: their QR factors leave a matrix of the size of the rank."""
    U, V = _factors(delta)
    small = torch.linalg.qr(U).R @ torch.linalg.qr(V.T).R.T
    return float(torch.linalg.matrix_norm(small, 2)) if bool(small.isfinite().all()) else math.nan


def _rms(U: Float[Tensor, "d_model rank"], V: Float[Tensor, "rank d_mlp"], C: Float[Tensor, "d_mlp d_mlp"]) -> float:
    """‖U V C^½‖_F, the root of E‖Δk‖²."""
    return float(((U.T @ U) * (V @ C @ V.T)).sum().clamp(min=0).sqrt())


def _explain(
    verdict: Verdict, method: str, first: bool, cosine: float, denominator: float, full: float, relative: float
) -> str:
    where = (
        f"The subject is the first token: its bare key is the attention sink's, {abs(cosine):.0%} aligned with the "
        "mean key. "
        if first
        else f"The bare key is {abs(cosine):.0%} aligned with the mean key. "
    )
    cause = (
        f"The update divides by k_0ᵀC⁻¹k* = {denominator:.3g}, where k*ᵀC⁻¹k* would be {full:.3g}. "
        if method == "rome"
        else ""
    )
    size = f"The weights would move by {relative:.3g} times their own norm."
    end = {
        "safe": "",
        "caution": " Look at perplexity and neighbours after applying it.",
        "disabling": " Expect the model to break.",
    }[verdict]
    return where + cause + size + end


def forecast(lm: LanguageModel, edit: Edit, moments: Mapping[int, Moment] | None = None) -> dict[str, Diagnosis]:
    """The diagnosis of the same request, δ and keys under every key policy, without optimising again."""
    moment = moments_for(lm, [edit.config.layer], moments)
    return {p.name: diagnose(lm, repolicy(lm, edit, p.name, moment), moment) for p in POLICIES}
