"""Restoration: the corrupted run with some of its states set back to what they were in the clean one.

Step 3 of causal tracing (Meng et al. 2022, section 2): by replay where it agrees with plain hooks, else by plain hooks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import ModelError
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell, Finished, batches, is_out_of_memory, plain_cell, replay_note, sweep
from rome_core.tracing.runs import Runs

log = logging.getLogger(__name__)


def window_of(layer: int, width: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) that a window centred on `layer` restores: clipped at the ends, as by the authors."""
    return max(0, layer - width // 2), min(n_layers, layer + width - width // 2)


def restored_states(
    lm: LanguageModel, runs: Runs, cells: Sequence[Cell]
) -> Iterator[list[tuple[Cell, Float[Tensor, "samples tail vocab"]]]]:
    """Logits at the answer's positions of the restored runs, by replay where it was found to agree with plain hooks."""
    tail = len(runs.answer)
    if replay_note(lm):
        for cell in cells:
            hidden = plain_cell(
                lm, runs.clean, runs.corrupted.batch, cell, edits=runs.corrupted.edits, corruption=[runs.corruption]
            )
            yield [(cell, lm.unembed(hidden[:, -tail:]))]
        return
    for group in batches(lm, runs.corrupted, cells, _budget(lm, runs)):
        yield from _swept(lm, runs, group, tail)


def _swept(
    lm: LanguageModel, runs: Runs, group: Sequence[Cell], tail: int
) -> Iterator[list[tuple[Cell, Float[Tensor, "samples tail vocab"]]]]:
    """One batch of cells; where memory ends its halves, one after the other. Nothing of a batch is finished before its
    last step, so nothing is done twice that counts."""
    try:
        for finished in sweep(lm, runs.clean, runs.corrupted, group, tail):
            yield _read(lm, finished)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(group) == 1:
            raise ModelError(
                f"There is not enough memory for one restored run of {len(runs.labels)} tokens and "
                f"{len(runs.corrupted.batch.ids)} noise draws.",
                "",
                "Shorten the prompt, or take fewer draws.",
            ) from None
        log.warning("Out of memory with %d restored runs at once: going on with half of them.", len(group))
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            yield from _swept(lm, runs, half, tail)


def _budget(lm: LanguageModel, runs: Runs) -> int:
    """The budget that was asked for, or half of what the device has beside the weights. Not what happens to be free:
    the number of steps must be the same whenever it is asked for."""
    memory = device_memory(lm.device)
    if memory is None:
        return runs.request.budget
    weights = sum(p.numel() * p.element_size() for p in lm.hf.parameters() if p.device == lm.device)
    return max(1, min(runs.request.budget, (memory - weights) // 2))


def device_memory(device: torch.device) -> int | None:
    """Bytes that an accelerator has in all; None of the processor, whose memory others use, too."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(torch.mps.recommended_max_memory()) if device.type == "mps" else None


HEAD_ROWS = 512  # states that go through the head together: enough to be fast
HEAD_BYTES = 2**28  # of their logits; a softmax over them takes as much again


def _head_rows(lm: LanguageModel) -> int:
    """512 states up to a vocabulary of 130,000 words, fewer for larger ones."""
    return max(1, min(HEAD_ROWS, HEAD_BYTES // (4 * lm.hf.config.get_text_config().vocab_size)))


def _read(lm: LanguageModel, finished: Finished) -> list[tuple[Cell, Float[Tensor, "samples tail vocab"]]]:
    """Logits of the finished cells. Ten rows at a time would run the head at a fifth of the processor's rate."""
    read: list[tuple[Cell, Tensor]] = []
    at_once = max(1, _head_rows(lm) // max(1, finished[0][1].shape[:2].numel())) if finished else 1
    for at in range(0, len(finished), at_once):
        chunk = finished[at : at + at_once]
        logits = lm.logits(torch.stack([state for _, state in chunk]))  # [cell samples tail vocab]
        read += [(cell, of_cell) for (cell, _), of_cell in zip(chunk, logits, strict=True)]
    return read


def n_steps(lm: LanguageModel, runs: Runs, cells: Sequence[Cell]) -> int:
    """How often `restored_states` yields."""
    if replay_note(lm):
        return len(cells)
    return sum(lm.n_layers - group[0].entry for group in batches(lm, runs.corrupted, cells, _budget(lm, runs)))
