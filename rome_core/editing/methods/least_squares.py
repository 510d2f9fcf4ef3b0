"""Many facts in one update by least squares, spread over several layers (MEMIT, Meng et al. 2023, arXiv 2210.07229).

All solve Δ K ≈ R for the keys K [d_mlp n] and residuals R [d_model n] of n facts, and differ in what holds Δ back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit, Keys
from rome_core.editing.method import AddedTo, EditContext, FoundValue, Term
from rome_core.editing.second_moment import Moment
from rome_core.editing.value import Prompts, prompts_of
from rome_core.editing.value_search import ValueSearch, states_at
from rome_core.errors import EditError
from rome_core.model.edits import Delta
from rome_core.model.hooks import Point
from rome_core.model.language_model import LanguageModel
from rome_core.model.subjects import subject_states
from rome_core.settings import setting

KeyColumns = Float[Tensor, "d_mlp n"]
EarlierKeys = Float[Tensor, "d_mlp m"]
Residuals = Float[Tensor, "d_model n"]


def least_squares(
    module: str, residuals: Residuals, keys: KeyColumns, moment: Moment, ridge: float, weight: float
) -> Delta:
    """Δ = R (λI + KᵀC⁻¹K)⁻¹ KᵀC⁻¹, which is R Kᵀ (λC + KKᵀ)⁻¹ by Woodbury's identity, solved in float64.

    It minimises ‖ΔK − R‖² + λ‖ΔC^½‖² (MEMIT, equation 14); λ = 0 makes ΔK = R hold exactly (EMMET).
    """
    K = keys.cpu().double()
    solved = moment.solve(K, ridge)
    gram = K.T @ solved
    gram.diagonal().add_(weight)
    U, info = torch.linalg.solve_ex(gram, residuals.cpu().double().T)
    if int(info) or not bool(U.isfinite().all()) or not bool(solved.isfinite().all()):
        raise EditError(
            "The keys of these facts cannot be told apart under C⁻¹, so the update cannot be formed.",
            "Two facts may have the same subject, or a key is zero or not finite.",
            "Leave one of them out, or give the constraints more slack.",
        )
    return delta_of(module, U.T, solved.T, residuals)


def delta_of(module: str, U: Float[Tensor, "d_model n"], V: Float[Tensor, "n d_mlp"], like: Tensor) -> Delta:
    """The factors in the model's precision and on its device."""
    return Delta(module, U.to(like.device, like.dtype).contiguous(), V.to(like.device, like.dtype).contiguous())


def mean_key(keys: Float[Tensor, "n d_mlp"]) -> Float[Tensor, " d_mlp"]:
    """Half the bare prompt's key, half the mean of the prefixed ones (as the authors weigh them)."""
    return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(0)) / 2


@dataclass(frozen=True)
class SpreadUpdate(ValueSearch):
    """Hyper-parameters of the methods that spread an update over several layers."""

    objective: ClassVar[str] = (
        r"\min_{\Delta_l}\ \lVert\Delta_l K_l - R_l\rVert^2 + \lambda\,\lVert\Delta_l C_l^{1/2}\rVert_F^2"
    )
    batches: ClassVar[bool] = True
    adds_to: ClassVar[AddedTo] = "resid_post"

    clamp: float | None = setting(
        0.75,
        "Clamp",
        "‖δ‖ may grow to this many times the norm of the block's output.",
        source="Meng et al. 2023, the authors' code",
        bounds=(0.05, 20.0, 0.05),
        unit="‖h‖",
    )
    span: int = setting(
        3,
        "Layers in all",
        "The update is spread over so many layers, the one above being the last of them; over all there are, if fewer.",
        source="Meng et al. 2023 spread over five or six layers of larger models",
        bounds=(1, 48, 1),
    )

    @property
    def layers(self) -> list[int]:
        return [] if self.layer is None else list(range(max(0, self.layer - self.span + 1), self.layer + 1))

    def layer_update(
        self, module: str, residuals: Residuals, keys: KeyColumns, moment: Moment, earlier: EarlierKeys
    ) -> Delta:
        """One layer's Δ. earlier: keys of this method's edits that are active already."""
        raise TypeError(f"{type(self).__name__} says nothing of how it updates a layer.")

    def update(self, on: EditContext, values: Sequence[FoundValue]) -> Edit:
        """The layers in ascending order, each on top of the former ones with an equal share of what is still missing at
        the last one's output (Meng et al. 2023, algorithm 1). v_0 and v_star are states there: MEMIT's h and z."""
        lm, edits, moments = on.lm, on.edits, on.moments_for(self.layers)
        rows = [prompts_of(lm, value.request, value.prefixes, self.kl_at) for value in values]
        h, last = torch.stack([value.h for value in values]), self.layers[-1]
        z = h + torch.stack([value.delta for value in values])
        deltas, by_layer = list[Delta](), dict[int, KeyColumns]()
        for layer in on.track(self.layers, "Updating layers", len(self.layers)):
            active = [*edits, self.edit_of(on, values, deltas)]
            keys, now = _keys_and_outputs(lm, rows, layer, last, active)
            residuals = (z.T - now) / (last - layer + 1)
            earlier = earlier_keys(edits, self.name, layer, keys)
            deltas.append(self.layer_update(lm.down_projection(layer), residuals, keys, moments[layer], earlier))
            by_layer[layer] = keys
        bare = [states_at(lm, prompts, [Point("mlp_key", last)], edits)[0][0] for prompts in rows]
        made = Keys(by_layer[last].T, z, torch.stack(bare), h, by_layer=by_layer)
        return self.edit_of(on, values, deltas, made, [moments[layer] for layer in self.layers])

    def value_of(self, edit: Edit) -> FoundValue:
        if len(edit.requests) != 1:
            return super().value_of(edit)
        h, delta = edit.v_0[0], (edit.v_star - edit.v_0)[0]
        return FoundValue(edit.requests[0], self.prefixes_used, h, delta, edit.history)

    # ----------------------------------------------------------------------------------------------- being understood

    def residuals_asked(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], number: int, keys: KeyColumns
    ) -> Residuals:
        return self._missing(lm, edit, below, number) / (len(edit.deltas) - number)

    def _missing(self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], done: int) -> Residuals:
        """z − h at the last edited block after the first `done` updates."""
        point, prompts = Point("resid_post", self.layers[-1]), [request.prompt for request in edit.requests]
        active = [*below, replace(edit, deltas=edit.deltas[:done])]
        now = subject_states(lm, prompts, [point], edits=active)[point]
        return (edit.v_star.cpu().double() - now.cpu().double()).T

    def terms(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Callable[[int], Moment | None]
    ) -> list[Term]:
        before, after = (self._missing(lm, edit, below, done).norm() for done in (0, len(edit.deltas)))
        return [
            Term(
                r"\lVert z - \hat h\rVert / \lVert z - h\rVert",
                float(after / before.clamp(min=1e-300)),
                "of the way to z that is left at the last edited block, all updates in place (bare prompts)",
            )
        ]


def _keys_and_outputs(
    lm: LanguageModel, rows: Sequence[Prompts], layer: int, last: int, active: Sequence[Edit]
) -> tuple[KeyColumns, Residuals]:
    """One pass a fact: its key at the layer, and its bare prompt's state after the last edited block."""
    keys, outputs = [], []
    for prompts in rows:
        own, after = states_at(lm, prompts, [Point("mlp_key", layer), Point("resid_post", last)], active)
        keys.append(mean_key(own[prompts.rows]))
        outputs.append(after[0])
    return torch.stack(keys, 1), torch.stack(outputs, 1)


def earlier_keys(edits: Sequence[Edit], method: str, layer: int, like: Tensor) -> EarlierKeys:
    """Keys of the same method's active edits at a layer, side by side."""
    kept = [edit.keys.by_layer for edit in edits if edit.method == method and edit.keys is not None]
    return torch.cat([like[:, :0], *(keys[layer].to(like) for keys in kept if layer in keys)], 1)
