"""Edits in each other's way: how alike the keys of active edits are under C⁻¹, and how far the next edit moves each.

An edit's Δ answers every key k with Δk, which is large where kᵀC⁻¹k_edit is. So KᵀC⁻¹K over the keys of all edits of
a layer says who disturbs whom, and Δ_new k_i is exactly how far the next edit moves the value of edit i, as long as no
edit of an earlier layer changes the key. `measure_moves` measures it with both in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.model.edits import Delta, check_base
from rome_core.model.hooks import Point
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import score
from rome_core.model.subjects import subject_keys, subject_states
from rome_core.model.tokens import EditRequest, as_target
from rome_core.progress import Track, silent


@dataclass(frozen=True, eq=False)
class Overlap:
    """KᵀC⁻¹K of one layer; row and column i belong to labels[i]."""

    layer: int
    labels: tuple[str, ...]
    gram: Float[Tensor, "n n"]

    @property
    def cosine(self) -> Float[Tensor, "n n"]:
        """The same, each key at length one under C⁻¹: 1 for a key with itself."""
        lengths = self.gram.diagonal().sqrt()
        return self.gram / lengths[:, None] / lengths


@dataclass(frozen=True)
class Moved:
    """How far a new edit moves an earlier one at its layer.

    predicted: ‖Δ_new k_i‖ from the stored keys, before it is added. measured: the distance that the down projection's
    output moves at the subject's last token, with the earlier edits in place. own: ‖Δ_i k_i‖, what the earlier edit
    itself adds there. along: the part of Δ_new k_i in the direction of Δ_i k_i, in units of own; −1 would undo it.
    p_before, p_after: probability of the earlier edit's object on its prompt.
    """

    label: str
    layer: int
    own: float
    predicted: float
    along: float
    measured: float | None = None
    p_before: float | None = None
    p_after: float | None = None

    @property
    def share(self) -> float:
        return self.predicted / self.own if self.own else float("inf")


def name_of(request: EditRequest) -> str:
    return f"{request.prompt.subject} → {request.target_new.strip()}"


def layers_of(lm: LanguageModel, edit: Edit) -> dict[int, Delta]:
    """The edit's updates of down projections, by layer."""
    paths = {lm.down_projection(layer): layer for layer in range(lm.n_layers)}
    return {paths[delta.module]: delta for delta in edit.deltas if delta.module in paths}


def overlap(
    lm: LanguageModel, edits: Sequence[Edit], moments: Mapping[int, Moment] | None = None, ridge: float = 1e-6
) -> tuple[Overlap, ...]:
    """KᵀC⁻¹K over the bare prompts' keys of all edits, one matrix a layer that any of them changes."""
    layers = sorted({layer for edit in edits for layer in layers_of(lm, edit)})
    found = moments_for(lm, layers, moments)
    result = []
    for layer in layers:
        rows = [(name_of(r), r) for edit in edits if layer in layers_of(lm, edit) for r in edit.requests]
        keys = keys_at(lm, [request for _, request in rows], layer)
        gram = keys @ found[layer].solve(keys.T, ridge)
        result.append(Overlap(layer, tuple(name for name, _ in rows), (gram + gram.T) / 2))
    return tuple(result)


def keys_at(
    lm: LanguageModel, requests: Sequence[EditRequest], layer: int, edits: Sequence[Edit] = ()
) -> Float[Tensor, "n d_mlp"]:
    """Keys of the bare prompts at the subjects' last tokens, float64."""
    return subject_keys(lm, [request.prompt for request in requests], layer, edits=edits).cpu().double()


def predict(lm: LanguageModel, new: Edit, earlier: Sequence[Edit]) -> tuple[Moved, ...]:
    """How far `new` would move each earlier edit, from keys and factors alone: one line a fact and layer they share."""
    result = []
    for edit in earlier:
        check_base(lm, [edit, new])
        mine, others = layers_of(lm, edit), layers_of(lm, new)
        for layer in sorted(mine.keys() & others.keys()):
            keys = keys_at(lm, edit.requests, layer, earlier)
            own, change = mine[layer](keys), others[layer](keys)
            for i, request in enumerate(edit.requests):
                length = float(own[i].norm())
                along = float(change[i] @ own[i]) / length**2 if length else float("nan")
                result.append(Moved(name_of(request), layer, length, float(change[i].norm()), along))
    return tuple(result)


def measure_moves(lm: LanguageModel, new: Edit, earlier: Sequence[Edit], track: Track = silent) -> tuple[Moved, ...]:
    """The prediction, and what happens to the model's states and answers when `new` joins the earlier edits."""
    result = []
    predictions = iter(predict(lm, new, earlier))
    for edit in track(list(earlier), "Asking the earlier edits", len(earlier)):
        layers = sorted(layers_of(lm, edit).keys() & layers_of(lm, new).keys())
        pairs = [(request.prompt.text, as_target(request.target_new, request.prompt.text)) for request in edit.requests]
        before, after = (score(lm, pairs, edits=edits) for edits in (earlier, [*earlier, new]))
        for layer in layers:
            point, prompts = Point("mlp_out", layer), [request.prompt for request in edit.requests]
            without, with_it = (
                subject_states(lm, prompts, [point], edits=edits)[point].cpu().double()
                for edits in (earlier, [*earlier, new])
            )
            for i in range(len(edit.requests)):
                distance = float((with_it[i] - without[i]).norm())
                p_before, p_after = before[i].p_joint, after[i].p_joint
                result.append(replace(next(predictions), measured=distance, p_before=p_before, p_after=p_after))
    return tuple(result)
