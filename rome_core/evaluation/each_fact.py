"""Editing facts one at a time, each on the untouched model, and measuring every one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.second_moment import Moment
from rome_core.errors import RomeError
from rome_core.evaluation.answers import ask, questions_about
from rome_core.evaluation.fact_measures import score_answers
from rome_core.evaluation.scores import Score, summarise_values
from rome_core.facts.datasets import Fact
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent


@dataclass(frozen=True)
class Record:
    """One fact before and after its own edit, or the reason why there is no edit."""

    fact: str
    before: dict[str, float] | None
    after: dict[str, float] | None
    delta_norm: float
    error: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Scores after the edits, before them, and what they are made of. Failed facts are counted, not hidden."""

    scores: dict[str, Score]
    before: dict[str, Score]
    records: tuple[Record, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.after is None)


def evaluate(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: MethodConfig,
    *,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
    track: Track = silent,
) -> Evaluation:
    """Edit each fact by itself on top of `edits` and score it: ES, PS, NS, S and magnitudes with intervals.

    evaluate(lm, load_facts()[:100], METHODS["r-rome"]()).scores["ES"].value
    """
    records = tuple(track(measure(lm, facts, config, moments=moments, edits=edits), "Editing facts", len(facts)))
    done = [record for record in records if record.after is not None]
    return Evaluation(
        summarise_values([record.after for record in done if record.after is not None]),
        summarise_values([record.before for record in done if record.before is not None]),
        records,
    )


def measure(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: MethodConfig,
    *,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
) -> Iterator[Record]:
    """One record a fact, as they finish. A fact that cannot be edited gives a record with its reason."""
    for fact in facts:
        before = None
        try:
            before = score_answers(ask(lm, questions_about(fact), edits=edits))
            edit = solve(lm, [fact.request], config, moments=moments, edits=edits)
            after = score_answers(ask(lm, questions_about(fact), edits=[*edits, edit]))
        except RomeError as error:
            yield Record(fact.id, before, None, float("nan"), str(error))
            continue
        yield Record(fact.id, before, after, edit.delta_norm)
