"""Published sets: every row is of a method and a model that there are, and says what contradicts it."""

from __future__ import annotations

import pytest

from rome_core.editing.methods import METHODS
from rome_core.editing.published import PublishedSet, Shape, applied, published, published_for
from rome_core.settings import first_fault
from tests.tiny import tiny_model

SHAPES, SETS = published()


@pytest.mark.parametrize("one", SETS, ids=lambda one: f"{one.method}-{one.model}-{one.repository}")
def test_a_set_fits_its_method_and_its_model(one: PublishedSet) -> None:
    config = METHODS[one.method]()
    assert applied(one, config) == one.values, "every value has a field"

    config = METHODS[one.method](**one.values)

    assert not first_fault(config)
    n_layers, span = SHAPES[one.model].n_layers, one.values.get("span", 1)
    assert 0 <= one.values["layer"] - span + 1 <= one.values["layer"] < n_layers
    assert len(config.layers) in (0, span), "fine-tuning needs the C of none"
    assert one.repository and one.file and one.source.startswith("Published for")
    if one.v_loss_layer not in (None, n_layers - 1):
        assert str(one.v_loss_layer) in one.note, "a loss layer that is not the last one is said to be wrong"


def test_sets_that_contradict_each_other_say_so() -> None:
    for method, model in {(one.method, one.model) for one in SETS}:
        same = [one for one in SETS if (one.method, one.model) == (method, model)]
        if len({str(sorted(one.values.items())) for one in same}) > 1:
            assert any(one.note for one in same), (method, model)
    assert len({(one.method, one.label, str(one.values)) for one in SETS}) == len({id(one) for one in SETS})


def test_every_shape_belongs_to_a_set_and_no_two_are_one() -> None:
    assert {one.model for one in SETS} == set(SHAPES)
    assert len(set(SHAPES.values())) == len(SHAPES)


def test_a_models_sets_are_found_by_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model("llama")
    shape = Shape("llama", lm.n_layers, lm.d_model, lm.d_mlp)
    assert published_for(lm, "memit") == ()

    monkeypatch.setattr("rome_core.editing.published.published", lambda: ({**SHAPES, "Qwen2.5-7B": shape}, SETS))

    found = published_for(lm, "memit")
    assert [one.values["layer"] for one in found] == [8, 11]
    assert [one.label for one in found] == [
        "EasyEdit, for Qwen2.5-7B: layers 4–8, clamp 4, lr 0.5",
        "NAS, for Qwen2.5-7B: layers 7–11, clamp 0.75, lr 0.1",
    ]
