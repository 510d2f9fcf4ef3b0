"""States at the subject's last token, where a fact is looked up: an edit's key and the value that it changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.model.edits import Update
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import Prompt, encode

AT_ONCE = 128  # prompts of one pass


@torch.no_grad()
def subject_states(
    lm: LanguageModel, prompts: Sequence[Prompt], points: Collection[Point], *, edits: Sequence[Update] = ()
) -> dict[Point, Float[Tensor, "n d"]]:
    """States at the last token of each prompt's subject, in single precision. What comes after it does not run.

    subject_states(lm, prompts, [Point("mlp_key", 5)])[Point("mlp_key", 5)]     # [n d_mlp]
    """
    encoded = [encode(lm.tokenizer, prompt) for prompt in prompts]
    rows = [row.ids[: row.subject[1]] for row in encoded]
    found: dict[Point, list[Tensor]] = {point: [] for point in points}
    for at in range(0, len(rows), AT_ONCE):
        batch = batch_of(lm, rows[at : at + AT_ONCE])
        states = activations(lm, batch, list(found), edits=edits)
        for point, state in states.items():
            found[point].append(state[torch.arange(len(batch.ids), device=state.device), batch.last].float())
    return {point: torch.cat(states) for point, states in found.items()}


def subject_keys(
    lm: LanguageModel, prompts: Sequence[Prompt], layer: int, *, edits: Sequence[Update] = ()
) -> Float[Tensor, "n d_mlp"]:
    """Keys of a layer at the subjects' last tokens."""
    point = Point("mlp_key", layer)
    return subject_states(lm, prompts, [point], edits=edits)[point]
