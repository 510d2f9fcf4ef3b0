"""The table of measures: whole, and numbers printed as the papers do."""

from __future__ import annotations

from rome_core.evaluation.comparison import COLUMNS
from rome_core.evaluation.fact_measures import MeasureSettings, measure_fact
from rome_core.evaluation.generation_measures import References
from rome_core.evaluation.measures import COUNTERFACT, MEASURES, ZSRE
from tests.core.evaluation.test_answers import FACT
from tests.tiny import random_edit, tiny_model


def test_every_column_and_part_is_in_the_table() -> None:
    parts = {part for measure in MEASURES.values() for part in measure.parts}

    assert {*COUNTERFACT, *ZSRE, *parts} <= MEASURES.keys()
    assert all(measure.parts for measure in MEASURES.values() if measure.mean == "harmonic")
    assert all(measure in MEASURES.values() for measure in COLUMNS.values())


def test_everything_that_is_measured_of_a_fact_is_in_the_table() -> None:
    lm, references = tiny_model(), References({"Rome": ["Rome is a city of hills."]})
    settings = MeasureSettings(neighbours=1, generated=2, passages=1)
    before = measure_fact(lm, FACT, settings)
    values = measure_fact(lm, FACT, settings, edits=[random_edit(lm)]).values(before, references, FACT.target_new)

    harmonic = {name for name, measure in MEASURES.items() if measure.parts}
    assert values.keys() == {*COUNTERFACT, *ZSRE} - harmonic


def test_numbers_are_printed_as_the_papers_do() -> None:
    assert MEASURES["ES"].print(0.8334) == "83.3" and MEASURES["GE"].print(6.266) == "626.6"
    assert MEASURES["NKL"].print(0.12345) == "0.123" and MEASURES["perplexity"].print(34.85) == "34.9"
    assert MEASURES["perplexity"].print(2.5e7) == "2.5e+07"
    assert (MEASURES["ES"].title, MEASURES["NKL"].title, MEASURES["perplexity"].title) == (
        *("ES (× 100)", "NKL (nats)", "perplexity"),
    )
