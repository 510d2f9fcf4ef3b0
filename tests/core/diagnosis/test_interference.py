"""Interference of edits: KᵀC⁻¹K in numpy, and the prediction against what the Hugging Face model itself computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.diagnosis.interference import Moved, measure_moves, overlap, predict
from rome_core.editing.edit import Edit
from rome_core.errors import EditError
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import score
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import plain_key, random_edit, random_moment, tiny_model, written

RIDGE = 1e-3
REQUESTS = (
    EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome"),
    EditRequest(Prompt("{} is the capital of", "Paris"), "Japan"),
    EditRequest(Prompt("Lyon is in {}, so", "France"), "Italy"),
)


def edits(lm: LanguageModel, layers: tuple[int, ...] = (1, 1, 1)) -> list[Edit]:
    return [
        replace(random_edit(lm, layer, rank=1 + i, seed=i), requests=(request,))
        for i, (layer, request) in enumerate(zip(layers, REQUESTS, strict=True))
    ]


def key(lm: LanguageModel, request: EditRequest) -> np.ndarray:
    return plain_key(lm, request.prompt).double().numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_overlap_of_keys_by_hand(family: str) -> None:
    lm = tiny_model(family)
    moment = random_moment(lm, 1)
    C = moment.C.numpy()
    inverse = np.linalg.inv(C + RIDGE * np.trace(C) / 24 * np.eye(24))
    K = np.stack([key(lm, request) for request in REQUESTS])

    (found,) = overlap(lm, edits(lm), {1: moment}, RIDGE)

    assert (found.layer, found.labels[1]) == (1, "Paris → Japan")
    np.testing.assert_allclose(found.gram.numpy(), K @ inverse @ K.T, rtol=1e-4)
    np.testing.assert_allclose(found.cosine.diagonal().numpy(), 1.0)
    lengths = np.sqrt(np.diag(K @ inverse @ K.T))
    np.testing.assert_allclose(found.cosine.numpy(), K @ inverse @ K.T / np.outer(lengths, lengths), rtol=1e-4)


def test_edits_of_different_layers_stand_in_different_matrices() -> None:
    lm = tiny_model()

    first, second = overlap(lm, edits(lm, (1, 2, 1)), {1: random_moment(lm, 1), 2: random_moment(lm, 2)})

    assert (first.layer, len(first.labels), second.layer, len(second.labels)) == (1, 2, 2, 1)


def with_edits(lm: LanguageModel, request: EditRequest, edits: list[Edit]) -> np.ndarray:
    """The down projection's output at the subject's last token, Δ written into its weights."""
    return (written(lm, *edits).weight(1) @ plain_key(lm, request.prompt)).double().numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_prediction_is_what_then_happens(family: str) -> None:
    lm = tiny_model(family)
    *earlier, new = edits(lm)

    forecast, found = predict(lm, new, earlier), measure_moves(lm, new, earlier)

    assert [one.label for one in forecast] == ["Eiffel Tower → Rome", "Paris → Japan"]
    for request, own, told, seen in zip(REQUESTS, earlier, forecast, found, strict=False):
        change = new.deltas[0].matrix().numpy() @ key(lm, request)
        effect = own.deltas[0].matrix().numpy() @ key(lm, request)
        expected = with_edits(lm, request, [*earlier, new]) - with_edits(lm, request, earlier)
        assert told.predicted == pytest.approx(np.linalg.norm(change), rel=1e-4)
        assert told.own == pytest.approx(np.linalg.norm(effect), rel=1e-4)
        assert told.along == pytest.approx(change @ effect / (effect @ effect), rel=1e-3)
        assert told.share == pytest.approx(told.predicted / told.own)
        assert told.measured is None
        assert replace(seen, measured=None, p_before=None, p_after=None) == told
        assert seen.measured == pytest.approx(np.linalg.norm(expected), rel=1e-3)
        assert seen.measured == pytest.approx(told.predicted, rel=1e-3)


def test_answers_before_and_after_are_the_models() -> None:
    lm = tiny_model()
    *earlier, new = edits(lm)

    found = measure_moves(lm, new, earlier)

    for one, edit in zip(found, earlier, strict=True):
        pair = [(edit.requests[0].prompt.text, " " + edit.requests[0].target_new)]
        assert one.p_before == pytest.approx(score(lm, pair, edits=earlier)[0].p_joint)
        assert one.p_after == pytest.approx(score(lm, pair, edits=[*earlier, new])[0].p_joint)
        assert one.p_before != one.p_after


def test_an_edit_that_takes_another_one_back_moves_it_by_minus_one() -> None:
    lm = tiny_model()
    one = edits(lm)[0]

    (found,) = predict(lm, one.scaled(-1.0), [one])

    assert (found.along, found.share) == (pytest.approx(-1.0), pytest.approx(1.0))


def test_an_edit_of_an_earlier_layer_changes_the_keys_and_the_measurement_shows_it() -> None:
    """The prediction takes the keys as they are now; the edit below moves them."""
    lm = tiny_model()
    earlier = replace(random_edit(lm, 2), requests=(REQUESTS[0],))
    both = random_edit(lm, 2, seed=5)
    new = replace(both, deltas=(*both.deltas, *random_edit(lm, 1, seed=6).deltas))

    (found,) = measure_moves(lm, new, [earlier])

    assert found.measured != pytest.approx(found.predicted, rel=0.05)


def test_edits_that_share_no_layer_say_nothing() -> None:
    lm = tiny_model()

    assert predict(lm, random_edit(lm, 2), [random_edit(lm, 1)]) == ()
    assert overlap(lm, [], {}) == ()


def test_an_edit_without_effect_has_no_share() -> None:
    assert Moved("a", 1, 0.0, 1.0, float("nan")).share == float("inf")


def test_an_edit_of_another_model_has_a_sentence() -> None:
    lm = tiny_model()
    odd = replace(random_edit(lm), base="another")

    with pytest.raises(EditError, match="solved for another model"):
        predict(lm, random_edit(lm), [odd])
    assert torch.is_grad_enabled()
