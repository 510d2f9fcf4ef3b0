"""What a method asks for, and how far an edit meets it: its objective with this edit's numbers, all computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.editing.method import Term
from rome_core.editing.second_moment import Moment, stored_moment
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel


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
class Account:
    """An edit against its method's objective (LaTeX)."""

    objective: str
    matrices: tuple[Changed, ...]
    terms: tuple[Term, ...]
    notes: tuple[str, ...]


def account(
    lm: LanguageModel, edit: Edit, below: Sequence[Edit] = (), moments: Mapping[int, Moment] | None = None
) -> Account:
    """Compute everything. below: the edits that it was solved on top of. moments: C by layer; what is missing is taken
    from the shipped or cached ones, and never estimated here."""
    config = edit.config

    def moment_at(layer: int) -> Moment | None:
        return (moments or {}).get(layer) or stored_moment(lm, layer)

    places = {lm.down_projection(layer): layer for layer in range(lm.n_layers)}
    matrices = []
    for number, delta in enumerate(edit.deltas):
        layer = places.get(delta.module)
        moment = None if layer is None else moment_at(layer)
        keys = None if layer is None else config.keys_asked(edit, layer)
        residuals = None if keys is None else config.residuals_asked(lm, edit, below, number, keys)
        matrices.append(_changed(lm, edit, delta, layer, moment, keys, residuals))
    terms = config.terms(lm, edit, below, moment_at)
    if edit.history:
        terms.append(Term(r"\mathcal L", edit.history[-1].loss, "the loss at the end of the search, nats"))
    notes = config.notes(edit, {matrix.layer: matrix.missed for matrix in matrices if matrix.layer is not None})
    if any(edit.moment_keys.get(layer, C.key) != C.key for layer in edit.moment_keys if (C := moment_at(layer))):
        notes.append("The edit was solved with another C than the one that measures it here.")
    return Account(config.objective or config.formula, tuple(matrices), tuple(terms), tuple(notes))


def _changed(
    lm: LanguageModel,
    edit: Edit,
    delta: Delta,
    layer: int | None,
    moment: Moment | None,
    keys: Float[Tensor, "d_mlp n"] | None,
    residuals: Float[Tensor, "d_model n"] | None,
) -> Changed:
    W = lm.matrix(delta.module).detach().cpu().double()
    change = relative = least = missed = None
    if moment is not None:
        C = moment.C.double()
        change = delta.norm_under(C)
        relative = change / float(((W @ C) * W).sum().sqrt())
    if keys is not None and residuals is not None:
        added = delta.U.cpu().double() @ (delta.V.cpu().double() @ keys)
        missed = float((residuals - added).norm() / residuals.norm().clamp(min=1e-300))
        if moment is not None:
            gram = keys.T @ moment.solve(keys, edit.config.conditioning)
            least = float((added * torch.linalg.lstsq(gram, added.T).solution.T).sum().clamp(min=0).sqrt())
    return Changed(delta.module, layer, delta.rank(), delta.norm() / float(W.norm()), change, relative, least, missed)
