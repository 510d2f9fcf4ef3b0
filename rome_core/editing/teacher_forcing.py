"""Prompts with their targets behind them, run again and again while weights of the upper blocks change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.model.hooks import Batch, Overlay, batch_of, hidden_states
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Recording, record, replay_note, run_block
from rome_core.model.tokens import as_target, target_ids, text_ids

Final = Callable[[Sequence[Overlay]], Float[Tensor, "batch pos d_model"]]
States = Callable[[LanguageModel, Batch, int, Sequence[Edit]], Final]


@dataclass(frozen=True, eq=False)
class Forced:
    """Rows of prompt and target, teacher-forced. positions: where each target token is predicted from; where `counts`
    is False a row's target is already over. final: overlays → states after the final norm."""

    batch: Batch
    targets: Int[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    counts: Bool[Tensor, "batch tokens"]
    final: Final

    def log_p(
        self, lm: LanguageModel, overlays: Sequence[Overlay], positions: Int[Tensor, "batch tokens"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch vocab"]]:
        """Log-probability of each target token, 0 where there is none, and the logits of the first one's place."""
        positions = self.positions if positions is None else positions
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        logits = precise(lm.unembed(self.final(overlays)[rows, positions]))
        log_p = logits.log_softmax(-1).gather(-1, self.targets[..., None])[..., 0]
        return log_p * self.counts, logits[:, 0]

    def mean(self, values: Float[Tensor, "batch tokens"]) -> Float[Tensor, " batch"]:
        """Mean over each row's target tokens."""
        return values.sum(1) / self.counts.sum(1)


def precise(x: Tensor) -> Tensor:
    """At least single precision: half precision has too few digits for losses and for Adam."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def forced_rows(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    first: int,
    edits: Sequence[Edit] = (),
    states: States | None = None,
) -> Forced:
    """Rows for (prompt, target) pairs, whose overlays stand on modules of blocks `first` and above.

    states: makes the rows' final states; `final_states` where it is not given.
    """
    fronts = [text_ids(lm.tokenizer, text) for text, _ in pairs]
    targets = [target_ids(lm.tokenizer, text, as_target(target, text)) for text, target in pairs]
    batch = batch_of(lm, [front + target[:-1] for front, target in zip(fronts, targets, strict=True)])
    width = max(map(len, targets))
    table = torch.zeros(3, len(pairs), width, dtype=torch.long, device=batch.ids.device)
    for r, (front, target) in enumerate(zip(fronts, targets, strict=True)):
        table[0, r, : len(target)] = torch.tensor(target)
        table[1, r, : len(target)] = torch.arange(len(target)) + len(front) - 1
        table[2, r, : len(target)] = 1
    return Forced(batch, table[0], table[1], table[2].bool(), (states or final_states)(lm, batch, first, edits))


def final_states(lm: LanguageModel, batch: Batch, first: int, edits: Sequence[Edit] = ()) -> Final:
    """Overlays on blocks `first` and above → states after the final norm; what lies below runs only once."""
    if replay_note(lm):
        return final_by_hooks(lm, batch, edits)
    recording = upper_part(record(lm, batch, edits=edits), first)
    rows = torch.arange(len(batch.ids), device=batch.ids.device)

    def final(overlays: Sequence[Overlay]) -> Float[Tensor, "batch pos d_model"]:
        state = recording.states[first]
        for layer in range(first, lm.n_layers):
            prefix = lm.layout.block(layer) + "."
            own = [overlay for overlay in overlays if overlay[0].startswith(prefix)]
            state = run_block(lm, recording, layer, 0, state, rows, overlays=own)
        return lm.module(lm.layout.norm)(state)

    return final


def final_by_hooks(lm: LanguageModel, batch: Batch, edits: Sequence[Edit] = ()) -> Final:
    """The same, plainly: the whole model runs every time. The oracle of the fast path."""
    return lambda overlays: hidden_states(lm, batch, edits=edits, overlays=overlays)


def upper_part(recording: Recording, first: int) -> Recording:
    """What running blocks `first` and above from their first token on needs: a small part of a recording."""
    n = len(recording.keys)
    own = [max(layer, first) for layer in range(n)]  # those below are not run: the lists only keep their places
    return replace(
        recording,
        states=[recording.states[first]] * (n + 1),
        outputs={},
        keys=[recording.keys[layer] for layer in own],
        values=[recording.values[layer] for layer in own],
        calls=[recording.calls[layer] for layer in own],
    )
