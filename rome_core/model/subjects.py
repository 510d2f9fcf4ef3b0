"""States at the subject's last token, where a fact is looked up: an edit's key and the value that it changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.edits import Edit
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import BATCH_TOKENS
from rome_core.model.tokens import Prompt, encode


@torch.no_grad()
def subject_states(
    lm: LanguageModel, prompts: Sequence[Prompt], points: Collection[Point], *, edits: Sequence[Edit] = ()
) -> dict[Point, Float[Tensor, "n d"]]:
    """States at the last token of each prompt's subject, in single precision. What comes after it does not run.

    subject_states(lm, prompts, [Point("mlp_key", 5)])[Point("mlp_key", 5)]     # [n d_mlp]
    """
    encoded = [encode(lm.tokenizer, prompt) for prompt in prompts]
    rows = [row.ids[: row.subject[1]] for row in encoded]
    size = max(1, BATCH_TOKENS // max(map(len, rows), default=1))
    found: dict[Point, list[Tensor]] = {point: [] for point in points}
    for at in range(0, len(rows), size):
        batch = batch_of(lm, rows[at : at + size])
        states = activations(lm, batch, list(found), edits=edits)
        for point, state in states.items():
            found[point].append(state[torch.arange(len(batch.ids), device=state.device), batch.last].float())
    return {point: torch.cat(states) for point, states in found.items()}


def subject_keys(
    lm: LanguageModel, prompts: Sequence[Prompt], layer: int, *, edits: Sequence[Edit] = ()
) -> Float[Tensor, "n d_mlp"]:
    """Keys of a layer at the subjects' last tokens."""
    point = Point("mlp_key", layer)
    return subject_states(lm, prompts, [point], edits=edits)[point]
