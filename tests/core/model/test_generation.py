"""Generated text, against an argmax loop over the Hugging Face model without a cache."""

from __future__ import annotations

import itertools

import pytest
import torch

from rome_core.errors import PromptError
from rome_core.model.generation import decode, generate, generate_many, sample_texts
from rome_core.model.language_model import LanguageModel
from tests.tiny import FAMILIES, plain_run, random_edit, tiny_model, tiny_tokenizer, watch, written

TEXTS = ["The Eiffel Tower is located in the city of", "Paris is", "The home of the green dragon is"]
ROWS = [tiny_tokenizer()(text)["input_ids"] for text in TEXTS]
N = 10  # longer than the sliding windows of the tiny models


def greedy(lm: LanguageModel, row: list[int], n: int) -> list[int]:
    """The oracle: the whole text is read again for every token."""
    ids = list(row)
    for _ in range(n):
        ids.append(int(plain_run(lm, [ids])[0, -1].argmax()))
    return ids[len(row) :]


def decoded(lm: LanguageModel, rows: list[list[int]], **options) -> list[list[int]]:
    return torch.stack(list(decode(lm, rows, N, **options)), 1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_the_argmax_loop_alone_and_in_a_batch(family: str) -> None:
    lm = tiny_model(family)
    expected = [greedy(lm, row, N) for row in ROWS]

    assert [decoded(lm, [row])[0] for row in ROWS] == expected
    assert decoded(lm, ROWS) == expected


def until_end(row: list[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token != 0, row))


def test_the_text_is_the_decoded_tokens_up_to_the_end_token() -> None:
    lm = tiny_model()

    for text, row in zip(TEXTS, ROWS, strict=True):
        assert generate(lm, text, N) == lm.tokenizer.decode(until_end(greedy(lm, row, N)))
    assert generate_many(lm, TEXTS, N) == [generate(lm, text, N) for text in TEXTS]


def test_generation_ends_at_the_end_token() -> None:
    lm = tiny_model()
    third = greedy(lm, ROWS[0], N)[2]
    lm.hf.generation_config.eos_token_id = [399, third]

    assert generate(lm, TEXTS[0], N) == lm.tokenizer.decode(
        list(itertools.takewhile(lambda token: token != third, greedy(lm, ROWS[0], N)))
    )


def test_no_new_tokens_is_no_text() -> None:
    assert generate(tiny_model(), TEXTS[0], 0) == ""


def test_sampling_is_reproducible_and_seeded() -> None:
    lm = tiny_model()
    one = decoded(lm, ROWS, temperature=1.0, seed=3)

    assert decoded(lm, ROWS, temperature=1.0, seed=3) == one
    assert decoded(lm, ROWS, temperature=1.0, seed=4) != one
    torch.manual_seed(99)  # the global generator plays no part, and is left alone
    state = torch.get_rng_state()
    assert decoded(lm, ROWS, temperature=1.0, seed=3) == one
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (1.0, 3)])
def test_sampled_tokens_follow_the_models_distribution(temperature: float, top_k: int | None) -> None:
    lm = tiny_model()
    n = 3_000
    scaled = plain_run(lm, [ROWS[1]])[0, -1].double() / temperature
    if top_k is not None:
        scaled[scaled < scaled.sort(descending=True).values[top_k - 1]] = -torch.inf
    p = scaled.softmax(-1)

    (tokens,) = decode(lm, [ROWS[1]] * n, 1, temperature=temperature, top_k=top_k, seed=0)

    share = torch.bincount(tokens, minlength=400).double() / n
    assert (share - p).abs().max() < 5 * (0.25 / n) ** 0.5  # five standard deviations
    assert not (share[p == 0] > 0).any()


def test_a_low_temperature_is_greedy() -> None:
    lm = tiny_model()

    assert decoded(lm, ROWS, temperature=1e-4, seed=1) == decoded(lm, ROWS)
    assert decoded(lm, ROWS, temperature=1.0, top_k=1, seed=1) == decoded(lm, ROWS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_edits_steer_every_token_and_nothing_stays(family: str) -> None:
    lm = tiny_model(family)
    edit = random_edit(lm, size=1.0)
    before = decoded(lm, ROWS)
    expected = [greedy(written(lm, edit), row, N) for row in ROWS]

    assert decoded(lm, ROWS, edits=[edit]) == expected != before
    assert decoded(lm, ROWS) == before


def test_sampled_texts_begin_at_the_document_start() -> None:
    lm = tiny_model()
    tokens = torch.stack(list(decode(lm, [(0,)] * 3, 8, temperature=1.0, seed=5)), 1).tolist()

    texts = sample_texts(lm, 3, 8, seed=5)

    assert texts == [text for row in tokens if (text := lm.tokenizer.decode(until_end(row))).strip()]
    assert texts == sample_texts(lm, 3, 8, seed=5) != sample_texts(lm, 3, 8, seed=6)


def test_progress_counts_the_tokens() -> None:
    seen: list[tuple[str, int]] = []

    sample_texts(tiny_model(), 2, 7, seed=0, track=watch(seen))

    assert seen == [("The model writes text", 7)]


@pytest.mark.parametrize("texts", [[""], ["Paris", "  "]])
def test_an_empty_text_has_a_sentence(texts: list[str]) -> None:
    with pytest.raises(PromptError, match="The text to continue is empty"):
        generate_many(tiny_model(), texts)


def test_a_text_longer_than_the_model_reads_has_a_sentence() -> None:
    lm = tiny_model("gpt2", n_positions=16)

    with pytest.raises(PromptError, match="16"):
        generate(lm, TEXTS[0] * 2, 2)


def test_generation_stops_where_the_models_positions_end() -> None:
    lm = tiny_model("gpt2", n_positions=16)
    n = 16 - len(ROWS[0])

    text = generate(lm, TEXTS[0], 40)

    assert text == lm.tokenizer.decode(until_end(greedy(lm, ROWS[0], n + 1)))[: len(text)]
    assert text
