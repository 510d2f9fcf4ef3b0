"""Average effects: token groups by hand, averages and intervals against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rome_core.model.tokens import Prompt
from rome_core.tracing.averages import GROUPS, FactEffect, average, fact_effects, group_effects, token_groups
from rome_core.tracing.heat_map import trace
from rome_core.tracing.runs import SITES, TraceConfig
from tests.core.tracing.test_average_records import LAYERS, facts
from tests.tiny import tiny_model

CONFIG = TraceConfig(samples=2, noise_from="vocabulary")


@pytest.mark.parametrize(
    ("subject", "n", "expected"),
    [
        ((1, 4), 9, [-1, 0, 1, 2, 3, 4, 4, 4, 5]),
        ((0, 1), 4, [2, 3, 4, 5]),  # a single subject token is the subject's last
        ((2, 4), 5, [-1, -1, 0, 2, 5]),  # the last token is the last one even where it is the first subsequent
        ((1, 3), 3, [-1, 0, 5]),
    ],
)
def test_groups(subject: tuple[int, int], n: int, expected: list[int]) -> None:
    assert token_groups(subject, n) == expected


def test_a_facts_effects_are_means_over_the_groups_tokens() -> None:
    result = trace(tiny_model(), Prompt("The {} is located in the city of", "Eiffel Tower"), CONFIG)
    rows = group_effects(result)
    last = len(result.labels) - 1
    assert rows.shape == (len(GROUPS), 4)
    torch.testing.assert_close(rows[2], result.indirect_effect[2])
    torch.testing.assert_close(rows[4], result.indirect_effect[4:last].mean(0))
    torch.testing.assert_close(rows[5], result.indirect_effect[last])
    assert rows[1].isnan().all()  # a subject of two tokens has none in the middle


def effect(name: str, clean: float, values: list[list[float]]) -> FactEffect:
    return FactEffect(name, clean, 0.1, {"mlp_out": torch.tensor(values)})


def test_averages_leave_out_missing_groups_and_dropped_facts() -> None:
    nan = math.nan
    rows = [
        effect("a", 0.5, [[0.2, 0.4], [nan, nan]]),
        effect("b", 0.9, [[0.4, 0.0], [0.6, 0.1]]),
        FactEffect("c", 0.0, nan, {}, "the model's answer is another one"),
    ]
    result = average(rows)
    assert (result.n, result.dropped) == (2, {"the model's answer is another one": 1})
    assert result.total_effect[0] == pytest.approx((0.4 + 0.8) / 2)
    np.testing.assert_allclose(result.effects["mlp_out"].mean, [[0.3, 0.2], [0.6, 0.1]], atol=1e-7)
    # Two facts, drawn with replacement: the interval reaches from the smaller to the larger one.
    np.testing.assert_allclose(result.effects["mlp_out"].low[0], [0.2, 0.0], atol=1e-7)
    np.testing.assert_allclose(result.effects["mlp_out"].high[0], [0.4, 0.4], atol=1e-7)


def test_nothing_to_average() -> None:
    result = average([FactEffect("c", 0.0, math.nan, {}, "why")])
    assert result.n == 0 and result.dropped == {"why": 1} and math.isnan(result.total_effect[0])


def test_facts_stream_and_a_stopped_run_goes_on() -> None:
    lm = tiny_model("llama", layers=LAYERS)
    rows = list(fact_effects(lm, facts()[:3], CONFIG))

    assert [row.fact for row in rows] == [fact.id for fact in facts()[:3]]
    assert [bool(row.dropped) for row in rows] == [True, False, False]
    for fact, row in zip(facts()[1:3], rows[1:], strict=True):
        assert row.clean == pytest.approx(trace(lm, fact.prompt, CONFIG, answer=f" {fact.target_true}").clean)
    rest = list(fact_effects(lm, facts()[:3], CONFIG, done={row.fact for row in rows[:2]}))
    assert [row.fact for row in rest] == [rows[2].fact]


def test_a_fact_is_prepared_once_for_all_kinds(recorded: list[int]) -> None:
    [effect] = fact_effects(tiny_model("llama", layers=LAYERS), facts()[1:2], CONFIG)

    assert set(effect.effects) == set(SITES)
    assert recorded == [1, CONFIG.samples]  # the clean and the corrupted run
