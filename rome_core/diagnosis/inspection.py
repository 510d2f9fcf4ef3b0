"""Looking into an edit: what is trained, what its key and value are made of, what the update does to W."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.errors import EditError
from rome_core.model.edits import outputs_of
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, as_target, encode, labels, target_ids
from rome_core.model.wording import gap


@dataclass(frozen=True)
class TokenRow:
    """One token of what is trained. role: "prompt", "subject", "subject's last" (where δ is added) or "target".

    gap: on the target's first token, whether it begins with a space, and by which rule.
    """

    text: str
    id: int
    role: str
    trained: bool
    gap: str = ""


def token_table(lm: LanguageModel, request: EditRequest) -> list[TokenRow]:
    """The tokens of prompt and target as the optimisation sees them, built once and never decoded in between."""
    encoded = encode(lm.tokenizer, request.prompt)
    first, stop = encoded.subject
    rows = []
    for i, (text, token) in enumerate(zip(encoded.labels, encoded.ids, strict=True)):
        role = "subject's last" if i == stop - 1 else "subject" if first <= i < stop else "prompt"
        rows.append(TokenRow(text, token, role, False))
    target = target_ids(lm.tokenizer, request.prompt.text, as_target(request.target_new, request.prompt.text))
    rules = [gap(request.prompt.text, request.target_new)[1], *[""] * (len(target) - 1)]
    rows += [
        TokenRow(text, token, "target", True, rule)
        for text, token, rule in zip(labels(lm.tokenizer, target), target, rules, strict=True)
    ]
    return rows


def promoted_tokens(lm: LanguageModel, vector: Float[Tensor, " d_model"], k: int = 10) -> list[tuple[str, float]]:
    """The k tokens whose logits a vector in the residual stream raises most, read through final norm and head."""
    with torch.no_grad():
        top = lm.logits(vector.to(lm.device, lm.dtype)[None])[0].topk(k)
    return list(zip(labels(lm.tokenizer, tuple(top.indices.tolist())), top.values.tolist(), strict=True))


def strongest_neurons(edit: Edit, k: int = 10) -> list[tuple[int, float]]:
    """The k entries of k* with the largest magnitude: (index, value)."""
    key = edit.k_star.reshape(-1, edit.k_star.shape[-1])[0]
    top = key.abs().topk(k).indices
    return [(int(i), float(key[i])) for i in top]


def key_cosines(edit: Edit) -> Float[Tensor, "n n"]:
    """Cosines between the keys of the prefixed prompts: how much the subject's key depends on what stands before.

    Raises EditError where an edit does not keep them.
    """
    if edit.known_keys.prompts is None:
        raise EditError(f"Edits by '{edit.method}' keep no keys of single prompts.")
    keys = torch.nn.functional.normalize(edit.known_keys.prompts.keys.cpu().double(), dim=-1)
    return keys @ keys.T


def constraint_error(lm: LanguageModel, edit: Edit, *, edits: Sequence[Edit] = ()) -> float:
    """‖W_hat K − V‖/‖V‖ at the keys where the method asks for equality, float64.

    edits: those that it was solved on top of; W is theirs.
    """
    (delta,), (layer,) = edit.deltas, edit.config.layers
    keys = edit.config.keys_asked(edit, layer)
    if keys is None:
        raise EditError(f"Edits by '{edit.method}' ask for no value at a key.")
    values = edit.v_star.cpu().double().reshape(-1, lm.d_model).T
    reached = outputs_of(lm, delta.module, [*edits, edit], keys)
    return float((reached - values).norm() / values.norm())


def spectrum(lm: LanguageModel, edit: Edit) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Singular values of W and of W_hat, largest first."""
    (delta,) = edit.deltas
    W = lm.matrix(delta.module).detach().cpu().double()
    return torch.linalg.svdvals(W), torch.linalg.svdvals(W + delta.matrix().cpu())


def target_rank(lm: LanguageModel, request: EditRequest, *, edits: Sequence[Edit] = ()) -> int:
    """Place of the target's first token among all tokens after the bare prompt; 1 is the model's answer."""
    encoded = encode(lm.tokenizer, request.prompt)
    first = target_ids(lm.tokenizer, request.prompt.text, as_target(request.target_new, request.prompt.text))[0]
    logits = next_logits(lm, batch_of(lm, [encoded.ids]), edits=edits)[0]
    return int((logits > logits[first]).sum()) + 1
