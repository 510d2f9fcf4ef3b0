"""What a hypernetwork is trained on: facts to edit, prompts that must follow, and text that must stay as it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.editing.hypernetworks.hypernetwork import (
    Gradient,
    HyperNetwork,
    describe,
    edited_blocks,
    edited_matrices,
    gradients,
)
from rome_core.editing.second_moment import self_written_texts
from rome_core.editing.teacher_forcing import Final, Forced, final_states, forced_rows, precise
from rome_core.facts.datasets import Fact
from rome_core.model.hooks import Batch, Overlay, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, text_ids
from rome_core.progress import Track

TEXT_TOKENS = 20_000  # of the model's own text
PIECE = 20  # tokens
TOGETHER = 2  # pieces a lesson
Pieces = list[tuple[tuple[int, ...], ...]]  # token rows of one length that are read together
POSITIONS = 8  # of each piece, at which KL is measured


@dataclass(frozen=True, eq=False)
class Unrelated:
    """Texts whose next tokens must stay as they are. before: states after the final norm, without an edit."""

    final: Final
    before: Float[Tensor, "rows pos d_model"]
    positions: Int[Tensor, "rows n"]

    def states(self, overlays: Sequence[Overlay]) -> tuple[Float[Tensor, "m d_model"], Float[Tensor, "m d_model"]]:
        """Before and after, at the positions."""
        rows = torch.arange(len(self.positions), device=self.positions.device)[:, None]
        before, after = (states[rows, self.positions].flatten(0, 1) for states in (self.before, self.final(overlays)))
        return before, after


@dataclass(frozen=True, eq=False)
class Lesson:
    """One fact to edit: the row whose gradient is taken, the rows that must follow, the texts that must not change."""

    request: EditRequest
    row: Forced
    equivalents: Forced
    unrelated: tuple[Unrelated, ...]


class Lessons:
    """Lessons of one part of the facts. What lies below the edited blocks runs once for each row of tokens."""

    def __init__(self, lm: LanguageModel, facts: Sequence[Fact], pieces: Pieces, seed: int) -> None:
        self.lm, self.facts, self.pieces, self.seed = lm, list(facts), pieces, seed
        self.objects: dict[str, list[str]] = {}
        for fact in self.facts:
            self.objects[fact.relation] = sorted({fact.target_true, *self.objects.get(fact.relation, [])})
        self._kept: dict[object, tuple[Final, Float[Tensor, "batch pos d_model"]]] = {}

    def training(self, step: int) -> Lesson:
        """Every fact once before any twice; the target is the fact's own new object or another one of its kind."""
        epoch, place = divmod(step, len(self.facts))
        order = list(self.facts)
        random.Random(f"order {self.seed} {epoch}").shuffle(order)
        fact, draw = order[place], random.Random(f"step {self.seed} {step}")
        others = [one for one in self.objects[fact.relation] if one != fact.target_true]
        return self.lesson(fact, draw.choice([fact.target_new, *others]), draw)

    def lesson(self, fact: Fact, target: str, draw: random.Random) -> Lesson:
        """Equivalent are the prompt and its paraphrases; unrelated are pieces of the model's own text and, at their
        ends, the prompt of a fact about another subject and the fact's own prompt about a third one of its kind."""
        first = edited_blocks(self.lm).start
        own = (fact.prompt.text, *fact.paraphrases)
        row, equivalents = (
            forced_rows(self.lm, [(text, target) for text in texts], first, states=self._final)
            for texts in (own[:1], own)
        )
        lm = self.lm
        pieces = draw.choice(self.pieces)
        places = [sorted(draw.sample(range(1, len(piece)), min(POSITIONS, len(piece) - 1))) for piece in pieces]
        others = [one for one in self.facts if one.prompt.subject != fact.prompt.subject]
        alike = [one for one in others if one.relation == fact.relation] or others
        neighbour = replace(fact.prompt, subject=draw.choice(alike).prompt.subject)
        asked = [text_ids(lm.tokenizer, prompt.text) for prompt in (draw.choice(others).prompt, neighbour)]
        return Lesson(
            EditRequest(fact.prompt, target),
            row,
            equivalents,
            (self._unrelated(pieces, places), *(self._unrelated([ids], [[len(ids) - 1]]) for ids in asked)),
        )

    def _unrelated(self, rows: Sequence[tuple[int, ...]], positions: Sequence[Sequence[int]]) -> Unrelated:
        final, before = self._run(batch_of(self.lm, rows), edited_blocks(self.lm).start)
        return Unrelated(final, before, torch.tensor(positions, device=before.device))

    def _final(self, lm: LanguageModel, batch: Batch, first: int, edits: Sequence[Edit] = ()) -> Final:
        return self._run(batch, first)[0]

    def _run(self, batch: Batch, first: int) -> tuple[Final, Float[Tensor, "batch pos d_model"]]:
        key = tuple(map(tuple, batch.ids.tolist())), tuple(batch.mask.sum(1).tolist())
        if key not in self._kept:
            final = final_states(self.lm, batch, first)
            with torch.no_grad():
                self._kept[key] = final, final([])
        return self._kept[key]


def gradient_of(lm: LanguageModel, lesson: Lesson) -> list[Gradient]:
    return gradients(lm, lesson.row, list(edited_matrices(lm)))


def outcome(lm: LanguageModel, network: HyperNetwork, lesson: Lesson) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Edit by the network, then look: mean NLL on the equivalents, mean KL on the unrelated texts.

    Text, another prompt and a neighbour count alike, however many positions each has: where the neighbour is one among
    many, a network learns to say the new object of every subject. Differentiable with respect to the network.
    """
    updates = network.updates(gradient_of(lm, lesson), describe(lm, lesson.request))
    overlays: list[Overlay] = [(delta.module, delta) for delta in updates]
    log_p, _ = lesson.equivalents.log_p(lm, overlays)
    kl = torch.stack([_divergence(lm, *one.states(overlays)) for one in lesson.unrelated]).mean()
    return -lesson.equivalents.mean(log_p).mean(), kl


def _divergence(
    lm: LanguageModel, before: Float[Tensor, "m d_model"], after: Float[Tensor, "m d_model"]
) -> Float[Tensor, ""]:
    """Mean KL(before ‖ after) of the next tokens, in nats."""
    one, other = (precise(lm.unembed(states)).log_softmax(-1) for states in (before, after))
    return (one.exp() * (one - other)).sum(-1).mean()


def pieces_of_text(lm: LanguageModel, seed: int, track: Track) -> tuple[Pieces, Pieces]:
    """Pieces of the model's own text: for training and, from other texts, for looking."""
    rows = [text_ids(lm.tokenizer, text) for text in self_written_texts(lm, TEXT_TOKENS, seed, track=track)]
    split = max(1, len(rows) * 4 // 5)
    known, unknown = (
        [row[at : at + PIECE] for row in part for at in range(0, len(row) - PIECE + 1, PIECE)]
        for part in (rows[:split], rows[split:])
    )
    together = [list(zip(*[iter(some)] * TOGETHER, strict=False)) for some in (known, unknown)]
    return together[0], together[1]
