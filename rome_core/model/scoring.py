"""How probable given continuations are: the one measurement that every score is built on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import PromptError
from rome_core.model.edits import Update
from rome_core.model.hooks import batch_of, hidden_states, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import labels, target_ids, text_ids

T = TypeVar("T")
BATCH_TOKENS = 4_096  # tokens of one forward pass


@dataclass(frozen=True)
class Scored:
    """A continuation's tokens, teacher-forced: log-probability (nats) of each, and whether it was the argmax."""

    log_p: tuple[float, ...]
    hits: tuple[bool, ...]

    @property
    def nll(self) -> float:
        """Mean over the tokens, nats."""
        return -sum(self.log_p) / len(self.log_p)

    @property
    def p_joint(self) -> float:
        """Probability of the whole continuation."""
        return math.exp(sum(self.log_p))

    @property
    def p_mean(self) -> float:
        """Geometric mean of the tokens' probabilities, exp(−NLL)."""
        return math.exp(-self.nll)


def score(lm: LanguageModel, pairs: Sequence[tuple[str, str]], *, edits: Sequence[Update] = ()) -> list[Scored]:
    """Score (text, continuation) pairs; a continuation is taken as it is, with its leading space."""
    if not all(text.strip() for text, _ in pairs):
        raise PromptError("The text before the answer is empty.", "", "Write the beginning of a sentence.")
    rows = [(text_ids(lm.tokenizer, text), target_ids(lm.tokenizer, text, more)) for text, more in pairs]
    order = sorted(range(len(rows)), key=lambda r: len(rows[r][0]) + len(rows[r][1]))
    scored: dict[int, Scored] = {}
    for chunk in chunks(order, lambda r: len(rows[r][0]) + len(rows[r][1])):
        scored.update(zip(chunk, _score_chunk(lm, [rows[r] for r in chunk], edits), strict=True))
    return [scored[r] for r in range(len(rows))]


def chunks(rows: Iterable[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Rows in the given order, as many together as make at most BATCH_TOKENS padded tokens."""
    chunk, longest = list[T](), 0
    for row in rows:
        longest = max(longest, length(row))
        if chunk and (len(chunk) + 1) * longest > BATCH_TOKENS:
            yield chunk
            chunk, longest = [], length(row)
        chunk.append(row)
    if chunk:
        yield chunk


def _score_chunk(
    lm: LanguageModel, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], edits: Sequence[Update]
) -> list[Scored]:
    # The last token of an answer is asked for and not read, so answers of one token behind one text share a row.
    row_of = {ids: r for r, ids in enumerate(dict.fromkeys(front + more[:-1] for front, more in rows))}
    hidden = hidden_states(lm, batch_of(lm, list(row_of)), edits=edits)
    places = [(row_of[front + more[:-1]], len(front) - 1 + t) for front, more in rows for t in range(len(more))]
    index = torch.tensor(places, device=hidden.device)
    wanted = torch.tensor([token for _, more in rows for token in more], device=hidden.device)
    log_probs = lm.unembed(hidden[index[:, 0], index[:, 1]]).float().log_softmax(-1)
    log_p = log_probs.gather(1, wanted[:, None])[:, 0].tolist()
    hits = (log_probs.argmax(-1) == wanted).tolist()
    ends = torch.tensor([len(more) for _, more in rows]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [Scored(tuple(log_p[a:b]), tuple(hits[a:b])) for a, b in zip(starts, ends, strict=True)]


def continuation_probabilities(
    lm: LanguageModel, text: str, continuations: Sequence[str], *, edits: Sequence[Update] = ()
) -> list[float]:
    """Joint probability of each continuation of `text`, over all of its tokens.

    continuation_probabilities(lm, "The Eiffel Tower is located in the city of", [" Rome", " Paris"], edits=[edit])
    """
    return [scored.p_joint for scored in score(lm, [(text, more) for more in continuations], edits=edits)]


def kl_divergence(before: Float[Tensor, "n vocab"], after: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """KL(before ‖ after) of each row in nats, float64, from log-probabilities."""
    p, q = before.cpu().double(), after.cpu().double()
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def next_tokens(lm: LanguageModel, text: str, *, edits: Sequence[Update] = (), k: int = 10) -> list[tuple[str, float]]:
    """The k most probable next tokens of a text."""
    return top_tokens(lm, next_logits(lm, batch_of(lm, [text_ids(lm.tokenizer, text)]), edits=edits)[0].softmax(-1), k)


def top_tokens(lm: LanguageModel, p: Float[Tensor, " vocab"], k: int) -> list[tuple[str, float]]:
    """The k most probable tokens, as they read, with their probabilities."""
    top = p.topk(k)
    return list(zip(labels(lm.tokenizer, tuple(top.indices.tolist())), top.values.tolist(), strict=True))
