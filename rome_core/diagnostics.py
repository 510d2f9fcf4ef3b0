"""Seeing a disabling edit before it happens (Yang et al. 2024, arXiv 2406.11263; Gupta et al., arXiv 2403.07175)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.datasets import load_facts
from rome_core.edits import Delta, Edit
from rome_core.errors import EditError
from rome_core.hooks import Point, activations, batch_of
from rome_core.inspection import weight_of
from rome_core.methods.rome import POLICIES, repolicy
from rome_core.model import LanguageModel
from rome_core.moment import Moment, moments_for
from rome_core.tokens import encode

Verdict = Literal["safe", "caution", "disabling"]

# ‖Δ‖/‖W‖ at which a verdict changes. Provisional: ordinary edits of the default model lie at 0.03 to 0.25 and those
# that were seen to break it at 15 and more.
CAUTION, DISABLING = 0.5, 2.0
REFERENCE_FACTS = 40


@dataclass(frozen=True)
class Diagnosis:
    """Every quantity a verdict rests on, all known before the edit is applied.

    k0_k0, k0_kstar, kstar_kstar: k_0ᵀC⁻¹k_0, k_0ᵀC⁻¹k*, k*ᵀC⁻¹k*. denominator: the one the update divides by.
    caution_below, disabling_below: denominators at which the verdict changes with everything else as it is.
    value_ratio: ‖δ‖/‖v_0‖. norm_F: ‖Δ‖_F; relative_F, relative_2: ‖Δ‖/‖W‖ in Frobenius and spectral norm.
    relative_C: ‖ΔC^½‖_F/‖WC^½‖_F, how far the module's output moves on general text (root mean square), in units of
    that output. relative_start: ‖Δk‖/‖Wk‖ at the first tokens of ordinary prompts, which every text has (mean).
    reference: the denominator of published ROME, k_0ᵀC⁻¹k*, over ordinary facts (subject not first) at this layer.
    """

    verdict: Verdict
    explanation: str
    calibrated: bool
    method: str
    layer: int
    denominator: float
    caution_below: float
    disabling_below: float
    k0_k0: float
    k0_kstar: float
    kstar_kstar: float
    cosine: float
    cosine_whitened: float
    subject_first: bool
    value_ratio: float
    norm_F: float
    relative_F: float
    relative_2: float
    relative_C: float
    relative_start: float
    reference: tuple[float, ...]


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
    return Size(verdict_of(largest), edit.delta_norm, largest, modules)


def verdict_of(relative_F: float) -> Verdict:
    """The verdict by ‖Δ‖/‖W‖; a size that is not a number is disabling."""
    return "disabling" if not relative_F < DISABLING else "caution" if relative_F >= CAUTION else "safe"


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
    k_0, k_mean = edit.k_0.double().cpu(), edit.extras["keys"].double().cpu().mean(0)
    solved = moment.solve(torch.stack([k_0, k_mean], 1), ridge)
    gram = torch.stack([k_0, k_mean]) @ solved
    k0_k0, k0_kstar, kstar_kstar = float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1])
    denominator = {"rome": k0_kstar, "p-rome": k0_k0}.get(edit.method, kstar_kstar)
    W = weight_of(lm, delta.module).double().cpu()
    relative_F = delta.norm() / float(W.norm())
    C = moment.C.double()
    prefixes = edit.config.prefixes or ("",)
    start = ordinary_keys(lm, layer, prefixes).start
    first = encode(lm.tokenizer, edit.requests[0].prompt).last_subject == 0
    verdict = verdict_of(relative_F)
    cosine = float(torch.cosine_similarity(k_0, k_mean, dim=0))
    return Diagnosis(
        verdict=verdict,
        explanation=_explain(verdict, edit.method, first, cosine, denominator, kstar_kstar, relative_F),
        calibrated=False,
        method=edit.method,
        layer=layer,
        denominator=denominator,
        caution_below=abs(denominator) * relative_F / CAUTION,
        disabling_below=abs(denominator) * relative_F / DISABLING,
        k0_k0=k0_k0,
        k0_kstar=k0_kstar,
        kstar_kstar=kstar_kstar,
        cosine=cosine,
        cosine_whitened=k0_kstar / max((k0_k0 * kstar_kstar) ** 0.5, 1e-300),
        subject_first=first,
        value_ratio=float(edit.extras["delta"].norm() / edit.v_0.norm()),
        norm_F=delta.norm(),
        relative_F=relative_F,
        relative_2=spectral_norm(delta) / float(torch.linalg.matrix_norm(W, 2)),
        relative_C=_rms(*_factors(delta), C) / float(((W @ C) * W).sum().sqrt()),
        relative_start=float((delta(start).norm(dim=1) / (start @ W.T).norm(dim=1)).mean()),
        reference=reference(lm, moment, ridge, prefixes),
    )


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


def _factors(delta: Delta) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank d_mlp"]]:
    return delta.U.double().cpu(), delta.V.double().cpu()


def spectral_norm(delta: Delta) -> float:
    """‖U V‖_2 from the factors: their QR factors leave a matrix of the size of the rank."""
    U, V = _factors(delta)
    small = torch.linalg.qr(U).R @ torch.linalg.qr(V.T).R.T
    return float(torch.linalg.matrix_norm(small, 2)) if small.isfinite().all() else float("nan")


def _rms(U: Float[Tensor, "d_model rank"], V: Float[Tensor, "rank d_mlp"], C: Float[Tensor, "d_mlp d_mlp"]) -> float:
    """‖U V C^½‖_F, the root of E‖Δk‖²."""
    return float(((U.T @ U) * (V @ C @ V.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True, eq=False)
class OrdinaryKeys:
    """Keys of ordinary facts, whose subjects are not the first token: bare, mean over the prefixes, and of the first
    token of every prompt and prefix."""

    k_0: Float[Tensor, "n d_mlp"]
    k_star: Float[Tensor, "n d_mlp"]
    start: Float[Tensor, "m d_mlp"]


def reference(lm: LanguageModel, moment: Moment, ridge: float, prefixes: tuple[str, ...]) -> tuple[float, ...]:
    """k_0ᵀC⁻¹k* of ordinary facts of the project's set, whose subjects are not the first token; found once a C."""
    found: dict[object, tuple[float, ...]] = lm.memo.setdefault("reference", {})
    key = (moment, ridge, prefixes)  # the moment itself: an address would be used again
    if key not in found:
        ordinary = ordinary_keys(lm, moment.layer, prefixes)
        solved = moment.solve(ordinary.k_star.T, ridge)
        found[key] = tuple(torch.einsum("nd,dn->n", ordinary.k_0, solved).tolist())
    return found[key]


def ordinary_keys(lm: LanguageModel, layer: int, prefixes: tuple[str, ...]) -> OrdinaryKeys:
    """Keys of ordinary facts behind the first five of the prefixes; found once a layer and prefixes."""
    prefixes = tuple(p for p in prefixes if p)[:5]
    found: dict[object, OrdinaryKeys] = lm.memo.setdefault("ordinary keys", {})
    if (layer, prefixes) not in found:
        found[layer, prefixes] = _ordinary_keys(lm, layer, prefixes)
    return found[layer, prefixes]


def _ordinary_keys(lm: LanguageModel, layer: int, prefixes: tuple[str, ...]) -> OrdinaryKeys:
    """One pass up to the subjects' last tokens and the layer."""
    prompts = [fact.prompt for fact in load_facts() if fact.prompt.span[0] > 0]
    chosen = prompts[:: max(1, len(prompts) // REFERENCE_FACTS)][:REFERENCE_FACTS]
    rows = [encode(lm.tokenizer, prompt.behind(p)) for prompt in chosen for p in ("", *prefixes)]
    cut = [row.ids[: row.subject[1]] for row in rows]
    batch = batch_of(lm, cut)
    point = Point("mlp_key", layer)
    keys = activations(lm, batch, [point])[point].double().cpu()
    ends = keys[torch.arange(len(cut)), batch.last.cpu()].unflatten(0, (len(chosen), -1))
    return OrdinaryKeys(ends[:, 0], ends.mean(1), keys[:, 0])
