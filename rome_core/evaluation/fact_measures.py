"""Everything that is measured of one fact under one model: log-probabilities of its prompts, and what follows from
them; fluency, drift on the neighbours, perplexity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.evaluation.answers import Answer, Kind, Pairs, ask, questions_about
from rome_core.evaluation.generation_measures import References, ngram_entropy
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.facts.datasets import N_NEIGHBOURS, Fact
from rome_core.model.generation import generate_many
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import kl_divergence
from rome_core.model.tokens import text_ids
from rome_core.settings import setting

TOP_K = 5  # of the sampled generations that GE and RS are read from, as in the authors' code


@dataclass(frozen=True)
class MeasureSettings:
    """How much is measured, and what is drawn."""

    neighbours: int = setting(N_NEIGHBOURS, "Neighbours", "Neighbour prompts a fact, at most.", bounds=(0, 100, 1))
    generated: int = setting(
        100,
        "Generated tokens",
        "Length of the texts that GE is read from; 0 leaves GE out, which saves most of the time.",
        source="Meng et al. 2022",
        bounds=(0, 1000, 10),
    )
    passages: int = setting(
        5, "Passages", "Of the project's general texts, for perplexity; 0 leaves it out.", bounds=(0, 1000, 1)
    )
    seed: int = setting(0, "Seed", "Of the sampled texts.", bounds=(0, 2**31 - 1, 1))


@dataclass(frozen=True, eq=False)
class Measured:
    """One fact under one model. neighbour_log_p: next-token log-probabilities (nats) on its neighbour prompts."""

    answers: tuple[Answer, ...]
    texts: tuple[str, ...] = ()
    perplexity: float | None = None
    neighbour_log_p: Float[Tensor, "prompts vocab"] | None = field(default=None, repr=False)

    @property
    def known(self) -> bool:
        """Whether the model says the true object by itself: its every token is the first choice."""
        on_the_edit = [answer.true for answer in self.answers if answer.question.kind == "edit"]
        return all(hit for true in on_the_edit if true for hit in true.hits)

    def values(
        self, before: Measured | None = None, references: References | None = None, new: str = ""
    ) -> dict[str, float]:
        """The fact's own scores by name. Shares and magnitudes of Meng et al. 2022 (ES … NM), NS+ and NM+ of
        Hoelscher-Obermaier et al. 2023, token accuracies of zsRE, GE, RS, NKL in nats (with `before`), perplexity."""
        values = score_answers(self.answers)
        if self.texts:
            values["GE"] = float(np.mean([ngram_entropy(text) for text in self.texts]))
            if references and (similarity := references.consistency(self.texts, new)) is not None:
                values["RS"] = similarity
        if before is not None and before.neighbour_log_p is not None and self.neighbour_log_p is not None:
            values["NKL"] = float(kl_divergence(before.neighbour_log_p, self.neighbour_log_p).mean())
        if self.perplexity is not None:
            values["perplexity"] = self.perplexity
        return values


def score_answers(answers: Sequence[Answer]) -> dict[str, float]:
    """All scores that log-probabilities of the prompts decide. What a fact has no prompts for is absent."""
    by_kind: dict[str, list[Answer]] = {}
    for answer in answers:
        by_kind.setdefault(answer.question.kind, []).append(answer)
    values = _score_leads({kind: [answer.lead for answer in answers] for kind, answers in by_kind.items()})
    for name, (kind, read) in _ACCURACIES.items():
        if kind in by_kind:
            values[name] = float(np.mean([read(answer) for answer in by_kind[kind]]))
    return values


def score_pairs(pairs: Pairs) -> dict[str, float]:
    """Shares and magnitudes of kept probabilities of the new and the true object."""
    sign = {"neighbour": -1}
    return _score_leads({kind: [sign.get(kind, 1) * (new - true) for new, true in ps] for kind, ps in pairs.items()})


def _score_leads(leads: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The share of prompts on which the object that should win does, and by how much it does on average."""
    values: dict[str, float] = {}
    for kind, (letter, mark) in _LETTERS.items():
        if leads.get(kind):
            values[f"{letter}S{mark}"] = float(np.mean([lead > 0 for lead in leads[kind]]))
            values[f"{letter}M{mark}"] = float(np.mean(leads[kind]))
    return values


_LETTERS = {"edit": ("E", ""), "paraphrase": ("P", ""), "neighbour": ("N", ""), "neighbour+": ("N", "+")}


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


# Token accuracy is teacher-forced: every token is judged behind the right ones before it. Exact match is of the answer
# that greedy decoding writes: it equals the target if and only if every teacher-forced token is the first choice.
_ACCURACIES: Mapping[str, tuple[Kind, Callable[[Answer], float]]] = {
    "efficacy": ("edit", lambda a: _share(a.new.hits)),
    "paraphrase": ("paraphrase", lambda a: _share(a.new.hits)),
    "specificity": ("neighbour", lambda a: _share(a.true.hits if a.true else ())),
    "exact match": ("edit", lambda a: float(a.said)),
    "exact match, paraphrase": ("paraphrase", lambda a: float(a.said)),
}


def measure_fact(
    lm: LanguageModel, fact: Fact, settings: MeasureSettings, *, edits: Sequence[Edit] = (), prefix: str = ""
) -> Measured:
    """Measure one fact under the model with `edits`. prefix: stands before every prompt, as C-ROME wants it."""
    fact = replace(fact, neighbours=fact.neighbours[: settings.neighbours])
    plain = questions_about(fact)
    sentence = f"{fact.prompt.text} {fact.target_new.strip()}. "
    near = [question for question in plain if question.kind == "neighbour"]
    questions = [*plain, *(replace(question.behind(sentence), kind="neighbour+") for question in near)]
    answers = ask(lm, [question.behind(prefix) for question in questions], edits=edits)
    log_p = None
    if near:
        rows = [text_ids(lm.tokenizer, question.behind(prefix).text) for question in near]
        log_p = next_logits(lm, batch_of(lm, rows), edits=edits).float().log_softmax(-1).cpu()
    passages = general_texts()[: settings.passages]
    return Measured(
        answers,
        _sample_texts(lm, fact, settings, edits, prefix),
        perplexity(lm, passages, edits=edits) if passages else None,
        log_p,
    )


def _sample_texts(
    lm: LanguageModel, fact: Fact, settings: MeasureSettings, edits: Sequence[Edit], prefix: str
) -> tuple[str, ...]:
    """Sampled texts that begin with the fact's generation prompts; where it has none, with its edit prompt."""
    if not settings.generated:
        return ()
    starts = [prefix + text for text in fact.generations or (fact.prompt.text,)]
    rest = generate_many(lm, starts, settings.generated, edits=edits, temperature=1.0, top_k=TOP_K, seed=settings.seed)
    return tuple(start + text for start, text in zip(starts, rest, strict=True))
