"""States at the subject's last token, against a plain pass over the whole prompt."""

from __future__ import annotations

import pytest
import torch

from rome_core import Point, Prompt
from rome_core.model import subjects
from rome_core.model.subjects import subject_keys, subject_states
from rome_core.model.tokens import encode
from tests.tiny import FAMILIES, plain_states, random_edit, tiny_model

PROMPTS = [
    Prompt("The {} is located in the city of", "Eiffel Tower"),
    Prompt("{} is the capital of", "Paris"),
    Prompt("In the country of {}", "Italy"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_a_plain_pass(family: str) -> None:
    lm = tiny_model(family)

    keys = subject_keys(lm, PROMPTS, 2)

    for prompt, key in zip(PROMPTS, keys, strict=True):
        encoded = encode(lm.tokenizer, prompt)
        inputs, _ = plain_states(lm, encoded.ids, lm.down_projection(2))
        torch.testing.assert_close(key, inputs[encoded.last_subject], atol=2e-5, rtol=1e-4)


def test_several_points_come_from_one_pass_under_the_edits_and_in_any_size_of_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_model()
    points, edits = [Point("mlp_key", 2), Point("resid_post", 2)], [random_edit(lm)]

    whole = subject_states(lm, PROMPTS, points, edits=edits)
    monkeypatch.setattr(subjects, "AT_ONCE", 1)
    alone = subject_states(lm, PROMPTS, points, edits=edits)

    for point in points:
        torch.testing.assert_close(whole[point], alone[point], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(whole[point], subject_states(lm, PROMPTS, [point])[point])
