"""The noise study, against traces at each level."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import trace
from rome_core.tracing.noise import noise_study
from rome_core.tracing.runs import TraceConfig, TraceRequest, draw_noise, prepare
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is far", "green dragon")
CONFIG = TraceConfig(samples=3, noise_from="vocabulary")


def test_each_level_is_the_corrupted_run_of_a_trace() -> None:
    lm = tiny_model("llama")
    levels = list(noise_study(lm, prepare(lm, TraceRequest(PROMPT, CONFIG)), scales=(0.1, 1.0, 3.0)))
    assert [level.scale for level in levels] == [0.1, 1.0, 3.0]
    for level in levels:
        expected = trace(lm, PROMPT, replace(CONFIG, noise_scale=level.scale))
        assert level.p == pytest.approx(expected.corrupted, abs=1e-7)
        assert level.low <= level.p <= level.high
    assert levels[0].p == pytest.approx(trace(lm, PROMPT, CONFIG).clean, rel=0.1)  # next to no noise


def test_the_levels_share_one_draw() -> None:
    lm = tiny_model("llama")
    small, _ = draw_noise(lm, replace(CONFIG, noise_scale=1.0), 2)
    large, _ = draw_noise(lm, replace(CONFIG, noise_scale=4.0), 2)
    assert (large / small - 4).abs().max() < 1e-4
