"""The second moment C, against a loop over single tokens, and what is said when it cannot be used."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rome_core.editing import second_moment as module
from rome_core.editing.second_moment import (
    Moment,
    convergence,
    default_tokens,
    estimate_moment,
    factor_memory,
    kept_path,
    load_moment,
    memory_needed,
    moment_steps,
    moments_for,
    save_moment,
    self_written_texts,
    stored_moment,
    texts_at_once,
)
from rome_core.errors import MomentError
from rome_core.files import cache_dir
from rome_core.model import scoring
from rome_core.model.language_model import LanguageModel
from tests.tiny import TEXTS, plain_states, random_edit, random_moment, tiny_model, tokenizer_with_start, written


def by_hand(lm: LanguageModel, texts: list[str], layer: int, n_tokens: int = 10**9) -> tuple[np.ndarray, int]:
    """E[k kᵀ], one token after the other, each text by itself."""
    total, count = np.zeros((lm.d_mlp, lm.d_mlp)), 0
    for text in texts:
        keys, _ = plain_states(lm, lm.tokenizer(text)["input_ids"], lm.layout.module("mlp_out", layer))
        for key in keys.double().numpy():
            if count < n_tokens:
                total += np.outer(key, key)
                count += 1
    return total / count, count


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model writes little at once, so that the tests stay fast."""
    monkeypatch.setattr(module, "TEXT_TOKENS", 12)
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_c_is_the_mean_outer_product_without_padding(family: str) -> None:
    lm = tiny_model(family)
    texts = [*TEXTS, "Paris"]  # of different lengths, so that there is padding

    found = estimate_moment(lm, [2], texts=texts)[2]

    expected, count = by_hand(lm, texts, 2)
    assert (found.layer, found.n_tokens, found.fingerprint, found.seed) == (2, count, lm.fingerprint, None)
    assert found.C.dtype == torch.float64
    np.testing.assert_allclose(found.C, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    found.check(lm)


def test_several_layers_in_one_pass_are_the_same_as_one_by_one_and_it_stops_at_the_last() -> None:
    lm = tiny_model()
    deepest: list[int] = []
    for layer, block in enumerate(lm.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: deepest.append(layer))

    together = estimate_moment(lm, [2, 0], texts=TEXTS)

    assert max(deepest) == 2
    for layer in (0, 2):
        torch.testing.assert_close(together[layer].C, estimate_moment(lm, [layer], texts=TEXTS)[layer].C)


@pytest.mark.parametrize("n_tokens", [1, 7, 40])
def test_the_budget_of_tokens_is_kept_exactly(n_tokens: int) -> None:
    lm = tiny_model()

    found = estimate_moment(lm, [1], n_tokens, texts=TEXTS)[1]

    expected, count = by_hand(lm, list(TEXTS), 1, n_tokens)
    assert found.n_tokens == count == n_tokens
    np.testing.assert_allclose(found.C, expected, rtol=1e-4, atol=1e-4)


def test_batches_stay_below_their_bound_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 20)
    rows = [tuple(range(n)) for n in (3, 9, 1, 30, 4, 4, 8)]

    chunks = list(scoring.chunks(module._first_tokens(rows, 50), len))

    flat = [row for chunk in chunks for row in chunk]
    assert flat == [*rows[:4], rows[4], rows[5][:3]]  # 3 + 9 + 1 + 30 + 4 + 3 = 50
    assert all(len(chunk) == 1 or len(chunk) * max(map(len, chunk)) <= 20 for chunk in chunks)


def test_an_edited_model_has_another_c() -> None:
    lm = tiny_model()
    edit = random_edit(lm, 1)
    free, edited = estimate_moment(lm, [2], texts=TEXTS)[2], estimate_moment(lm, [2], texts=TEXTS, edits=[edit])[2]

    np.testing.assert_allclose(edited.C, by_hand(written(lm, edit), list(TEXTS), 2)[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(edited.C, free.C, rtol=1e-2)


def test_c_grows_at_every_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    lm = tiny_model()
    texts = list(TEXTS) * 4

    steps = [step[1] for step in moment_steps(lm, [1], texts=texts)]

    counts = [step.n_tokens for step in steps]
    assert all(b >= 2 * a for a, b in itertools.pairwise(counts[:-1])) and counts[-1] == by_hand(lm, texts, 1)[1]
    for step in steps:
        np.testing.assert_allclose(step.C, by_hand(lm, texts, 1, step.n_tokens)[0], rtol=1e-4, atol=1e-4)


def test_self_written_text_is_seeded_kept_and_the_edited_models_own(little: None) -> None:
    lm = tiny_model()
    texts = self_written_texts(lm, 200, seed=3)
    files = sorted((cache_dir() / "moments").glob("*.json"))

    assert sum(len(lm.tokenizer(text)["input_ids"]) for text in texts) >= 200
    assert len(files) >= 2 and all(file.name.startswith(f"{lm.fingerprint}-seed3-batch") for file in files)
    assert self_written_texts(lm, 200, seed=3) == texts
    edited = self_written_texts(lm, 200, seed=3, edits=[random_edit(lm, size=1.0)])
    assert edited != texts
    assert sorted((cache_dir() / "moments").glob("*.json")) == files  # an edited model's text is not kept
    for file in files:
        file.unlink()
    assert self_written_texts(lm, 200, seed=3) == texts != self_written_texts(lm, 200, seed=4)


def test_c_from_self_written_text_is_c_of_that_text(little: None) -> None:
    lm = tiny_model()

    found = estimate_moment(lm, [1], 60, seed=2)[1]

    expected, count = by_hand(lm, self_written_texts(lm, 60, seed=2), 1, 60)
    assert (found.n_tokens, found.seed, found.corpus) == (count, 2, "self-written text")
    np.testing.assert_allclose(found.C, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_texts_without_tokens_have_a_sentence(texts: list[str]) -> None:
    with pytest.raises(MomentError, match="The texts hold no tokens"):
        estimate_moment(tiny_model(), [1], texts=texts)


def test_a_layer_that_is_not_there_has_a_sentence() -> None:
    with pytest.raises(MomentError, match="4"):
        estimate_moment(tiny_model(), [4], texts=TEXTS)


def test_texts_are_cut_where_the_models_positions_end() -> None:
    lm = tiny_model("gpt2", n_positions=8)

    assert estimate_moment(lm, [1], texts=[TEXTS[0]])[1].n_tokens == 8


def test_a_start_token_of_the_tokenizer_counts_as_a_token() -> None:
    lm = tiny_model(tokenizer=tokenizer_with_start())

    assert estimate_moment(lm, [1], texts=["Paris", "Paris"])[1].n_tokens == 4


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("columns", [None, 3])
def test_solve_is_the_solution_in_float64(ridge: float, columns: int | None) -> None:
    moment = random_moment(tiny_model())
    shape = (24,) if columns is None else (24, columns)
    keys = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    C = moment.C.numpy()
    expected = np.linalg.solve(C + ridge * np.trace(C) / 24 * np.eye(24), keys.double().numpy())

    found = moment.solve(keys, ridge)

    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(moment.solve(keys, ridge), expected, rtol=1e-9)  # from the kept factor


def test_scaling_c_changes_no_direction() -> None:
    moment = random_moment(tiny_model())
    other = replace(moment, C=1e4 * moment.C)
    key = torch.randn(24, generator=torch.Generator().manual_seed(1))

    for ridge in (1e-6, 0.1):
        torch.testing.assert_close(other.solve(key, ridge) * 1e4, moment.solve(key, ridge))


def test_convergence_is_the_cosine_between_solutions() -> None:
    lm = tiny_model()
    steps = [random_moment(lm, seed=seed) for seed in range(3)]
    keys = torch.randn(5, 24, generator=torch.Generator().manual_seed(1)).double().numpy()
    solved = [np.linalg.solve(step.C.numpy(), keys.T) for step in steps]
    cosines = [
        ((a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)).mean()
        for a, b in itertools.pairwise(solved)
    ]

    found = list(convergence(steps, torch.from_numpy(keys).float(), 0.0))

    assert [n for n, _ in found] == [96, 96]
    assert [c for _, c in found] == pytest.approx(cosines, rel=1e-5)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that torch held at once beyond those at the beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = work()
    sizes = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert kept is not None and sizes
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_collecting_takes_no_more_than_is_announced_and_holds_one_sum_a_layer(
    layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 40)
    monkeypatch.setattr(module, "BATCH_TOKENS", 40)
    lm = tiny_model(intermediate_size=768)
    one = 8 * 768**2

    taken = peak(lambda: estimate_moment(lm, layers, 1_000, texts=[*TEXTS] * 40))

    assert len(layers) * one < taken < (len(layers) + 0.5) * one  # however many doublings there were
    forward = 40 * (4 * 768 * 4 + lm.hf.config.vocab_size * 4)
    assert taken <= memory_needed(lm, layers) + forward


def test_what_is_done_with_a_c_takes_one_copy_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 16)
    lm = tiny_model(intermediate_size=512)
    moment, file, one = random_moment(lm), tmp_path / "c.npz", 8 * 512**2

    assert peak(lambda: moment.factor(1e-6)) < 1.01 * one and factor_memory(lm) == one
    for work in (lambda: moment.key, lambda: moment.check(lm) or 1, lambda: save_moment(moment, file) or 1):
        assert peak(work) < 0.2 * one
    assert peak(lambda: load_moment(file, lm)) < 1.2 * one


@pytest.mark.parametrize("d", [24, 200])
def test_a_factor_is_lower_triangular_and_its_square_is_c(d: int) -> None:
    """It is made in place, over C's own copy."""
    moment = random_moment(tiny_model(intermediate_size=d))
    before = moment.C.clone()

    factor = moment.factor(0.1).numpy()

    ridge = 0.1 * np.trace(before.numpy()) / d * np.eye(d)
    np.testing.assert_allclose(factor, np.linalg.cholesky(before.numpy() + ridge), rtol=1e-9, atol=1e-12)
    assert torch.equal(moment.C, before)


def test_an_edit_is_not_solved_with_fewer_tokens_than_a_key_has_entries() -> None:
    lm = tiny_model()
    moment = replace(random_moment(lm), n_tokens=23)

    with pytest.raises(MomentError, match="23 tokens, fewer than the 24 entries of a key"):
        moments_for(lm, [1], {1: moment})
    moments_for(lm, [1], {1: replace(moment, n_tokens=24)})


def test_few_tokens_are_said_wherever_the_source_is() -> None:
    moment = random_moment(tiny_model())

    assert "only 1.9 × d_mlp" in replace(moment, n_tokens=46).source
    assert replace(moment, n_tokens=48).source == "random numbers, 48 tokens"


def test_c_is_made_from_ten_times_the_entries_of_a_key_and_20_000_tokens_at_least() -> None:
    assert default_tokens(tiny_model()) == 20_000
    assert default_tokens(tiny_model(intermediate_size=2_100)) == 21_000


def test_texts_written_at_once_have_room_for_their_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    config = lm.hf.config
    a_text = 2 * lm.n_layers * config.num_key_value_heads * config.head_dim * module.TEXT_TOKENS * 4

    assert texts_at_once(lm) == 128
    monkeypatch.setattr(module, "TEXT_CACHE", 5 * a_text + 1)
    assert texts_at_once(lm) == 5 and texts_at_once(tiny_model(dtype=torch.bfloat16)) == 10
    monkeypatch.setattr(module, "TEXT_CACHE", 1)
    assert texts_at_once(lm) == 1


def test_a_stored_c_comes_back_within_float32(tmp_path: Path) -> None:
    lm = tiny_model()
    for moment in (random_moment(lm, 2), replace(random_moment(lm, 2), seed=7, corpus="日本語 text")):
        save_moment(moment, tmp_path / "new" / "c.npz")

        found = load_moment(tmp_path / "new" / "c.npz", lm)

        torch.testing.assert_close(found.C, moment.C, rtol=1e-6, atol=1e-6)
        assert torch.equal(found.C, found.C.T) and found.C.dtype == torch.float64
        assert [found.layer, found.n_tokens, found.corpus, found.fingerprint, found.seed] == [
            2, moment.n_tokens, moment.corpus, lm.fingerprint, moment.seed,
        ]  # fmt: skip
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.npz"]  # nothing half written beside it


def spoiled(lm: LanguageModel, C: torch.Tensor | None = None, **changes: object) -> Moment:
    moment = random_moment(lm)
    return replace(moment, **({} if C is None else {"C": C}), **changes)


def bad_moments() -> Iterator[tuple[str, Moment, str]]:
    lm = tiny_model()
    C = random_moment(lm).C
    yield "another model", spoiled(lm, fingerprint="0" * 32), "This C belongs to another model than 'tiny-llama'"
    yield "another layer", spoiled(lm, layer=4), "This C is of layer 4; 'tiny-llama' has 4 layers"
    yield "another size", spoiled(lm, C[:5, :5]), r"C has shape \(5, 5\), keys of 'tiny-llama' have 24 entries"
    yield "no tokens", spoiled(lm, n_tokens=0), "C was made from no tokens"
    yield "NaN", spoiled(lm, C.index_fill(0, torch.tensor(3), torch.nan)), "not finite"
    yield "infinite", spoiled(lm, C.index_fill(0, torch.tensor(3), torch.inf)), "not finite"
    yield "asymmetric", spoiled(lm, C + torch.eye(24).roll(1, 0)), "C is not symmetric"


@pytest.mark.parametrize(("moment", "sentence"), [pytest.param(m, s, id=name) for name, m, s in bad_moments()])
def test_a_c_that_cannot_be_used_has_a_sentence(moment: Moment, sentence: str) -> None:
    with pytest.raises(MomentError, match=sentence):
        moment.check(tiny_model())
    with pytest.raises(MomentError, match=sentence):
        moments_for(tiny_model(), [moment.layer], {moment.layer: moment})


@pytest.mark.parametrize(
    "C", [torch.zeros(24, 24), torch.ones(24, 24), -torch.eye(24)], ids=["zero", "rank 1", "negative"]
)
def test_a_singular_c_has_a_sentence(C: torch.Tensor) -> None:
    moment = spoiled(tiny_model(), C.double(), n_tokens=1234)

    with pytest.raises(
        MomentError, match=r"C of layer 1 is singular \(made from 1,234 tokens, ridge 0\).*larger ridge"
    ):
        moment.solve(torch.ones(24), 0.0)


def test_a_ridge_makes_a_deficient_c_solvable() -> None:
    moment = spoiled(tiny_model(), torch.ones(24, 24).double())

    found = moment.solve(torch.ones(24), 0.5)

    np.testing.assert_allclose(found, np.full(24, 1 / 24.5), rtol=1e-9)  # (1 1ᵀ + 0.5 I) x = 1


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x40
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a flipped byte": flip_a_byte,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is not a C"),
    "another file": lambda path: np.savez(path, a=np.zeros(3)),
    "another size": lambda path: save_moment(spoiled(tiny_model(), torch.eye(5).double()), path),
    "NaN": lambda path: save_moment(spoiled(tiny_model(), torch.full((24, 24), torch.nan).double()), path),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_has_a_sentence(tmp_path: Path, damage: str) -> None:
    lm, path = tiny_model(), tmp_path / "c.npz"
    save_moment(random_moment(lm), path)
    DAMAGES[damage](path)

    with pytest.raises(MomentError):
        load_moment(path, lm)


def test_a_c_of_another_model_is_never_read(tmp_path: Path) -> None:
    save_moment(random_moment(tiny_model(seed=1)), tmp_path / "c.npz")

    with pytest.raises(MomentError, match="This C belongs to another model"):
        load_moment(tmp_path / "c.npz", tiny_model())


def test_a_stored_c_is_found_by_model_and_layer_and_a_damaged_one_passed_over() -> None:
    lm = tiny_model()
    path = cache_dir() / "moments" / f"{lm.fingerprint}-1.npz"
    save_moment(random_moment(lm), path)

    assert stored_moment(lm, 1) is not None
    assert stored_moment(lm, 2) is None and stored_moment(tiny_model(seed=1), 1) is None
    for damaged in (b"damaged", path.read_bytes()[:-40], b""):
        path.write_bytes(damaged)
        assert stored_moment(lm, 1) is None


def test_given_moments_are_used_as_they_are_and_a_missing_one_has_a_sentence() -> None:
    lm = tiny_model()
    moment = random_moment(lm)

    assert moments_for(lm, [1], {1: moment, 2: moment})[1] is moment
    with pytest.raises(MomentError, match="No C was given for layer 2"):
        moments_for(lm, [1, 2], {1: moment})


def test_without_moments_what_is_missing_is_made_once_and_kept(little: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_TOKENS", 250)
    lm = tiny_model()
    save_moment(random_moment(lm, 1), cache_dir() / "moments" / f"{lm.fingerprint}-1.npz")

    found = moments_for(lm, [1, 2], None)

    assert found[1].corpus == "random numbers" and found[2].corpus == "self-written text"
    assert found[2].n_tokens == 250
    monkeypatch.setattr(module, "estimate_moment", None)  # not called again
    torch.testing.assert_close(moments_for(lm, [2], None)[2].C, found[2].C, rtol=1e-6, atol=1e-6)


def test_a_key_is_of_everything_that_c_is_and_outlives_its_file(tmp_path: Path) -> None:
    lm = tiny_model()
    moment = random_moment(lm, 1)
    others = [
        replace(moment, **{name: value})
        for name, value in (("C", 2 * moment.C), ("layer", 2), ("corpus", "other"), ("n_tokens", 7), ("seed", 3))
    ]

    save_moment(moment, tmp_path / "c.npz")

    assert load_moment(tmp_path / "c.npz", lm).key == moment.key == random_moment(lm, 1).key
    assert len({moment.key, *(other.key for other in others)}) == 6


def test_a_factor_never_belongs_to_another_matrix() -> None:
    moment = random_moment(tiny_model(), 1)
    first = moment.factor(1e-6)
    twice = replace(moment, C=2 * moment.C)

    factor = twice.factor(1e-6)

    np.testing.assert_allclose(factor @ factor.T, 2 * first @ first.T, rtol=1e-9)
    assert moment.factor(1e-6) is first  # computed once
    assert pickle.loads(pickle.dumps(moment)).key == moment.key


def test_c_is_loaded_once_a_model_and_layer_and_shared() -> None:
    lm = tiny_model()
    save_moment(random_moment(lm, 1), kept_path(lm, 1))
    first = moments_for(lm, [1], None)[1]

    assert moments_for(lm, [1], None)[1] is first and stored_moment(lm, 1) is first
    save_moment(random_moment(lm, 1, seed=1), kept_path(lm, 1))  # a new file is another C
    os.utime(kept_path(lm, 1), ns=(1, 1))
    assert moments_for(lm, [1], None)[1].key != first.key
