"""Methods that search a value: their hyper-parameters, the search, and how well its value is met.

Each optimises δ at the subject's last token (`value.optimise_delta`), and differs in what update it makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit, Keys, make_edit
from rome_core.editing.method import AddedTo, EditContext, FoundValue, LayerConfig, MethodConfig, Term
from rome_core.editing.second_moment import Moment
from rome_core.editing.value import (
    N_SAMPLED,
    KlAt,
    Prompts,
    final_by_hooks,
    final_by_replay,
    keys_of,
    optimise_delta,
    prompts_of,
    sampled_prefixes,
)
from rome_core.errors import EditError
from rome_core.model.edits import Delta, Update, outputs_as_applied, outputs_of
from rome_core.model.hooks import Point, activations
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import replay_note
from rome_core.model.tokens import EditRequest
from rome_core.settings import setting

AUTHORS = "Meng et al. 2022, the authors' code"
ScaleAt = Literal["prefixed prompts", "bare prompt"]


@dataclass(frozen=True)
class ValueSearch(LayerConfig):
    """Hyper-parameters of the search. prefixes: texts put before the prompt, "" for none; None = sampled."""

    objective: ClassVar[str] = (
        r"\min_{\hat W}\ \lVert(\hat W - W)\,C^{1/2}\rVert_F^2\quad\text{subject to}\quad\hat W k^* = v^*"
    )
    adds_to: ClassVar[AddedTo] = "mlp_out"

    clamp: float | None = setting(
        None,
        "Clamp",
        "‖δ‖ may grow to this many times ‖v_0‖. Small values bleed less, too small ones do not reach the target.",
        source="preset of the model; 4 in the authors' GPT-2 settings",
        bounds=(0.1, 20.0, 0.05),
        unit="‖v_0‖",
    )
    steps: int | None = setting(
        None,
        "Steps",
        "Evaluations of the loss; the last one is not followed by an update.",
        source="preset of the model; 20 in " + AUTHORS,
        bounds=(1, 200, 1),
    )
    lr: float = setting(0.5, "Learning rate", "Of Adam on δ.", source=AUTHORS, bounds=(0.001, 5.0, 0.05))
    kl_weight: float = setting(
        0.0625,
        "KL weight",
        "Holds on to what the model says of the subject in general, on '{subject} is a'.",
        source=AUTHORS + " (the paper says 100)",
        bounds=(0.0, 200.0, 0.0125),
    )
    decay: float = setting(
        0.5,
        "Decay",
        "Weight of ‖δ‖/‖v_0‖² in the loss.",
        source=AUTHORS + " (the paper says 0.0015)",
        bounds=(0.0, 50.0, 0.1),
    )
    stop_loss: float = setting(
        0.05,
        "Stop below",
        "The optimisation ends once the loss is below this.",
        source=AUTHORS,
        bounds=(0.0, 5.0, 0.01),
        unit="nats",
    )
    kl_at: KlAt = setting(
        "subject",
        "KL read at",
        "The subject's last token, as in the authors' code, or the end of '{subject} is a', as in the paper.",
        source=AUTHORS,
        choices=("subject", "prompt end"),
    )
    scale_at: ScaleAt = setting(
        "prefixed prompts",
        "‖v_0‖ read at",
        "Clamp and decay are in units of ‖v_0‖: the median over the prefixed prompts, or the bare prompt's alone. They "
        "differ where the subject is the first token, whose value is the attention sink's.",
        source="measured: docs/editing.md; the authors' code takes the bare prompt's",
        choices=("prefixed prompts", "bare prompt"),
    )
    ridge: float = setting(
        1e-6,
        "Ridge",
        "Added to the diagonal of C, in units of its mean entry.",
        source="numerical safety",
        bounds=(0.0, 10.0, 1e-6),
    )
    n_prefixes: int = setting(
        5,
        "Prefixes",
        "So many texts that the model writes are put before the prompt, so that the edit holds in other contexts, too.",
        source="the authors of MEMIT take 5, those of ROME 20",
        bounds=(0, N_SAMPLED, 1),
    )
    seed: int = setting(0, "Seed", "Of the sampled prefixes.", bounds=(0, 2**31 - 1, 1))
    prefixes: tuple[str, ...] | None = None

    @property
    def layers(self) -> list[int]:
        return [] if self.layer is None else [self.layer]

    @property
    def conditioning(self) -> float:
        return self.ridge

    @property
    def prefixes_used(self) -> tuple[str, ...]:
        return self.prefixes or ("",)

    @property
    def use_prefix(self) -> str:
        return next((prefix for prefix in self.prefixes_used if prefix), "") if self.prefixed_use else ""

    def with_prefixes(self, lm: LanguageModel, edits: Sequence[Update] = (), n: int | None = None) -> ValueSearch:
        if self.prefixes is not None:
            return self
        return replace(self, prefixes=sampled_prefixes(lm, self.seed, edits, self.n_prefixes if n is None else n))

    def scale(self, values: Float[Tensor, "n d_model"], bare: Float[Tensor, " d_model"]) -> float:
        """The norm that clamp and decay are in units of; values: of the prefixed prompts."""
        return float(bare.norm() if self.scale_at == "bare prompt" else values.norm(dim=1).median())

    # ------------------------------------------------------------------------------------------------------- solving

    def solve(self, on: EditContext, requests: Sequence[EditRequest]) -> Edit:
        """The value of every fact, each by itself; then one update of all."""
        self.check(on.lm, requests)
        on = replace(on, moments=on.moments_for(self.layers))
        config, steps = self.with_prefixes(on.lm, on.edits), iter(requests)
        if self.batches:
            steps = iter(on.track(list(requests), "Searching values", len(requests)))
        return config.update(on, [config.search(on, request) for request in steps])

    def search(self, on: EditContext, request: EditRequest) -> FoundValue:
        lm, edits = on.lm, on.edits
        self.check(lm, [request])
        if self.prefixes is None:
            raise EditError(f"The prefixes of {self.name} are not chosen yet.", "", "Take config.with_prefixes(lm).")
        assert self.layer is not None
        prompts = prompts_of(lm, request, self.prefixes_used, self.kl_at)
        keys = None
        if self.adds_to == "mlp_out":
            # The clamp and the decay refer to the module's whole output, bias included, as in the authors' code.
            keys = keys_of(lm, prompts, self.layer, edits)
            h, outputs = keys.v_0 + keys.bias, keys.values + keys.bias
        else:
            states = states_at(lm, prompts, [Point(self.adds_to, self.layer)], edits)[0]
            h, outputs = states[0], states[prompts.rows]
        final = final_by_hooks if replay_note(lm) else final_by_replay
        delta, history = optimise_delta(
            lm,
            prompts,
            h,
            final(lm, prompts, self.layer, edits, self.adds_to),
            self,
            scale=self.scale(outputs, h),
            track=on.track,
            report=on.report,
        )
        return FoundValue(request, self.prefixes_used, h, delta, history, keys)

    def edit_of(
        self,
        on: EditContext,
        values: Sequence[FoundValue],
        deltas: Sequence[Delta],
        keys: Keys | None = None,
        moments: Sequence[Moment] = (),
    ) -> Edit:
        """The edit that these updates are, with the searches behind it."""
        return make_edit(
            on.lm,
            [value.request for value in values],
            replace(self, prefixes=values[0].prefixes),
            tuple(deltas),
            on.edits,
            keys=keys,
            history=[step for value in values for step in value.history],
            moments=moments,
        )

    def shares_search(self, other: MethodConfig) -> bool:
        return isinstance(other, ValueSearch) and all(
            getattr(self, name) == getattr(other, name)
            for name in ("adds_to", *(field.name for field in fields(ValueSearch)))
        )

    # ----------------------------------------------------------------------------------------------- being understood

    def keys_asked(self, edit: Edit, layer: int) -> Float[Tensor, "d_mlp n"] | None:
        keys = None if edit.keys is None else edit.keys.by_layer.get(layer)
        return None if keys is None else keys.cpu().double()

    def residuals_asked(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], number: int, keys: Float[Tensor, "d_mlp n"]
    ) -> Float[Tensor, "d_model n"]:
        values = edit.v_star.cpu().double().reshape(-1, lm.d_model).T
        return values - outputs_of(lm, edit.deltas[number].module, below, keys)

    def terms(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Callable[[int], Moment | None]
    ) -> list[Term]:
        """How exactly the constraint is met, and what the bare prompt's key gets of δ."""
        found, keys = list[Term](), self.keys_asked(edit, self.layers[-1])
        if keys is not None:
            values = edit.v_star.cpu().double().reshape(-1, lm.d_model).T
            module, active = edit.deltas[-1].module, [*below, edit]
            error = _worst(outputs_of(lm, module, active, keys), values)
            key, value = (self.asks_at, "v^*") if len(edit.requests) == 1 else ("K", "V")
            found.append(
                Term(
                    rf"\lVert\hat W {key} - {value}\rVert / \lVert {value}\rVert",
                    error,
                    "how exactly the constraint is met" + ", the worst of all facts" * (key == "K"),
                )
            )
            if lm.dtype.itemsize < 4:
                found.append(
                    Term(
                        rf"\lVert\operatorname{{fl}}(\hat W {key}) - {value}\rVert / \lVert {value}\rVert",
                        _worst(outputs_as_applied(lm, module, active, keys), values),
                        f"the same as it is applied, rounded to {str(lm.dtype).removeprefix('torch.')}",
                    )
                )
        if edit.keys is not None and edit.keys.delta is not None:
            delta, bare = edit.keys.delta.cpu().double(), edit.k_0.cpu().double()
            share = float(edit.deltas[-1].matrix().cpu() @ bare @ delta / delta.square().sum().clamp(min=1e-300))
            found.append(
                Term(
                    r"\langle\Delta k_0, \delta\rangle / \lVert\delta\rVert^2",
                    share,
                    "the share of δ that the bare prompt's key brings about; 1 is all of it",
                )
            )
        return found


def _worst(found: Float[Tensor, "d_model n"], wanted: Float[Tensor, "d_model n"]) -> float:
    """The largest relative error of a column."""
    return float(((found - wanted).norm(dim=0) / wanted.norm(dim=0)).max())


def states_at(
    lm: LanguageModel, prompts: Prompts, points: Sequence[Point], edits: Sequence[Update]
) -> list[Float[Tensor, "batch d"]]:
    """States at the subject's last token: of the bare prompt (row 0), the prefixed ones, and the essence prompt."""
    kept = activations(lm, prompts.batch, points, edits=edits)
    return [kept[point][:, prompts.column].float() for point in points]
