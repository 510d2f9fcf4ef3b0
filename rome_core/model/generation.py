"""Text from the model, greedy or sampled, with or without edits. The lock is held for one token at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import PromptError, RomeError
from rome_core.model.edits import Update
from rome_core.model.hooks import batch_of, hooked
from rome_core.model.language_model import LanguageModel
from rome_core.model.layout import cache_argument
from rome_core.model.tokens import text_ids
from rome_core.progress import Track, silent


def generate(
    lm: LanguageModel,
    text: str,
    max_new_tokens: int = 40,
    *,
    edits: Sequence[Update] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """The text that follows `text`, without it. temperature 0 is greedy. Ends early at the model's end token."""
    return generate_many(lm, [text], max_new_tokens, edits=edits, temperature=temperature, top_k=top_k, seed=seed)[0]


def generate_many(
    lm: LanguageModel,
    texts: Sequence[str],
    max_new_tokens: int = 40,
    *,
    edits: Sequence[Update] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[str]:
    """`generate` for several texts in one batch."""
    if not all(text.strip() for text in texts):
        raise PromptError("The text to continue is empty.", "", "Write the beginning of a sentence.")
    rows = [text_ids(lm.tokenizer, text) for text in texts]
    steps = decode(lm, rows, max_new_tokens, edits=edits, temperature=temperature, top_k=top_k, seed=seed)
    tokens = torch.stack([torch.empty(len(rows), dtype=torch.long), *steps], 1)[:, 1:].tolist()
    return [str(lm.tokenizer.decode(_until_end(lm, row), skip_special_tokens=True)) for row in tokens]


def sample_texts(
    lm: LanguageModel,
    n: int,
    length: int,
    *,
    seed: int,
    top_k: int | None = None,
    edits: Sequence[Update] = (),
    track: Track = silent,
) -> list[str]:
    """n texts of at most `length` tokens that the model writes from an empty page (after its document start token)."""
    steps = decode(lm, [(lm.document_start,)] * n, length, edits=edits, temperature=1.0, top_k=top_k, seed=seed)
    tokens = torch.stack(list(track(steps, "The model writes text", length)), 1).tolist()
    texts = [str(lm.tokenizer.decode(_until_end(lm, row), skip_special_tokens=True)) for row in tokens]
    return [text for text in texts if text.strip()]


def decode(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_tokens: int,
    *,
    edits: Sequence[Update] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """The next token of every row, n_tokens times or until the model's positions are used up.

    Rows of different length are aligned at their ends. Raises RomeError for a setting that cannot be.
    """
    _check_sampling(temperature, top_k, seed)
    batch = batch_of(lm, rows, align=[len(row) - 1 for row in rows])
    mask, ids, positions = batch.mask.long(), batch.ids, batch.positions
    cached = "cache" not in lm.cannot
    kept = _empty_cache(lm) if cached else {}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(min(n_tokens, lm.max_positions - batch.ids.shape[1] + 1)):
        with hooked(lm, edits), torch.no_grad():
            hidden = lm.hf.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=cached, **kept
            ).last_hidden_state[:, -1]
            tokens = _pick(lm.unembed(hidden), temperature, top_k, generator)
        yield tokens
        new, at = tokens[:, None].to(ids.device), positions[:, -1:] + 1
        ids, positions = (new, at) if cached else (torch.cat([ids, new], 1), torch.cat([positions, at], 1))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


def _empty_cache(lm: LanguageModel) -> dict[str, Any]:
    """A cache that the keys and values of the tokens so far go into, under the name that the model takes it by."""
    from transformers import DynamicCache

    return {cache_argument(lm.hf.base_model): DynamicCache(config=lm.hf.config)}


def _check_sampling(temperature: float, top_k: int | None, seed: int) -> None:
    """Raise RomeError for settings of which no token could be drawn."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise RomeError(f"The temperature must be a number of 0 or more, not {temperature}.", "", "0 is greedy.")
    if top_k is not None and top_k < 1:
        raise RomeError(f"top_k must be a whole number of 1 or more, not {top_k}.", "", "None leaves all tokens in.")
    if not -(2**63) <= seed < 2**64:
        raise RomeError(f"The seed {seed} is out of range.", "", "Choose one of at most 64 bits.")


def _pick(
    logits: Float[Tensor, "batch vocab"], temperature: float, top_k: int | None, generator: torch.Generator
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1).cpu()
    scaled = logits.float().cpu() / temperature
    if top_k is not None:
        scaled[scaled < scaled.topk(min(top_k, scaled.shape[-1])).values[:, -1:]] = -torch.inf
    # By the inverse distribution function: one random number a row instead of one a vocabulary entry.
    cumulative = scaled.softmax(-1).double().cumsum(-1)
    threshold = torch.rand(len(scaled), 1, generator=generator, dtype=torch.float64) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=scaled.shape[-1] - 1)


def _until_end(lm: LanguageModel, tokens: Sequence[int]) -> list[int]:
    ends = lm.hf.generation_config.eos_token_id if lm.hf.generation_config else None
    stop = {lm.tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])}
    stop.add(lm.tokenizer.get_vocab().get("<|endoftext|>"))
    cut = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return list(tokens[:cut])
