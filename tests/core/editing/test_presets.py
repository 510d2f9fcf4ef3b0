"""None in a config means the model's preset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rome_core.editing.methods import METHODS
from rome_core.editing.presets import PRESETS, is_first_token, preset, resolve
from rome_core.editing.published import Shape, published
from rome_core.errors import PromptError
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import tiny_model


@pytest.mark.parametrize("name", PRESETS)
def test_a_measured_model_has_its_own_preset_with_its_source(name: str) -> None:
    lm = replace(tiny_model(), name=name)

    assert preset(lm) == PRESETS[name]
    assert preset(lm).source


def test_a_model_that_others_have_set_up_is_known_by_its_shape_and_not_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, (_, sets) = replace(tiny_model(), name="a folder"), published()
    shapes = {one.model: Shape("none", 1, 1, 1) for one in sets}
    monkeypatch.setattr("rome_core.editing.published.published", lambda: (shapes, sets))
    assert "not measured" in preset(replace(lm, name="/models/gpt2-xl/")).source

    shapes["gpt2-xl"] = Shape(lm.hf.config.model_type, lm.n_layers, lm.d_model, lm.d_mlp)

    found = preset(lm)
    assert (found.layer, found.clamp, found.steps) == (17, 4, 20)
    assert "kmeng01/memit, hparams/ROME/gpt2-xl.json" in found.source and "EasyEdit switches C off" in found.source


def test_an_unmeasured_model_says_so_and_gets_a_layer_it_has() -> None:
    for layers in (1, 4, 9):
        found = preset(tiny_model(layers=layers))

        assert 0 <= found.layer < layers
        assert "not measured" in found.source


def test_resolve_fills_in_what_is_none_and_nothing_else() -> None:
    lm = replace(tiny_model(), name=DEFAULT_MODEL)
    config = METHODS["r-rome"](lr=0.25)

    resolved = resolve(lm, config)

    found = PRESETS[DEFAULT_MODEL]
    assert resolved == replace(config, layer=found.layer, clamp=found.clamp, steps=found.steps)
    assert resolved.prefixes is None  # not a preset: None means sampled
    assert resolve(lm, replace(config, layer=2, clamp=9.0, steps=3)) == replace(config, layer=2, clamp=9.0, steps=3)
    assert config.layer is None


def test_a_subject_that_is_the_first_token_has_presets_of_its_own_where_one_key_is_edited() -> None:
    lm = replace(tiny_model(), name=DEFAULT_MODEL)
    usual, early = PRESETS[DEFAULT_MODEL], PRESETS[DEFAULT_MODEL].first_token
    first = EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")
    later = EditRequest(Prompt("The {} is in the city of", "Paris"), "Rome")
    assert early and is_first_token(lm, [first]) and not is_first_token(lm, [later])

    def layer_and_clamp(config, *requests):
        found = resolve(lm, config, requests)
        return found.layer, found.clamp

    rome, memit, tuned = (METHODS[name] for name in ("n-rome", "memit", "ft"))
    assert layer_and_clamp(rome(), first) == (early.layer, early.clamp)
    assert resolve(lm, rome(), [first]).steps == early.steps
    assert layer_and_clamp(rome(), later) == layer_and_clamp(rome()) == (usual.layer, usual.clamp)
    assert layer_and_clamp(rome(layer=7), first) == (7, usual.clamp)  # the clamp goes with its layer
    assert resolve(lm, memit(), [first]).layer == resolve(lm, tuned(), [first]).layer == usual.layer


def test_a_subject_that_has_no_tokens_is_refused_where_it_is_used_and_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = replace(tiny_model(), name=DEFAULT_MODEL)

    def nothing(*_: object) -> None:
        raise PromptError("The tokenizer leaves nothing of the subject.")

    monkeypatch.setattr("rome_core.editing.presets.encode", nothing)

    found = resolve(lm, METHODS["n-rome"](), [EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")])

    assert found.layer == PRESETS[DEFAULT_MODEL].layer
