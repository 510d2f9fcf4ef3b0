"""Rank-one model editing with every key policy (Meng et al. 2022, section 3.1; Gupta et al. 2024; Yang et al. 2024).

The policies differ in one place, `policy_terms`: which keys the update is made from and divides by, and which residual
it carries. n-rome, this project's own, also measures keys differently: see `NRome.metric`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.method import MethodConfig
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.editing.value import (
    N_SAMPLED,
    Keys,
    KlAt,
    Report,
    ValueSettings,
    final_by_hooks,
    final_by_replay,
    keys_of,
    optimise_delta,
    prompts_of,
    sampled_prefixes,
)
from rome_core.errors import EditError
from rome_core.facts.datasets import load_facts
from rome_core.facts.namesakes import namesakes
from rome_core.model.edits import Delta, Edit, Step
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt, encode
from rome_core.progress import Track
from rome_core.settings import setting
from rome_core.tracing.restoration import replay_note

AUTHORS = "Meng et al. 2022, the authors' code"
SUBJECTS_AT_ONCE = 128
TEMPLATES_KEPT = 16  # 4 MB each for the default model
ScaleAt = Literal["prefixed prompts", "bare prompt"]


@dataclass(frozen=True)
class RomeConfig(MethodConfig):
    """Hyper-parameters of the ROME family. prefixes: texts put before the prompt, "" for none; None = sampled."""

    layer: int | None = setting(
        None,
        "Layer",
        "The block whose down projection is edited.",
        source="preset of the model",
        low=0,
        high=199,
        step=1,
    )
    clamp: float | None = setting(
        None,
        "Clamp",
        "‖δ‖ may grow to this many times ‖v_0‖. Small values bleed less, too small ones do not reach the target.",
        source="preset of the model; 4 in the authors' GPT-2 settings",
        low=0.1,
        high=20.0,
        step=0.05,
        unit="‖v_0‖",
    )
    steps: int | None = setting(
        None,
        "Steps",
        "Evaluations of the loss; the last one is not followed by an update.",
        source="preset of the model; 20 in " + AUTHORS,
        low=1,
        high=200,
        step=1,
    )
    lr: float = setting(0.5, "Learning rate", "Of Adam on δ.", source=AUTHORS, low=0.001, high=5.0, step=0.05)
    kl_weight: float = setting(
        0.0625,
        "KL weight",
        "Holds on to what the model says of the subject in general, on '{subject} is a'.",
        source=AUTHORS + " (the paper says 100)",
        low=0.0,
        high=200.0,
        step=0.0125,
    )
    decay: float = setting(
        0.5,
        "Decay",
        "Weight of ‖δ‖/‖v_0‖² in the loss.",
        source=AUTHORS + " (the paper says 0.0015)",
        low=0.0,
        high=50.0,
        step=0.1,
    )
    stop_loss: float = setting(
        0.05,
        "Stop below",
        "The optimisation ends once the loss is below this.",
        source=AUTHORS,
        low=0.0,
        high=5.0,
        step=0.01,
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
        low=0.0,
        high=10.0,
        step=1e-6,
    )
    n_prefixes: int = setting(
        5,
        "Prefixes",
        "So many texts that the model writes are put before the prompt, so that the edit holds in other contexts, too.",
        source="the authors of MEMIT take 5, those of ROME 20",
        low=0,
        high=N_SAMPLED,
        step=1,
    )
    seed: int = setting(0, "Seed", "Of the sampled prefixes.", low=0, high=2**31 - 1, step=1)
    prefixes: tuple[str, ...] | None = None

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
        return solve_rome(lm, requests, self, moments=moments, edits=edits, track=track, report=report)

    @property
    def layers(self) -> list[int]:
        return [] if self.layer is None else [self.layer]

    @property
    def value_settings(self) -> ValueSettings:
        assert self.clamp is not None and self.steps is not None
        return ValueSettings(self.steps, self.lr, self.clamp, self.kl_weight, self.decay, self.stop_loss, self.kl_at)

    def scale(self, values: Float[Tensor, "n d_model"], bare: Float[Tensor, " d_model"]) -> float:
        """The norm that clamp and decay are in units of; values: of the prefixed prompts."""
        return float(bare.norm() if self.scale_at == "bare prompt" else values.norm(dim=1).median())

    def metric(
        self, lm: LanguageModel, request: EditRequest, k_star: Float[Tensor, " d_mlp"], moment: Moment
    ) -> Moment:
        """The C by which the update is the smallest one."""
        return moment


class Rome(RomeConfig):
    name: ClassVar[str] = "rome"
    title: ClassVar[str] = "ROME as published: direction from k*, residual and denominator from the bare prompt's key."
    formula: ClassVar[str] = r"\Delta = \frac{(v^* - W k_0)\,(C^{-1}k^*)^\top}{k_0^\top C^{-1} k^*}"


class RRome(RomeConfig):
    name: ClassVar[str] = "r-rome"
    title: ClassVar[str] = "r-ROME: the mean key k* of the prefixed prompts everywhere."
    formula: ClassVar[str] = r"\Delta = \frac{(v_0 + \delta - \overline{W k})\,(C^{-1}k^*)^\top}{{k^*}^\top C^{-1} k^*}"


class PRome(RomeConfig):
    name: ClassVar[str] = "p-rome"
    title: ClassVar[str] = "p-ROME: the bare prompt's key k_0 everywhere."
    formula: ClassVar[str] = r"\Delta = \frac{\delta\,(C^{-1}k_0)^\top}{k_0^\top C^{-1} k_0}"


class CRome(RomeConfig):
    name: ClassVar[str] = "c-rome"
    title: ClassVar[str] = (
        "C-ROME: r-ROME's update; a prefix is put before the prompt when the edited model is used, too."
    )
    formula: ClassVar[str] = RRome.formula
    prefixed_use: ClassVar[bool] = True


class HRome(RomeConfig):
    name: ClassVar[str] = "h-rome"
    title: ClassVar[str] = "h-ROME: fully homogeneous, δ is added at the mean key, whatever the model says there."
    formula: ClassVar[str] = r"\Delta = \frac{\delta\,(C^{-1}k^*)^\top}{{k^*}^\top C^{-1} k^*}"


@dataclass(frozen=True)
class NRome(RomeConfig):
    """Hyper-parameters of ROME, and the other subjects and namesakes whose keys an edit shall leave alone."""

    name: ClassVar[str] = "n-rome"
    title: ClassVar[str] = (
        "N-ROME, this project's: δ is added at both keys, k_0 and k*; similar subjects and namesakes are held."
    )
    formula: ClassVar[str] = (
        r"\Delta = \delta\,\mathbf{1}^\top (K^\top C_T^{-1} K)^{-1} K^\top C_T^{-1},"
        r"\allowbreak\quad {K = [k_0\;k^*]},"
        r"\allowbreak\quad {C_T = C + \mu\,\mathbb{E}_s[k_s k_s^\top] + \nu\,\mathbb{E}_n[k_n k_n^\top]}"
    )
    held: int = setting(
        150,
        "Other subjects",
        "The project's subjects are put into the prompt's template; so many of them, those whose keys are most like "
        "k*, are held.",
        source="measured: docs/editing.md",
        low=1,
        high=500,
        step=1,
    )
    hold: float = setting(
        10.0,
        "Their weight μ",
        "How much the other subjects' keys count beside C.",
        source="measured: docs/editing.md",
        low=0.0,
        high=1000.0,
        step=0.1,
    )
    namesakes: int = setting(
        40,
        "Namesakes",
        "So many made-up subjects that end in the same words are held, so that the edit is about the subject and not "
        "about its last word. A subject of one word has none.",
        source="measured: docs/editing.md",
        low=0,
        high=60,
        step=1,
    )
    hold_namesakes: float = setting(
        0.1,
        "Their weight ν",
        "How much the namesakes' keys count beside C.",
        source="measured: docs/editing.md",
        low=0.0,
        high=1000.0,
        step=0.1,
    )

    def metric(
        self, lm: LanguageModel, request: EditRequest, k_star: Float[Tensor, " d_mlp"], moment: Moment
    ) -> Moment:
        """C_T = C + μ E[k_s k_sᵀ] + ν E[k_n k_nᵀ]: over the keys k_s nearest to k* in direction, as C⁻¹ measures it,
        and over those of namesakes."""
        keys = other_keys(lm, request, moment.layer).double().cpu()
        solved = moment.solve(torch.cat([keys, k_star.double().cpu()[None]]).T, self.ridge)
        likeness = (keys @ solved[:, -1]).abs() / (keys * solved[:, :-1].T).sum(1).sqrt()
        nearest = keys[likeness.topk(min(self.held, len(keys))).indices]
        C = moment.C.double() + self.hold * nearest.T @ nearest / len(nearest)
        alike = namesakes(request.prompt, self.namesakes)
        if alike and self.hold_namesakes:
            keys = last_keys(lm, alike, moment.layer).double().cpu()
            C += self.hold_namesakes * keys.T @ keys / len(keys)
        return replace(moment, C=C, _factors={})


def other_keys(lm: LanguageModel, request: EditRequest, layer: int) -> Float[Tensor, "n d_mlp"]:
    """Keys of the other subjects of the project's facts in the request's own template, on the unedited model.

    Subjects whose facts share the request's true object are left out: they are what neighbourhood scores are measured
    on, and an edit that had seen them would flatter itself.
    """
    facts = load_facts()
    true = (request.target_true or "").strip()
    same = {fact.prompt.subject for fact in facts if fact.target_true.strip() == true} | {request.prompt.subject}
    subjects = sorted({fact.prompt.subject for fact in facts})
    kept = [i for i, subject in enumerate(subjects) if subject not in same]
    return subject_keys(lm, request.prompt.template, subjects, layer)[kept]


def subject_keys(lm: LanguageModel, template: str, subjects: Sequence[str], layer: int) -> Float[Tensor, "n d_mlp"]:
    """The key at the last token of each subject in the template; those of the last few templates are remembered."""
    known: dict[tuple[str, int], Tensor] = lm.memo.setdefault("subject keys", {})
    keys = known.get((template, layer))
    if keys is None:
        keys = last_keys(lm, [Prompt(template, subject) for subject in subjects], layer)
        while len(known) >= TEMPLATES_KEPT:
            known.pop(next(iter(known)), None)
        known[template, layer] = keys
    return keys  # and not known[...]: another session may have pushed it out by now


def last_keys(lm: LanguageModel, prompts: Sequence[Prompt], layer: int) -> Float[Tensor, "n d_mlp"]:
    """The key at each prompt's last subject token; what comes after it does not run."""
    rows = [encode(lm.tokenizer, prompt) for prompt in prompts]
    cut, point, found = [row.ids[: row.subject[1]] for row in rows], Point("mlp_key", layer), []
    for at in range(0, len(cut), SUBJECTS_AT_ONCE):
        batch = batch_of(lm, cut[at : at + SUBJECTS_AT_ONCE])
        found.append(activations(lm, batch, [point])[point][torch.arange(len(batch.ids)), batch.last].float())
    return torch.cat(found)


POLICIES = (Rome, RRome, PRome, CRome, HRome, NRome)


@dataclass(frozen=True, eq=False)
class Terms:
    """Δ = residual wᵀ directionᵀ C⁻¹, with w such that Δ adds the residual at every column of `denominator`.

    For one key: Δ = residual (C⁻¹ direction)ᵀ / (denominatorᵀ C⁻¹ direction). The last column stands for k*.
    """

    direction: Float[Tensor, "d_mlp m"]
    denominator: Float[Tensor, "d_mlp m"]
    residual: Float[Tensor, " d_model"]


def policy_terms(policy: str, keys: Keys, delta: Float[Tensor, " d_model"]) -> Terms:
    """What distinguishes the key policies, all of it (SPEC of each in the classes' formulas).

    v* = v_0 + δ, and v_0 = W k_0, so v* − W k_0 = δ.
    """
    k_star, k_0 = keys.keys.mean(0)[:, None], keys.k_0[:, None]
    match policy:
        case "rome":
            return Terms(k_star, k_0, delta)
        case "r-rome" | "c-rome":
            return Terms(k_star, k_star, keys.v_0 + delta - keys.values.mean(0))
        case "p-rome":
            return Terms(k_0, k_0, delta)
        case "h-rome":
            return Terms(k_star, k_star, delta)
        case "n-rome":
            both = torch.cat([k_0, k_star], 1)
            return Terms(both, both, delta)
    raise EditError(f"There is no key policy '{policy}'.", "", f"Choose of {', '.join(p.name for p in POLICIES)}.")


def rank_one(module: str, terms: Terms, moment: Moment, ridge: float) -> Delta:
    """The update's two factors, solved in float64 (Meng et al. 2022, equation 2; for several keys EMMET's form)."""
    solved = moment.solve(terms.direction.cpu(), ridge)
    gram = terms.denominator.double().cpu().T @ solved
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
    U = (terms.residual.double().cpu() * total)[:, None]
    device, dtype = terms.residual.device, terms.residual.dtype
    return Delta(module, U.to(device, dtype), u[None].to(device, dtype))


def prefixes_of(lm: LanguageModel, config: RomeConfig, edits: Sequence[Edit]) -> tuple[str, ...]:
    """The config's prefixes, or those it asks the model for."""
    if config.prefixes is None:
        return sampled_prefixes(lm, config.seed, edits, config.n_prefixes)
    return config.prefixes or ("",)


def solve_rome(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: RomeConfig,
    *,
    moments: Mapping[int, Moment] | None,
    edits: Sequence[Edit],
    track: Track,
    report: Report,
) -> Edit:
    """k*, v* and the rank-one update of one request."""
    if len(requests) != 1:
        raise EditError(
            f"{config.name} edits one fact at a time; {len(requests)} were given.",
            "",
            "Solve them one after another, each with the former ones in edits=.",
        )
    (request,), layer = requests, config.layer
    if layer is None or not 0 <= layer < lm.n_layers:
        raise EditError(f"Layer {layer} does not exist.", "", f"'{lm.name}' has layers 0 to {lm.n_layers - 1}.")
    moment = moments_for(lm, [layer], moments, track)[layer]
    prefixes = prefixes_of(lm, config, edits)
    prompts = prompts_of(lm, request, prefixes, config.kl_at)
    keys = keys_of(lm, prompts, layer, edits)
    final = (final_by_hooks if replay_note(lm) else final_by_replay)(lm, prompts, layer, edits)
    # The clamp and the decay refer to the module's whole output, bias included, as in the authors' code.
    delta, history = optimise_delta(
        lm,
        prompts,
        keys.v_0 + keys.bias,
        final,
        config.value_settings,
        scale=config.scale(keys.values + keys.bias, keys.v_0 + keys.bias),
        track=track,
        report=report,
    )
    return _edit(
        lm, request, replace(config, prefixes=tuple(prefixes)), keys, delta, moment, history, [e.id for e in edits]
    )


def _edit(
    lm: LanguageModel,
    request: EditRequest,
    config: RomeConfig,
    keys: Keys,
    delta: Float[Tensor, " d_model"],
    moment: Moment,
    history: tuple[Step, ...],
    on: Sequence[str],
) -> Edit:
    terms = policy_terms(config.name, keys, delta)
    W_k = keys.v_0 if config.name in ("rome", "p-rome") else keys.values.mean(0)
    metric = config.metric(lm, request, keys.keys.mean(0), moment)
    return Edit(
        requests=(request,),
        method=config.name,
        config=config,
        deltas=(rank_one(lm.down_projection(moment.layer), terms, metric, config.ridge),),
        k_star=terms.direction[:, -1],
        v_star=W_k + terms.residual,
        k_0=keys.k_0,
        v_0=keys.v_0,
        history=history,
        base=lm.fingerprint,
        on=tuple(on),
        corpus=f"{moment.corpus}, {moment.n_tokens:,} tokens",
        extras={"delta": delta, "keys": keys.keys, "values": keys.values, "bias": keys.bias},
    )


def repolicy(lm: LanguageModel, edit: Edit, policy: str, moments: Mapping[int, Moment] | None = None) -> Edit:
    """The same request, δ and keys under another key policy, without optimising again."""
    config_class = next((p for p in POLICIES if p.name == policy), None)
    if config_class is None or "keys" not in edit.extras:
        raise EditError(f"An edit by '{edit.method}' cannot be turned into '{policy}'.", "", "Solve it again.")
    # A policy may have settings that the edit's own does not have; they keep their defaults.
    shared = [f.name for f in fields(config_class) if hasattr(edit.config, f.name)]
    config = config_class(**{name: getattr(edit.config, name) for name in shared})
    layer = edit.config.layer
    moment = moments_for(lm, [layer], moments)[layer]
    kept = edit.extras
    keys = Keys(kept["keys"], kept["values"], edit.k_0, edit.v_0, kept["bias"])
    return _edit(lm, edit.requests[0], config, keys, kept["delta"], moment, edit.history, edit.on)
