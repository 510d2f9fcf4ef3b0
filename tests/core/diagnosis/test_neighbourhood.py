"""What else an edit moves, again from the Hugging Face model with the weight really changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from rome_core.diagnosis.neighbourhood import other_prompts, shifts
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import REQUEST, plain_key, plain_run, random_edit, tiny_model, written

PROMPTS = [
    ("same words", Prompt("The {} is located in the city of", "Colosseum")),
    ("unrelated", Prompt("{} is the capital of", "Paris")),
    ("unrelated", Prompt("Lyon is in {}, so", "France")),
]


def last_logits(lm: LanguageModel, text: str) -> Tensor:
    return plain_run(lm, [lm.tokenizer(text)["input_ids"]])[0, -1].detach().double()


def test_divergence_answer_and_response_by_hand() -> None:
    lm = tiny_model("llama")
    edit, other = random_edit(lm), written(lm, random_edit(lm))

    found = {shift.prompt: shift for shift in shifts(lm, edit, PROMPTS)}

    assert len(found) == 3
    for kind, prompt in PROMPTS:
        shift = found[prompt.text]
        before, after = last_logits(lm, prompt.text), last_logits(other, prompt.text)
        expected = kl_divergence(Categorical(logits=before), Categorical(logits=after))
        assert (shift.kind, shift.kl) == (kind, pytest.approx(float(expected), rel=1e-3))
        assert shift.top == tuple(lm.tokenizer.decode([int(x.argmax())]) for x in (before, after))
        key = plain_key(lm, prompt).double()
        moved = (edit.deltas[0].matrix() @ key).norm() / (lm.weight(1).double() @ key).norm()
        assert shift.response == pytest.approx(float(moved), rel=1e-4)


def test_the_most_moved_prompt_comes_first_and_no_edit_moves_none() -> None:
    lm = tiny_model("gpt2")

    moved = [shift.kl for shift in shifts(lm, random_edit(lm), PROMPTS)]
    still = shifts(lm, random_edit(lm).scaled(0.0), PROMPTS)

    assert moved == sorted(moved, reverse=True) and moved[0] > 0
    assert [(s.kl, s.response, s.changed) for s in still] == [(0.0, 0.0, False)] * 3


def test_edits_below_stand_on_both_sides() -> None:
    lm = tiny_model()
    edit, below = random_edit(lm), random_edit(lm, 2, seed=1)

    one = shifts(lm, edit, PROMPTS[:1])[0].kl
    two = shifts(lm, edit, PROMPTS[:1], [below])[0].kl

    assert one > 0 and two > 0 and one != pytest.approx(two, rel=1e-3)


def test_the_prompts_are_others_of_three_kinds_and_seeded() -> None:
    request = EditRequest(Prompt("The {} is a famous sight in the city of", "Eiffel Tower"), "Rome", "Paris")

    found = other_prompts(request, 60)

    kinds = {kind for kind, _ in found}
    assert kinds == {"same words", "same answer", "unrelated"}
    assert 40 < len(found) <= 60 and len({prompt.text for _, prompt in found}) == len(found)
    assert not any("Eiffel Tower" in prompt.text for _, prompt in found)
    assert all(prompt.template == request.prompt.template for kind, prompt in found if kind == "same words")
    assert other_prompts(request, 60) == found != other_prompts(request, 60, seed=1)


def test_an_unknown_request_has_neighbours_all_the_same() -> None:
    assert {kind for kind, _ in other_prompts(replace(REQUEST, target_true=None), 30)} == {"same words", "unrelated"}
