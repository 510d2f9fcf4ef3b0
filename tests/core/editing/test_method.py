"""What every method's config must offer to the form, the registry and the solver."""

from __future__ import annotations

import pytest

from rome_core.editing.method import MethodConfig
from rome_core.editing.methods import DEFAULT_METHOD, METHODS, solve
from rome_core.errors import EditError
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.settings import about
from tests.tiny import tiny_model

REQUEST = EditRequest(Prompt("The {} is in", "Eiffel Tower"), "Rome")


def test_the_registry_and_the_classes_agree_on_names() -> None:
    assert {name: config.name for name, config in METHODS.items()} == {name: name for name in METHODS}
    assert DEFAULT_METHOD in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_and_describes_its_settings(name: str) -> None:
    config = METHODS[name]()
    assert config.title.endswith(".") and config.formula.startswith(r"\Delta")
    assert {"scale"} == set(about(config)) if name in ("mend", "ke") else {"layer", "steps", "lr"} <= set(about(config))
    for field, description in about(config).items():
        assert description.help.endswith("."), field


def test_the_base_solves_nothing() -> None:
    with pytest.raises(TypeError, match="says nothing of how it solves"):
        solve(tiny_model(), [REQUEST], MethodConfig())


def test_a_layer_that_is_not_there_has_a_sentence() -> None:
    with pytest.raises(EditError, match="layers 0 to 3"):
        solve(tiny_model(), [REQUEST], METHODS[DEFAULT_METHOD](layer=4))
