"""The clean and the corrupted run: noise, σ, and how an answer is read off."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.errors import PromptError
from rome_core.facts.datasets import load_facts
from rome_core.model.tokens import Prompt
from rome_core.tracing.runs import TraceConfig, TraceRequest, corrupt_again, draw_noise, noise_sigma, prepare
from tests.tiny import FAMILIES, corrupt, plain_run, plain_states, random_edit, tiny_model, tokenizer_with_start

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
CONFIG = TraceConfig(samples=3, noise_from="vocabulary")
each_family = pytest.mark.parametrize("family", FAMILIES)


def embedded(lm, ids: list[int]) -> np.ndarray:
    """Embedding rows as the model adds them up: [tokens d_model]."""
    return plain_states(lm, ids, lm.layout.embed)[1].double().numpy()


@each_family
def test_sigma_is_that_of_the_subjects_tokens_or_of_the_table(family: str) -> None:
    lm = tiny_model(family)
    subjects = [lm.tokenizer(fact.prompt.subject)["input_ids"] for fact in load_facts()]

    rows = np.concatenate([embedded(lm, ids) for ids in subjects[::10]])
    assert noise_sigma(lm, "subjects") == pytest.approx(rows.std(), rel=0.1)  # every tenth subject
    assert noise_sigma(lm, "vocabulary") == pytest.approx(embedded(lm, list(range(200))).std(), rel=0.1)  # half of it


def test_sigma_exactly() -> None:
    lm = tiny_model()
    table = lm.hf.get_input_embeddings().weight.double().numpy()
    tokens = [i for fact in load_facts() for i in lm.tokenizer(fact.prompt.subject)["input_ids"]]

    assert noise_sigma(lm, "vocabulary") == pytest.approx(table.std(), rel=1e-3)
    assert noise_sigma(lm, "subjects") == pytest.approx(table[tokens].std(), rel=1e-3)


def test_a_start_token_is_no_token_of_a_subject() -> None:
    """Else one row, often an unusual one, would count once a subject."""
    lm = tiny_model(tokenizer=tokenizer_with_start())
    lm.hf.get_input_embeddings().weight.data[0] = 100.0

    assert noise_sigma(lm, "subjects") == pytest.approx(noise_sigma(tiny_model(), "subjects"), rel=1e-3)


def test_the_draw_is_seeded_scaled_and_independent_of_everything_else() -> None:
    lm = tiny_model()
    torch.manual_seed(1)
    np.random.seed(1)
    noise, sigma = draw_noise(lm, CONFIG, 2)
    torch.manual_seed(2)
    np.random.seed(2)

    assert torch.equal(draw_noise(lm, CONFIG, 2)[0], noise)
    assert sigma == noise_sigma(lm, "vocabulary")
    assert noise.shape == (3, 2, 16) and noise.dtype == torch.float32
    assert not torch.allclose(draw_noise(lm, replace(CONFIG, seed=2), 2)[0], noise)
    torch.testing.assert_close(draw_noise(lm, replace(CONFIG, noise_scale=6.0), 2)[0], 2 * noise)
    many = draw_noise(lm, replace(CONFIG, samples=100), 10)[0]
    assert float(many.std()) == pytest.approx(3 * sigma, rel=0.03)
    assert float(many.mean()) == pytest.approx(0, abs=0.1 * sigma)


def test_more_samples_begin_with_the_same_ones() -> None:
    lm = tiny_model()

    assert torch.equal(draw_noise(lm, replace(CONFIG, samples=5), 2)[0][:3], draw_noise(lm, CONFIG, 2)[0])


@each_family
def test_the_two_runs_are_the_models_own(family: str) -> None:
    """Noise on the subject's embeddings only, after the model's own scaling."""
    lm = tiny_model(family)
    ids = lm.tokenizer(PROMPT.text)["input_ids"]
    noise = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))

    runs = prepare(lm, TraceRequest(PROMPT, CONFIG), noise=noise)

    clean = plain_run(lm, [ids])
    corrupted = plain_run(lm, [ids] * 3, {lm.layout.embed: corrupt(noise)})
    assert runs.subject == (1, 3) and len(runs.labels) == len(ids)
    assert runs.answer == (int(clean[0, -1].argmax()),)
    assert math.isnan(runs.sigma)  # not known of a ready-made draw
    torch.testing.assert_close(lm.logits(runs.clean.states[-1]), clean)
    torch.testing.assert_close(lm.logits(runs.corrupted.states[-1]), corrupted)


def test_without_noise_of_ones_own_the_seeded_draw_is_used() -> None:
    lm = tiny_model()
    noise, sigma = draw_noise(lm, CONFIG, 2)

    request = TraceRequest(PROMPT, CONFIG)
    drawn, given = prepare(lm, request), prepare(lm, request, noise=noise)

    assert drawn.sigma == sigma
    assert torch.equal(drawn.corrupted.states[-1], given.corrupted.states[-1])


def test_another_level_is_the_run_that_is_prepared_at_it() -> None:
    lm = tiny_model()
    edit = random_edit(lm)
    request = TraceRequest(PROMPT, CONFIG, " Paris, the", edits=(edit,))
    runs = prepare(lm, request)
    expected = prepare(lm, replace(request, config=replace(CONFIG, noise_scale=0.5)))

    other = corrupt_again(lm, runs, 0.5)

    assert other.clean is runs.clean and other.request == expected.request
    assert torch.equal(other.corrupted.states[-1], expected.corrupted.states[-1])
    assert other.corrupted.edits == (edit,)
    assert not torch.equal(other.corrupted.states[-1], runs.corrupted.states[-1])


def test_the_answer_is_the_edited_models_own() -> None:
    lm = tiny_model()
    edit = random_edit(lm, size=1.0)
    free, steered = (prepare(lm, TraceRequest(PROMPT, CONFIG, edits=edits)) for edits in ((), (edit,)))

    assert free.answer != steered.answer
    assert steered.clean.edits == steered.corrupted.edits == (edit,)


@pytest.mark.parametrize("shape", [(3, 1, 16), (3, 2, 8)])
def test_noise_of_another_shape_has_a_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match=r"The noise has shape .*; \(samples, 2, 16\) is needed.*has 2 tokens here"):
        prepare(tiny_model(), TraceRequest(PROMPT, CONFIG), noise=torch.zeros(shape))


def test_log_p_is_joint_over_the_answers_tokens() -> None:
    lm = tiny_model()
    runs = prepare(lm, TraceRequest(PROMPT, CONFIG, " Paris, the"))
    logits = torch.randn(5, 3, 400, generator=torch.Generator().manual_seed(0))
    p = np.exp(logits.double().numpy())
    p /= p.sum(-1, keepdims=True)
    a, b, c = runs.answer
    joint = p[:, 0, a] * p[:, 1, b] * p[:, 2, c]

    np.testing.assert_allclose(runs.log_p_of_logits(logits), np.log(joint), rtol=1e-5)
    np.testing.assert_allclose(runs.scores("p", logits), joint, rtol=1e-4)
    np.testing.assert_allclose(runs.scores("log p", logits), np.log(joint), rtol=1e-5)


def test_the_logit_difference_is_that_of_the_two_first_tokens() -> None:
    lm = tiny_model()
    runs = prepare(lm, TraceRequest(PROMPT, replace(CONFIG, metric="logit difference"), " Paris", " Rome"))
    paris, rome = (lm.tokenizer(PROMPT.text + a)["input_ids"][-1] for a in (" Paris", " Rome"))
    logits = torch.randn(5, 1, 400)

    assert torch.equal(runs.scores("logit difference", logits), logits[:, 0, paris] - logits[:, 0, rome])


@pytest.mark.parametrize(
    ("foil", "sentence"),
    [(None, "The logit difference needs a second answer"), ("", "The logit difference needs a second answer"),
     (" Paris", "' Paris' begins with the same token as the answer")],
)  # fmt: skip
def test_a_second_answer_that_does_not_serve_has_a_sentence(foil: str | None, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        prepare(tiny_model(), TraceRequest(PROMPT, replace(CONFIG, metric="logit difference"), " Paris", foil))


def test_a_prompt_longer_than_the_model_reads_has_a_sentence() -> None:
    with pytest.raises(PromptError, match="16"):
        prepare(tiny_model("gpt2", n_positions=16), TraceRequest(PROMPT.behind("So. " * 10), CONFIG))
