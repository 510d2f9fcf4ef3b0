"""What the methods for many facts share: a value for each fact, one update for all (MEMIT, Meng et al. 2023).

All solve Δ K ≈ R for the keys K [d_mlp n] and residuals R [d_model n] of n facts, and differ in what holds Δ back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.methods.rome import RomeConfig, prefixes_of
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.value import (
    AddedTo,
    Prompts,
    Report,
    final_by_hooks,
    final_by_replay,
    optimise_delta,
    prompts_of,
)
from rome_core.errors import EditError
from rome_core.model.edits import Delta, Edit, Step
from rome_core.model.hooks import Point, activations
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent
from rome_core.settings import setting
from rome_core.tracing.restoration import replay_note

Keys = Float[Tensor, "d_mlp n"]
Residuals = Float[Tensor, "d_model n"]


def least_squares(module: str, residuals: Residuals, keys: Keys, moment: Moment, ridge: float, weight: float) -> Delta:
    """Δ = R (λI + KᵀC⁻¹K)⁻¹ KᵀC⁻¹, which is R Kᵀ (λC + KKᵀ)⁻¹ by Woodbury's identity, solved in float64.

    It minimises ‖ΔK − R‖² + λ‖ΔC^½‖² (MEMIT, equation 14); λ = 0 makes ΔK = R hold exactly (EMMET).
    """
    K = keys.double().cpu()
    solved = moment.solve(K, ridge)
    gram = K.T @ solved
    gram.diagonal().add_(weight)
    U, info = torch.linalg.solve_ex(gram, residuals.double().cpu().T)
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


@dataclass(frozen=True, eq=False)
class Wanted:
    """What one fact's value search found: z = h + δ at the site, and the prompts whose keys count."""

    request: EditRequest
    prompts: Prompts
    h: Float[Tensor, " d_model"]
    delta: Float[Tensor, " d_model"]
    history: tuple[Step, ...]


def wanted(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: RomeConfig,
    prefixes: tuple[str, ...],
    site: AddedTo,
    edits: Sequence[Edit],
    track: Track,
    report: Report,
) -> list[Wanted]:
    """δ of every fact, each by itself, on top of `edits`."""
    layer = config.layer
    if layer is None or not 0 <= layer < lm.n_layers:
        raise EditError(f"Layer {layer} does not exist.", "", f"'{lm.name}' has layers 0 to {lm.n_layers - 1}.")
    if not requests:
        raise EditError("There is no fact to edit.", "", "Give at least one.")
    final = final_by_hooks if replay_note(lm) else final_by_replay
    found = []
    for request in track(list(requests), "Searching values", len(requests)):
        prompts = prompts_of(lm, request, prefixes, config.kl_at)
        states = states_at(lm, prompts, Point(site, layer), edits)
        h = states[0]
        delta, history = optimise_delta(
            lm,
            prompts,
            h,
            final(lm, prompts, layer, edits, site),
            config.value_settings,
            scale=config.scale(states[prompts.rows], h),
            track=track,
            report=report,
        )
        found.append(Wanted(request, prompts, h, delta, history))
    return found


def states_at(lm: LanguageModel, prompts: Prompts, point: Point, edits: Sequence[Edit]) -> Float[Tensor, "batch d"]:
    """States at the subject's last token: of the bare prompt (row 0), the prefixed ones, and the essence prompt."""
    return activations(lm, prompts.batch, [point], edits=edits)[point][:, prompts.column].float()


def key_of(lm: LanguageModel, prompts: Prompts, layer: int, edits: Sequence[Edit]) -> Float[Tensor, " d_mlp"]:
    """Half the bare prompt's key, half the mean of the prefixed ones (as the authors weigh them)."""
    keys = states_at(lm, prompts, Point("mlp_key", layer), edits)[prompts.rows]
    return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(0)) / 2


@dataclass(frozen=True)
class MassConfig(RomeConfig):
    """Hyper-parameters of the methods that spread an update over several layers."""

    batches: ClassVar[bool] = True
    span: int = setting(
        3,
        "Layers in all",
        "The update is spread over so many layers, the one above being the last of them.",
        source="Meng et al. 2023 spread over five or six layers of larger models",
        low=1,
        high=48,
        step=1,
    )

    @property
    def layers(self) -> list[int]:
        return [] if self.layer is None else list(range(self.layer - self.span + 1, self.layer + 1))

    def check_layers(self) -> None:
        """Raise EditError unless all layers exist."""
        if not self.layers or self.layers[0] < 0:
            raise EditError(f"Below layer {self.layer} there are not {self.span} layers.", "", "Spread over fewer.")

    def update(
        self, module: str, residuals: Residuals, keys: Keys, moment: Moment, earlier: Float[Tensor, "d_mlp m"]
    ) -> Delta:
        """One layer's Δ. earlier: keys of this method's edits that are active already."""
        raise TypeError(f"{type(self).__name__} says nothing of how it updates a layer.")

    def solve(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        *,
        moments: Mapping[int, Moment] | None,
        edits: Sequence[Edit],
        track: Track,
        report: Report,
    ) -> Edit:
        return solve_mass(lm, requests, self, moments=moments, edits=edits, track=track, report=report)


def solve_mass(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: MassConfig,
    *,
    moments: Mapping[int, Moment] | None,
    edits: Sequence[Edit],
    track: Track,
    report: Report,
) -> Edit:
    """One edit of all requests: values at the last layer's output, then the layers in ascending order, each with an
    equal share of what is still missing there (Meng et al. 2023, algorithm 1)."""
    config.check_layers()
    found = moments_for(lm, config.layers, moments, track)
    prefixes = prefixes_of(lm, config, edits)
    facts = wanted(lm, requests, config, prefixes, "resid_post", edits, track, report)
    return spread(lm, facts, replace(config, prefixes=prefixes), found, edits, track)


def found_by(lm: LanguageModel, edit: Edit) -> list[Wanted]:
    """What the search behind an edit of one fact found, by a key policy or over several layers."""
    policy = "delta" in edit.extras
    if len(edit.requests) != 1 or not (policy or isinstance(edit.config, MassConfig)):
        raise EditError(f"An edit by '{edit.method}' does not hold the δ of its search.", "", "Solve it again.")
    prompts = prompts_of(lm, edit.requests[0], edit.config.prefixes, edit.config.kl_at)
    h, delta = (edit.v_0, edit.extras["delta"]) if policy else (edit.v_0[0], (edit.v_star - edit.v_0)[0])
    return [Wanted(edit.requests[0], prompts, h, delta, edit.history)]


def spread(
    lm: LanguageModel,
    facts: Sequence[Wanted],
    config: MassConfig,
    moments: Mapping[int, Moment],
    edits: Sequence[Edit],
    track: Track = silent,
) -> Edit:
    """The update of values that are known: the layers in ascending order, each on top of the former ones."""
    layers = config.layers
    last, edit = layers[-1], _not_yet(lm, facts, config, edits, moments[layers[-1]])
    for layer in track(layers, "Updating layers", len(layers)):
        active = [*edits, edit]
        keys = torch.stack([key_of(lm, fact.prompts, layer, active) for fact in facts], 1)
        now = torch.stack([states_at(lm, fact.prompts, Point("resid_post", last), active)[0] for fact in facts], 1)
        residuals = (edit.v_star.T - now) / (last - layer + 1)
        earlier = earlier_keys(edits, config.name, layer, keys)
        delta = config.update(lm.down_projection(layer), residuals, keys, moments[layer], earlier)
        edit = replace(
            edit,
            deltas=(*edit.deltas, delta),
            k_star=keys.T,
            k_0=torch.stack([states_at(lm, fact.prompts, Point("mlp_key", layer), edits)[0] for fact in facts]),
            extras={**edit.extras, f"keys_{layer}": keys},
        )
    return edit


def earlier_keys(edits: Sequence[Edit], method: str, layer: int, like: Tensor) -> Float[Tensor, "d_mlp m"]:
    """Keys of the same method's active edits at a layer, side by side."""
    name = f"keys_{layer}"
    kept = [edit.extras[name].to(like) for edit in edits if edit.method == method and name in edit.extras]
    return torch.cat([like[:, :0], *kept], 1)


def _not_yet(
    lm: LanguageModel, facts: Sequence[Wanted], config: MassConfig, edits: Sequence[Edit], moment: Moment
) -> Edit:
    """The edit before its first layer is updated. v_0 and v_star are states of the last layer's output: MEMIT's z."""
    h = torch.stack([fact.h for fact in facts])
    keys = torch.zeros(len(facts), lm.d_mlp, device=h.device)
    return Edit(
        requests=tuple(fact.request for fact in facts),
        method=config.name,
        config=config,
        deltas=(),
        k_star=keys,
        v_star=h + torch.stack([fact.delta for fact in facts]),
        k_0=keys,
        v_0=h,
        history=tuple(step for fact in facts for step in fact.history),
        base=lm.fingerprint,
        on=tuple(edit.id for edit in edits),
        corpus=f"{moment.corpus}, {moment.n_tokens:,} tokens",
    )
