"""Perplexity on general text that no edit is about: the first thing that breaks when a model does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch

from rome_core.assets import ASSETS
from rome_core.edits import Edit
from rome_core.hooks import batch_of, hidden_states
from rome_core.model import LanguageModel
from rome_core.tokens import text_ids


@cache
def general_texts() -> tuple[str, ...]:
    """Short passages written for this project, one a paragraph, about nothing that its facts are about."""
    text = (ASSETS / "general_text.txt").read_text(encoding="utf-8")
    return tuple(passage.strip() for passage in text.split("\n\n") if passage.strip())


def perplexity(lm: LanguageModel, texts: Sequence[str] | None = None, *, edits: Sequence[Edit] = ()) -> float:
    """exp of the mean NLL (nats a token) of all tokens but each text's first. texts=None: the project's passages."""
    total, count = 0.0, 0
    for text in texts if texts is not None else general_texts():
        ids = text_ids(lm.tokenizer, text)[: lm.max_positions]
        if len(ids) < 2:
            continue
        hidden = hidden_states(lm, batch_of(lm, [ids]), edits=edits)[0, :-1]
        log_probs = lm.unembed(hidden).float().log_softmax(-1)
        wanted = torch.tensor(ids[1:], device=hidden.device)
        total -= float(log_probs.gather(1, wanted[:, None]).double().sum())
        count += len(ids) - 1
    return math.exp(min(total / max(count, 1), 700.0)) if math.isfinite(total) else math.inf
