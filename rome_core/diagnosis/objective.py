"""What a method asks for, and how far an edit meets it: its objective with this edit's numbers, all computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.diagnosis.inspection import weight_of
from rome_core.editing.method import MethodConfig
from rome_core.editing.methods.alphaedit import AlphaEdit
from rome_core.editing.methods.emmet import Emmet
from rome_core.editing.methods.least_squares import MassConfig
from rome_core.editing.methods.memit import Memit
from rome_core.editing.methods.rome import NRome, Rome, RomeConfig
from rome_core.editing.second_moment import Moment, stored_moment
from rome_core.model.edits import Delta, Edit
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import encode

RANK_BELOW = 1e-6  # of the largest singular value: the factors are kept in the model's precision


@dataclass(frozen=True)
class Changed:
    """One matrix. Norms are Frobenius norms; None where the method has no keys or there is no C of this place.

    change: ‖ΔC^½‖, the root mean square of what Δ adds to the outputs of ordinary keys, summed over the outputs;
    relative_change: divided by ‖WC^½‖. least: the smallest ‖ΔC^½‖ that adds the same at the edited keys.
    missed: ‖R − ΔK‖/‖R‖, the share of what was asked for at the keys that Δ does not bring.
    """

    module: str
    layer: int | None
    rank: int
    relative_norm: float
    change: float | None
    relative_change: float | None
    least: float | None
    missed: float | None


@dataclass(frozen=True)
class Term:
    """A symbol in LaTeX, its value for this edit, and what it is."""

    symbol: str
    value: float
    meaning: str


@dataclass(frozen=True)
class Account:
    """An edit against its method's objective (LaTeX)."""

    objective: str
    matrices: tuple[Changed, ...]
    terms: tuple[Term, ...]
    notes: tuple[str, ...]


def objective_of(config: MethodConfig) -> str:
    """The problem that the method solves, as a formula."""
    if isinstance(config, AlphaEdit):
        return (
            r"\min_{\Delta_l}\ \lVert\Delta_l P K_l - R_l\rVert^2 + \lVert\Delta_l P K_p\rVert^2 "
            r"+ \lambda' \lVert\Delta_l P\rVert^2"
        )
    if isinstance(config, MassConfig):
        return r"\min_{\Delta_l}\ \lVert\Delta_l K_l - R_l\rVert^2 + \lambda\,\lVert\Delta_l C_l^{1/2}\rVert_F^2"
    if isinstance(config, Emmet):
        return r"\min_{\hat W}\ \lVert(\hat W - W)\,C^{1/2}\rVert_F^2\quad\text{subject to}\quad\hat W K = V"
    if isinstance(config, NRome):
        return (
            r"\min_{\Delta}\ \lVert\Delta\,C_T^{1/2}\rVert_F^2\quad\text{subject to}\quad"
            r"\Delta k^* = \delta,\ \Delta k_0 = \delta"
        )
    if isinstance(config, RomeConfig):
        return r"\min_{\hat W}\ \lVert(\hat W - W)\,C^{1/2}\rVert_F^2\quad\text{subject to}\quad\hat W k^* = v^*"
    return config.formula


def account(
    lm: LanguageModel, edit: Edit, below: Sequence[Edit] = (), moments: Mapping[int, Moment] | None = None
) -> Account:
    """Compute everything. below: the edits that it was solved on top of. moments: C by layer; what is missing is taken
    from the shipped or cached ones, and never estimated here."""
    places = {lm.down_projection(layer): layer for layer in range(lm.n_layers)}
    matrices = []
    for number, delta in enumerate(edit.deltas):
        layer = places.get(delta.module)
        C = None if layer is None else (moments or {}).get(layer) or stored_moment(lm, layer)
        K = None if layer is None else _keys(edit, layer)
        R = None if K is None else _asked(lm, edit, below, number, K)
        matrices.append(_changed(lm, edit, delta, layer, C, K, R))
    return Account(
        objective_of(edit.config),
        tuple(matrices),
        tuple(_terms(lm, edit, below, moments)),
        tuple(_notes(edit, matrices)),
    )


def _keys(edit: Edit, layer: int) -> Float[Tensor, "d_mlp n"] | None:
    """The keys at which the method asks for something, as columns."""
    if f"keys_{layer}" in edit.extras:
        return edit.extras[f"keys_{layer}"].double().cpu()
    if "keys" in edit.extras:
        key = edit.k_0 if isinstance(edit.config, Rome) else edit.k_star  # published ROME asks at the bare prompt's key
        return key.double().cpu()[:, None]
    return None


def _asked(
    lm: LanguageModel, edit: Edit, below: Sequence[Edit], number: int, K: Float[Tensor, "d_mlp n"]
) -> Float[Tensor, "d_model n"]:
    """R: what the update number `number` was asked to add at its keys."""
    if isinstance(edit.config, MassConfig):
        share = len(edit.deltas) - number
        return _missing(lm, edit, below, number) / share
    return edit.v_star.double().cpu().reshape(-1, lm.d_model).T - _outputs(lm, edit.deltas[number].module, below, K)


def _missing(lm: LanguageModel, edit: Edit, below: Sequence[Edit], done: int) -> Float[Tensor, "d_model n"]:
    """z − h at the last edited block after the first `done` updates (MEMIT's residual)."""
    rows = [encode(lm.tokenizer, request.prompt) for request in edit.requests]
    batch = batch_of(lm, [row.ids[: row.subject[1]] for row in rows])
    point = Point("resid_post", edit.config.layer)
    states = activations(lm, batch, [point], edits=[*below, replace(edit, deltas=edit.deltas[:done])])[point]
    now = states[torch.arange(len(rows)), batch.last].double().cpu()
    return (edit.v_star.double().cpu() - now).T


def _outputs(
    lm: LanguageModel, module: str, edits: Sequence[Edit], K: Float[Tensor, "d_mlp n"]
) -> Float[Tensor, "d_model n"]:
    """W K with the active edits of the same matrix."""
    outputs = weight_of(lm, module).double().cpu() @ K
    for delta in (delta for edit in edits for delta in edit.deltas if delta.module == module):
        outputs = outputs + delta.matrix().cpu() @ K
    return outputs


def _changed(
    lm: LanguageModel,
    edit: Edit,
    delta: Delta,
    layer: int | None,
    moment: Moment | None,
    K: Float[Tensor, "d_mlp n"] | None,
    R: Float[Tensor, "d_model n"] | None,
) -> Changed:
    U, V = delta.U.double().cpu(), delta.V.double().cpu()
    W = weight_of(lm, delta.module).double().cpu()
    change = relative = least = missed = None
    if moment is not None:
        C = moment.C.double()
        change = float(((U.T @ U) * (V @ C @ V.T)).sum().clamp(min=0).sqrt())
        relative = change / float(((W @ C) * W).sum().sqrt())
    if K is not None and R is not None:
        added = U @ (V @ K)
        missed = float((R - added).norm() / R.norm().clamp(min=1e-300))
        if moment is not None:
            gram = K.T @ moment.solve(K, edit.config.ridge)
            least = float((added * torch.linalg.lstsq(gram, added.T).solution.T).sum().clamp(min=0).sqrt())
    return Changed(delta.module, layer, _rank(U, V), delta.norm() / float(W.norm()), change, relative, least, missed)


def _rank(U: Float[Tensor, "d_model r"], V: Float[Tensor, "r d_mlp"]) -> int:
    """Numerical rank of U V, from the small matrix between their orthonormal factors."""
    small = torch.linalg.qr(U).R @ torch.linalg.qr(V.T).R.T
    values = torch.linalg.svdvals(small)
    return int((values > RANK_BELOW * values.max().clamp(min=1e-300)).sum())


def _terms(lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Mapping[int, Moment] | None) -> list[Term]:
    config, terms = edit.config, list[Term]()
    if isinstance(config, MassConfig):
        before, after = (_missing(lm, edit, below, done).norm() for done in (0, len(edit.deltas)))
        terms.append(
            Term(
                r"\lVert z - \hat h\rVert / \lVert z - h\rVert",
                float(after / before.clamp(min=1e-300)),
                "of the way to z that is left at the last edited block, all updates in place (bare prompts)",
            )
        )
    elif isinstance(config, RomeConfig):
        (delta,), V = edit.deltas, edit.v_star.double().cpu().reshape(-1, lm.d_model).T
        K = _keys(edit, config.layer or 0)
        if K is not None:
            reached = _outputs(lm, delta.module, [*below, edit], K)
            error = ((reached - V).norm(dim=0) / V.norm(dim=0)).max()
            name = "K" if len(edit.requests) > 1 else "k_0" if isinstance(config, Rome) else "k^*"
            value = "V" if name == "K" else "v^*"
            terms.append(
                Term(
                    rf"\lVert\hat W {name} - {value}\rVert / \lVert {value}\rVert",
                    float(error),
                    "how exactly the constraint is met" + (", the worst of all facts" if name == "K" else ""),
                )
            )
        if "delta" in edit.extras:
            wanted, bare = edit.extras["delta"].double().cpu(), edit.k_0.double().cpu()
            share = float(delta.matrix().cpu() @ bare @ wanted / wanted.square().sum().clamp(min=1e-300))
            terms.append(
                Term(
                    r"\langle\Delta k_0, \delta\rangle / \lVert\delta\rVert^2",
                    share,
                    "the share of δ that the bare prompt's key brings about; 1 is all of it",
                )
            )
    if isinstance(config, AlphaEdit):
        for layer in config.layers:
            moment = (moments or {}).get(layer) or stored_moment(lm, layer)
            if moment is not None:
                values = torch.linalg.eigvalsh(moment.C.double()).clamp(min=0)  # as null_space, without the vectors
                room = int((values.cumsum(0) / values.sum() <= config.energy).sum())
                terms.append(
                    Term(rf"\operatorname{{rank}} P_{{{layer}}}", room, f"directions of {lm.d_mlp:,} left free")
                )
    if isinstance(config, MassConfig):
        symbol = r"\lambda'" if isinstance(config, AlphaEdit) else r"\lambda"
        unit = "in units of the mean squared norm of P k" if isinstance(config, AlphaEdit) else "relative to C"
        terms.append(Term(symbol, getattr(config, "weight", float("nan")), f"the weight of the second term, {unit}"))
    if hasattr(config, "epsilon"):
        largest = max(float(delta.matrix().abs().max()) for delta in edit.deltas)
        terms.append(Term(r"\lVert\Delta\rVert_\infty", largest, "the largest change of a weight"))
        terms.append(Term(r"\varepsilon", config.epsilon, "how large it may be"))
    if edit.history:
        terms.append(Term(r"\mathcal L", edit.history[-1].loss, "the loss at the end of the search, nats"))
    return terms


def _notes(edit: Edit, matrices: Sequence[Changed]) -> list[str]:
    notes = []
    if isinstance(edit.config, Memit):
        words = (
            "MEMIT is least squares and not an equality. With one fact it is ROME's homogeneous form only on one layer "
            "and in the limit λ → 0; it is often said to be ROME, without the limit."
        )
        if len(edit.requests) == 1 and all(one.missed is not None for one in matrices):
            parts = ", ".join(f"{1 - (one.missed or 0.0):.1%} in layer {one.layer}" for one in matrices)
            words += f" With this λ an update brings about kᵀC⁻¹k / (λ + kᵀC⁻¹k) of what it is asked for: {parts}."
        notes.append(words)
    if isinstance(edit.config, NRome):
        notes.append(
            "C_T counts the keys of similar subjects and of namesakes beside C, and two keys are held at once, so by C "
            "alone this Δ is larger than the smallest that meets the constraint at k*. That is the price of sparing "
            "those subjects."
        )
    if isinstance(edit.config, Rome):
        notes.append(
            "Published ROME takes its direction from k* and its residual and denominator from k_0, so its Δ meets the "
            "constraint at k_0, but is not the smallest that does."
        )
    return notes
