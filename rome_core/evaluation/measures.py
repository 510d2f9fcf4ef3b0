"""Everything that is measured of one fact under one model: log-probabilities of its prompts, and what follows from
them; fluency, drift on the neighbours, perplexity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.evaluation.generation_measures import References, ngram_entropy
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.facts.datasets import N_NEIGHBOURS, Fact
from rome_core.model.generation import generate_many
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import Scored, score
from rome_core.model.tokens import as_target, text_ids
from rome_core.settings import setting

Kind = Literal["edit", "paraphrase", "neighbour", "neighbour+"]
TOP_K = 5  # of the sampled generations that GE and RS are read from, as in the authors' code


@dataclass(frozen=True)
class MeasureSettings:
    """How much is measured, and what is drawn."""

    neighbours: int = setting(N_NEIGHBOURS, "Neighbours", "Neighbour prompts a fact, at most.", low=0, high=100, step=1)
    generated: int = setting(
        100,
        "Generated tokens",
        "Length of the texts that GE is read from; 0 leaves GE out, which saves most of the time.",
        source="Meng et al. 2022",
        low=0,
        high=1000,
        step=10,
    )
    passages: int = setting(
        5, "Passages", "Of the project's general texts, for perplexity; 0 leaves it out.", low=0, high=1000, step=1
    )
    seed: int = setting(0, "Seed", "Of the sampled texts.", low=0, high=2**31 - 1, step=1)


@dataclass(frozen=True)
class Answer:
    """The new and the true object after one prompt. kind "neighbour+": the edit's sentence stands in front."""

    kind: Kind
    text: str
    new: Scored
    true: Scored

    @property
    def lead(self) -> float:
        """How far the object that should win is ahead, in geometric-mean token probability."""
        ahead = self.new.p_mean - self.true.p_mean
        return -ahead if self.kind.startswith("neighbour") else ahead


@dataclass(frozen=True, eq=False)
class Measured:
    """One fact under one model. neighbour_log_p: next-token log-probabilities (nats) on its neighbour prompts."""

    fact: str
    answers: tuple[Answer, ...]
    texts: tuple[str, ...] = ()
    perplexity: float | None = None
    neighbour_log_p: Float[Tensor, "prompts vocab"] | None = field(default=None, repr=False)

    @property
    def known(self) -> bool:
        """Whether the model says the true object by itself: its every token is the first choice."""
        return all(hit for answer in self.answers if answer.kind == "edit" for hit in answer.true.hits)

    def values(
        self, before: Measured | None = None, references: References | None = None, new: str = ""
    ) -> dict[str, float]:
        """The fact's own scores by name. Shares and magnitudes of Meng et al. 2022 (ES … NM), NS+ and NM+ of
        Hoelscher-Obermaier et al. 2023, token accuracies of zsRE, GE, RS, NKL in nats (with `before`), perplexity."""
        values = from_answers(self.answers)
        if self.texts:
            values["GE"] = float(np.mean([ngram_entropy(text) for text in self.texts]))
            if references and (similarity := references.consistency(self.texts, new)) is not None:
                values["RS"] = similarity
        if before is not None and before.neighbour_log_p is not None and self.neighbour_log_p is not None:
            values["NKL"] = next_token_kl(before.neighbour_log_p, self.neighbour_log_p)
        if self.perplexity is not None:
            values["perplexity"] = self.perplexity
        return values


def from_answers(answers: Sequence[Answer]) -> dict[str, float]:
    """All scores that log-probabilities of the prompts decide. What a fact has no prompts for is absent."""
    by_kind = {
        kind: [a for a in answers if a.kind == kind] for kind in ("edit", "paraphrase", "neighbour", "neighbour+")
    }
    values: dict[str, float] = {}
    for letter, mark, some in zip("EPNN", ("", "", "", "+"), by_kind.values(), strict=True):
        if some:
            values[f"{letter}S{mark}"] = float(np.mean([a.lead > 0 for a in some]))
            values[f"{letter}M{mark}"] = float(np.mean([a.lead for a in some]))
    for name, read in _ACCURACIES.items():
        if some := by_kind[_READ_ON[name]]:
            values[name] = float(np.mean([read(a) for a in some]))
    return values


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


# Token accuracy is teacher-forced: every token is judged behind the right ones before it. Exact match is of the answer
# that greedy decoding writes: it equals the target if and only if every teacher-forced token is the first choice.
_ACCURACIES: Mapping[str, Callable[[Answer], float]] = {
    "efficacy": lambda a: _share(a.new.hits),
    "paraphrase": lambda a: _share(a.new.hits),
    "specificity": lambda a: _share(a.true.hits),
    "exact match": lambda a: float(all(a.new.hits)),
    "exact match, paraphrase": lambda a: float(all(a.new.hits)),
}
_READ_ON: Mapping[str, Kind] = {
    "efficacy": "edit",
    "paraphrase": "paraphrase",
    "specificity": "neighbour",
    "exact match": "edit",
    "exact match, paraphrase": "paraphrase",
}


def measure_fact(
    lm: LanguageModel, fact: Fact, settings: MeasureSettings, *, edits: Sequence[Edit] = (), prefix: str = ""
) -> Measured:
    """Measure one fact under the model with `edits`. prefix: stands before every prompt, as C-ROME wants it."""
    near = fact.neighbours[: settings.neighbours]
    sentence = f"{fact.prompt.text} {fact.target_new.strip()}. "
    prompts: list[tuple[Kind, str, str]] = [
        ("edit", fact.prompt.text, fact.target_true),
        *(("paraphrase", text, fact.target_true) for text in fact.paraphrases),
        *(("neighbour", text, fact.neighbour_true) for text in near),
        *(("neighbour+", sentence + text, fact.neighbour_true) for text in near),
    ]
    prompts = [(kind, prefix + text, true) for kind, text, true in prompts]
    pairs = [(text, as_target(target)) for _, text, true in prompts for target in (fact.target_new, true)]
    scored = score(lm, pairs, edits=edits)
    answers = tuple(
        Answer(kind, text, new, true)
        for (kind, text, _), new, true in zip(prompts, scored[::2], scored[1::2], strict=True)
    )
    log_p = None
    if near:
        rows = [text_ids(lm.tokenizer, prefix + text) for text in near]
        log_p = next_logits(lm, batch_of(lm, rows), edits=edits).float().log_softmax(-1).cpu()
    passages = general_texts()[: settings.passages]
    return Measured(
        fact.id,
        answers,
        _written(lm, fact, settings, edits, prefix),
        perplexity(lm, passages, edits=edits) if passages else None,
        log_p,
    )


def _written(
    lm: LanguageModel, fact: Fact, settings: MeasureSettings, edits: Sequence[Edit], prefix: str
) -> tuple[str, ...]:
    """Sampled texts that begin with the fact's generation prompts; where it has none, with its edit prompt."""
    if not settings.generated:
        return ()
    starts = [prefix + text for text in fact.generations or (fact.prompt.text,)]
    rest = generate_many(lm, starts, settings.generated, edits=edits, temperature=1.0, top_k=TOP_K, seed=settings.seed)
    return tuple(start + text for start, text in zip(starts, rest, strict=True))


def next_token_kl(before: Float[Tensor, "prompts vocab"], after: Float[Tensor, "prompts vocab"]) -> float:
    """Mean over the prompts of KL(before ‖ after) of the next token, nats, from log-probabilities."""
    p, q = before.double(), after.double()
    return float((p.exp() * (p - q)).sum(-1).mean())
