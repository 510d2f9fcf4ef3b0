"""What every method's config must offer to the form, the registry and the solver."""

from __future__ import annotations

from dataclasses import fields

import pytest

from rome_core.editing.method import MethodConfig
from rome_core.editing.methods import DEFAULT_METHOD, METHODS, solve
from rome_core.errors import EditError
from rome_core.settings import about
from tests.tiny import REQUEST, tiny_model


def test_the_registry_and_the_classes_agree_on_names() -> None:
    assert {name: config.name for name, config in METHODS.items()} == {name: name for name in METHODS}
    assert DEFAULT_METHOD in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_and_describes_its_settings(name: str) -> None:
    config = METHODS[name]()
    assert isinstance(config, MethodConfig) and config.title.endswith(".") and config.formula.startswith(r"\Delta")
    assert {"scale"} == set(about(config)) if name in ("mend", "ke") else {"layer", "steps", "lr"} <= set(about(config))
    assert {field.name for field in fields(config)} - about(config).keys() <= {"prefixes", "checkpoint"}
    for field, description in about(config).items():
        assert description.help.endswith("."), field


def test_the_base_solves_nothing() -> None:
    with pytest.raises(TypeError, match="says nothing of how it solves"):
        solve(tiny_model(), [REQUEST], MethodConfig())


@pytest.mark.parametrize("name", METHODS)
def test_no_fact_is_one_sentence_and_so_are_two_where_one_is_edited(name: str) -> None:
    lm, config = tiny_model(), METHODS[name]()
    with pytest.raises(EditError, match="There is no fact to edit"):
        solve(lm, [], config)
    if not config.batches:
        with pytest.raises(EditError, match=f"{name} edits one fact at a time; 2 were given"):
            solve(lm, [REQUEST] * 2, config)


@pytest.mark.parametrize("layer", [-1, 4, 99])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "layer" in about(method)])
def test_a_layer_that_is_not_there_has_a_sentence(name: str, layer: int) -> None:
    config = METHODS[name](layer=layer, **({"span": 1} if hasattr(METHODS[name], "span") else {}))
    with pytest.raises(EditError, match=f"Layer {layer} does not exist. 'tiny-llama' has layers 0 to 3"):
        solve(tiny_model(), [REQUEST], config)


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_out_of_its_range_has_a_sentence(name: str) -> None:
    config = METHODS[name]()
    field = "scale" if name in ("mend", "ke") else "lr"
    object.__setattr__(config, field, -1.0)

    with pytest.raises(EditError, match=f"{name} cannot have this setting: {field} must be a number from .*, not -1.0"):
        solve(tiny_model(), [REQUEST], config)
