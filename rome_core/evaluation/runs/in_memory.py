"""Facts edited one at a time, each on the untouched model, and every one measured: an evaluation without a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.editing.second_moment import Moment
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.runs.store import Row
from rome_core.evaluation.runs.work import Engine, Plan, Task
from rome_core.evaluation.scores import Score, summarise
from rome_core.facts.datasets import Fact
from rome_core.facts.new_objects import require_new_objects
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent

PROMPTS_ONLY = MeasureSettings(neighbours=100, generated=0, passages=0)  # no texts, no perplexity: most of the time


@dataclass(frozen=True)
class Evaluation:
    """Scores after the edits, before them, and the rows that they are made of. Failed facts are counted, not hidden."""

    scores: dict[str, Score]
    before: dict[str, Score]
    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.error)


def evaluate(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: MethodConfig,
    *,
    measures: MeasureSettings = PROMPTS_ONLY,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
    track: Track = silent,
) -> Evaluation:
    """Edit each fact by itself on top of `edits` and measure it: scores by name with their intervals over the facts.

    evaluate(lm, load_facts()[:100], METHODS["r-rome"]()).scores["ES"].value
    """
    each = evaluate_each(lm, facts, config, measures=measures, moments=moments, edits=edits)
    rows = tuple(row for rows in track(each, "Editing facts", len(facts)) for row in rows)
    done = [row for row in rows if not row.error]
    after, before = ([row.values for row in done if row.stage == stage] for stage in ("after", "before"))
    return Evaluation(summarise(after), summarise(before), rows)


def evaluate_each(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: MethodConfig,
    *,
    measures: MeasureSettings = PROMPTS_ONLY,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
) -> Iterator[tuple[Row, ...]]:
    """A fact's rows before and after its edit, as they finish; of one that cannot be edited, one with the reason.

    Raises DataError if some of the facts have no new object.
    """
    require_new_objects(facts)
    plan = Plan(tuple(facts), {config.name: config}, measures, below=tuple(edits))
    engine = Engine(lm, plan, moments or {})
    for group in range(len(plan.groups)):
        (rows,) = engine.work(Task(group, (config.name,))).values()
        yield tuple(rows)
