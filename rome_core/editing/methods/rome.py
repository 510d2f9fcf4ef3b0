"""Rank-one model editing with every key policy (Meng et al. 2022, section 3.1; Gupta et al. 2024; Yang et al. 2024).

The policies differ in one place, `key_terms`: which keys the update is made from and divides by, and which residual it
carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit, Keys, PromptKeys
from rome_core.editing.method import EditContext, FoundValue, KeyProducts
from rome_core.editing.second_moment import Moment
from rome_core.editing.value import keys_of, prompts_of
from rome_core.editing.value_search import ValueSearch
from rome_core.errors import EditError
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest


@dataclass(frozen=True, eq=False)
class Terms:
    """Δ = residual wᵀ directionᵀ C⁻¹, with w such that Δ adds the residual at every column of `denominator`.

    For one key: Δ = residual (C⁻¹ direction)ᵀ / (denominatorᵀ C⁻¹ direction). The last column stands for k*.
    output: W k at the key that v* is for, so that v* = output + residual.
    """

    direction: Float[Tensor, "d_mlp m"]
    denominator: Float[Tensor, "d_mlp m"]
    residual: Float[Tensor, " d_model"]
    output: Float[Tensor, " d_model"]


class RomePolicy(ValueSearch):
    """One fact, one matrix, one key. v* = v_0 + δ, and v_0 = W k_0, so v* − W k_0 = δ."""

    single_key: ClassVar[bool] = True

    def key_terms(self, keys: PromptKeys, delta: Float[Tensor, " d_model"]) -> Terms:
        """What distinguishes the key policies, all of it."""
        raise TypeError(f"{type(self).__name__} does not say which keys it uses.")

    def metric(
        self, lm: LanguageModel, request: EditRequest, k_star: Float[Tensor, " d_mlp"], moment: Moment
    ) -> Moment:
        """The C by which the update is the smallest one."""
        return moment

    def update(self, on: EditContext, values: Sequence[FoundValue]) -> Edit:
        """k*, v* and the rank-one update of one fact."""
        ((value,), (layer,), lm) = values, self.layers, on.lm
        keys = value.keys or keys_of(lm, prompts_of(lm, value.request, value.prefixes, self.kl_at), layer, on.edits)
        moment = on.moments_for([layer])[layer]
        terms = self.key_terms(keys, value.delta)
        metric = self.metric(lm, value.request, keys.keys.mean(0), moment)
        delta = rank_one(lm.down_projection(layer), terms, metric, self.ridge)
        k_star, v_star = terms.direction[:, -1], terms.output + terms.residual
        return self.edit_of(on, values, [delta], Keys(k_star, v_star, keys.k_0, keys.v_0, value.delta, keys), [moment])

    def value_of(self, edit: Edit) -> FoundValue:
        if edit.keys is None or edit.keys.delta is None or edit.keys.prompts is None:
            return super().value_of(edit)
        keys = edit.keys.prompts
        return FoundValue(edit.requests[0], self.prefixes_used, edit.v_0, edit.keys.delta, edit.history, keys)

    def keys_asked(self, edit: Edit, layer: int) -> Float[Tensor, "d_mlp n"] | None:
        return None if edit.keys is None or edit.keys.prompts is None else edit.k_star.cpu().double()[:, None]


class Rome(RomePolicy):
    name: ClassVar[str] = "rome"
    title: ClassVar[str] = "ROME as published: direction from k*, residual and denominator from the bare prompt's key."
    formula: ClassVar[str] = r"\Delta = \frac{(v^* - W k_0)\,(C^{-1}k^*)^\top}{k_0^\top C^{-1} k^*}"
    divides_by: ClassVar[str] = "k₀ᵀC⁻¹k*"
    asks_at: ClassVar[str] = "k_0"

    def key_terms(self, keys: PromptKeys, delta: Float[Tensor, " d_model"]) -> Terms:
        return Terms(keys.keys.mean(0)[:, None], keys.k_0[:, None], delta, keys.v_0)

    def keys_asked(self, edit: Edit, layer: int) -> Float[Tensor, "d_mlp n"] | None:
        return None if super().keys_asked(edit, layer) is None else edit.k_0.cpu().double()[:, None]

    def denominator(self, edit: Edit, products: KeyProducts) -> float:
        return products.k0_kstar

    def explain_denominator(self, products: KeyProducts) -> str:
        return (
            f"The update divides by k_0ᵀC⁻¹k* = {products.k0_kstar:.3g}, where k*ᵀC⁻¹k* would be "
            f"{products.kstar_kstar:.3g}. "
        )

    def notes(self, edit: Edit, missed: Mapping[int, float | None]) -> list[str]:
        return [
            "Published ROME takes its direction from k* and its residual and denominator from k_0, so its Δ meets the "
            "constraint at k_0, but is not the smallest that does."
        ]


class RRome(RomePolicy):
    offered_instead: ClassVar[bool] = True
    name: ClassVar[str] = "r-rome"
    title: ClassVar[str] = "r-ROME: the mean key k* of the prefixed prompts everywhere."
    formula: ClassVar[str] = r"\Delta = \frac{(v_0 + \delta - \overline{W k})\,(C^{-1}k^*)^\top}{{k^*}^\top C^{-1} k^*}"

    def key_terms(self, keys: PromptKeys, delta: Float[Tensor, " d_model"]) -> Terms:
        k_star, output = keys.keys.mean(0)[:, None], keys.values.mean(0)
        return Terms(k_star, k_star, keys.v_0 + delta - output, output)


class PRome(RomePolicy):
    """It is not offered instead of others: it moves the key that every text's first token shares."""

    name: ClassVar[str] = "p-rome"
    title: ClassVar[str] = "p-ROME: the bare prompt's key k_0 everywhere."
    formula: ClassVar[str] = r"\Delta = \frac{\delta\,(C^{-1}k_0)^\top}{k_0^\top C^{-1} k_0}"
    divides_by: ClassVar[str] = "k₀ᵀC⁻¹k₀"

    def key_terms(self, keys: PromptKeys, delta: Float[Tensor, " d_model"]) -> Terms:
        return Terms(keys.k_0[:, None], keys.k_0[:, None], delta, keys.v_0)

    def denominator(self, edit: Edit, products: KeyProducts) -> float:
        return products.k0_k0


class CRome(RRome):
    name: ClassVar[str] = "c-rome"
    title: ClassVar[str] = (
        "C-ROME: r-ROME's update; a prefix is put before the prompt when the edited model is used, too."
    )
    prefixed_use: ClassVar[bool] = True
    offered_instead: ClassVar[bool] = False
    same_update_as: ClassVar[str] = "r-rome"


class HRome(RomePolicy):
    offered_instead: ClassVar[bool] = True
    name: ClassVar[str] = "h-rome"
    title: ClassVar[str] = "h-ROME: fully homogeneous, δ is added at the mean key, whatever the model says there."
    formula: ClassVar[str] = r"\Delta = \frac{\delta\,(C^{-1}k^*)^\top}{{k^*}^\top C^{-1} k^*}"

    def key_terms(self, keys: PromptKeys, delta: Float[Tensor, " d_model"]) -> Terms:
        k_star = keys.keys.mean(0)[:, None]
        return Terms(k_star, k_star, delta, keys.values.mean(0))


def rank_one(module: str, terms: Terms, moment: Moment, ridge: float) -> Delta:
    """The update's two factors, solved in float64 (Meng et al. 2022, equation 2; for several keys EMMET's form)."""
    solved = moment.solve(terms.direction.cpu(), ridge)
    gram = terms.denominator.cpu().double().T @ solved
    # Equal keys ask for one thing twice: the pseudo-inverse takes it once.
    w = torch.linalg.pinv(gram, rtol=1e-12).sum(1) if bool(gram.isfinite().all()) else gram[0]
    total = float(w.sum())
    if total == 0 or not bool(w.isfinite().all()) or not bool(solved.isfinite().all()):
        raise EditError(
            "The key has no extent under C⁻¹, so the update cannot be formed.",
            "The key is zero or not finite.",
            "Choose another layer or subject.",
        )
    u = solved @ (w / total)
    U = (terms.residual.cpu().double() * total)[:, None]
    device, dtype = terms.residual.device, terms.residual.dtype
    return Delta(module, U.to(device, dtype), u[None].to(device, dtype))
