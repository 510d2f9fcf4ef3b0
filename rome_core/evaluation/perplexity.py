"""Perplexity on general text that no edit is about: the first thing that breaks when a model does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from rome_core.editing.edit import Edit
from rome_core.files import ASSETS
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import text_ids

TEXTS_AT_ONCE = 8
HEAD_ROWS = 512  # the head at all tokens of a batch at once would take a gigabyte


@cache
def general_texts() -> tuple[str, ...]:
    """Short passages written for this project, one a paragraph, about nothing that its facts are about."""
    text = (ASSETS / "general_text.txt").read_text(encoding="utf-8")
    return tuple(passage.strip() for passage in text.split("\n\n") if passage.strip())


def perplexity(lm: LanguageModel, texts: Sequence[str] | None = None, *, edits: Sequence[Edit] = ()) -> float:
    """exp of the mean NLL (nats a token) of all tokens but each text's first. texts=None: the project's passages."""
    rows = [text_ids(lm.tokenizer, text)[: lm.max_positions] for text in (general_texts() if texts is None else texts)]
    rows = sorted((row for row in rows if len(row) > 1), key=len)
    total, count = 0.0, 0
    for at in range(0, len(rows), TEXTS_AT_ONCE):
        chunk = rows[at : at + TEXTS_AT_ONCE]
        batch = batch_of(lm, chunk)
        hidden = hidden_states(lm, batch, edits=edits)[:, :-1][batch.mask[:, 1:]]
        following = batch.ids[:, 1:][batch.mask[:, 1:]]
        for states, tokens in zip(hidden.split(HEAD_ROWS), following.split(HEAD_ROWS), strict=True):
            log_probs = lm.unembed(states).float().log_softmax(-1)
            total -= float(log_probs.gather(1, tokens[:, None]).cpu().double().sum())
        count += len(following)
    return math.exp(min(total / max(count, 1), 700.0)) if math.isfinite(total) else math.inf
