"""None in a config means the model's preset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rome_core.default_model import DEFAULT_MODEL
from rome_core.methods import METHODS
from rome_core.presets import PRESETS, preset, resolve
from tests.tiny import tiny_model


@pytest.mark.parametrize("name", PRESETS)
def test_a_measured_model_has_its_own_preset_with_its_source(name: str) -> None:
    lm = replace(tiny_model(), name=name)

    assert preset(lm) == PRESETS[name]
    assert preset(lm).source


def test_a_model_of_the_authors_is_known_by_its_full_id_too() -> None:
    assert preset(replace(tiny_model(), name="openai-community/gpt2-xl")) == PRESETS["gpt2-xl"]


def test_an_unmeasured_model_says_so_and_gets_a_layer_it_has() -> None:
    for layers in (1, 4, 9):
        found = preset(tiny_model(layers=layers))

        assert 0 <= found.layer < layers
        assert "not measured" in found.source


def test_resolve_fills_in_what_is_none_and_nothing_else() -> None:
    lm = replace(tiny_model(), name=DEFAULT_MODEL)
    config = METHODS["r-rome"](lr=0.25)

    resolved = resolve(lm, config)

    assert (resolved.layer, resolved.clamp) == (PRESETS[DEFAULT_MODEL].layer, PRESETS[DEFAULT_MODEL].clamp)
    assert resolved == replace(config, layer=resolved.layer, clamp=resolved.clamp)
    assert resolved.prefixes is None  # not a preset: None means sampled
    assert resolve(lm, replace(config, layer=2, clamp=9.0)) == replace(config, layer=2, clamp=9.0)
    assert config.layer is None
