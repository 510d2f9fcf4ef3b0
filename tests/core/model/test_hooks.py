"""States, patches and overlays, against hooks put directly on the Hugging Face model."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.errors import EditError
from rome_core.model.hooks import (
    Point,
    activations,
    attention_pattern,
    batch_of,
    hidden_states,
    hooked,
    next_logits,
)
from rome_core.model.language_model import LanguageModel
from tests.tiny import FAMILIES, plain_run, plain_states, random_edit, tiny_model, tiny_tokenizer, written

TEXTS = ("The Eiffel Tower is located in the city of", "Paris is", "The home of the green dragon is far away")
ROWS = [tiny_tokenizer()(text)["input_ids"] for text in TEXTS]
SITES = ("embed", "resid_post", "attn_out", "mlp_out", "mlp_key")
each_family = pytest.mark.parametrize("family", FAMILIES)


def path_of(lm: LanguageModel, site: str, layer: int) -> str:
    whole = {"embed": lm.layout.embed, "resid_post": lm.layout.block(layer)}
    return whole.get(site) or lm.layout.module(site, layer)


def expected_state(lm: LanguageModel, row: list[int], point: Point) -> Tensor:
    """The state at a point as the Hugging Face modules themselves give it."""
    place = "mlp_out" if point.site == "mlp_key" else point.site
    entering, leaving = plain_states(lm, row, path_of(lm, place, point.layer))
    return entering if point.site == "mlp_key" else leaving


@each_family
def test_activations_are_the_modules_own_states(family: str) -> None:
    lm = tiny_model(family)
    points = [Point(site, layer) for site in SITES for layer in (range(4) if site != "embed" else [0])]

    kept = activations(lm, batch_of(lm, ROWS[:1]), points)

    assert set(kept) == set(points)
    for point in points:
        assert torch.equal(kept[point][0], expected_state(lm, ROWS[0], point)), point


@each_family
def test_states_are_where_the_model_says_they_are(family: str) -> None:
    """Against `output_hidden_states`: the embedding after the model's own scaling, and every block's output."""
    lm = tiny_model(family)
    points = [Point("embed"), *(Point("resid_post", layer) for layer in range(3))]
    states = lm.hf(torch.tensor([ROWS[0]]), output_hidden_states=True).hidden_states

    kept = activations(lm, batch_of(lm, ROWS[:1]), points)

    for layer in range(3):
        torch.testing.assert_close(kept[Point("resid_post", layer)], states[layer + 1])
    if family != "gpt2":  # GPT-2 adds its positions first
        torch.testing.assert_close(kept[Point("embed")], states[0])


def test_a_pass_stops_after_the_last_state_that_is_wanted() -> None:
    lm = tiny_model()
    called: list[int] = []
    for layer, block in enumerate(lm.blocks):
        block.register_forward_pre_hook(lambda *_, layer=layer: called.append(layer))

    activations(lm, batch_of(lm, ROWS), [Point("mlp_key", 1), Point("attn_out", 0), Point("mlp_key", 1)])

    assert called == [0, 1]


@each_family
@pytest.mark.parametrize("align", [None, "end", "middle"])
def test_padding_changes_nothing(family: str, align: str | None) -> None:
    lm = tiny_model(family)
    at = {None: None, "end": [len(row) - 1 for row in ROWS], "middle": [2, 0, 5]}[align]
    batch = batch_of(lm, ROWS, at)
    points = [Point("resid_post", 1), Point("mlp_key", 3)]

    kept = activations(lm, batch, points)
    hidden = hidden_states(lm, batch)
    logits = next_logits(lm, batch)

    for r, row in enumerate(ROWS):
        here = slice(batch.column[r], batch.column[r] + len(row))
        alone = plain_run(lm, [row])[0]
        for point in points:
            torch.testing.assert_close(kept[point][r, here], expected_state(lm, row, point), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lm.unembed(hidden[r, here]), alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits[r], alone[-1], rtol=1e-4, atol=1e-4)


def test_a_batch_is_a_rectangle_with_one_common_column() -> None:
    lm = tiny_model()
    batch = batch_of(lm, [[5, 6, 7], [8], [9, 10]], align=[1, 0, 1])

    assert batch.ids.tolist() == [[5, 6, 7], [0, 8, 0], [9, 10, 0]]
    assert batch.mask.tolist() == [[True] * 3, [False, True, False], [True, True, False]]
    assert batch.column == (0, 1, 0)
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 1]]
    assert batch.last.tolist() == [2, 1, 1]
    assert batch_of(lm, [[5, 6, 7], [8]]).ids.tolist() == [[5, 6, 7], [8, 0, 0]]


@each_family
@pytest.mark.parametrize("site", ["embed", "resid_post", "attn_out", "mlp_out"])
def test_a_patch_takes_the_states_place(family: str, site: str) -> None:
    lm = tiny_model(family)
    point = Point(site, 0 if site == "embed" else 1)
    path = path_of(lm, site, 1)

    def patch(state: Tensor) -> Tensor:
        return torch.cat([state[:, :2], 3 * state[:, 2:3] + 1, state[:, 3:]], 1)

    found = hidden_states(lm, batch_of(lm, ROWS[:1]), patches=[(point, patch)])

    torch.testing.assert_close(lm.unembed(found), plain_run(lm, ROWS[:1], {path: patch}))
    assert not torch.allclose(found, hidden_states(lm, batch_of(lm, ROWS[:1])), atol=1e-3)


@each_family
def test_a_patched_key_goes_into_the_down_projection(family: str) -> None:
    lm = tiny_model(family)
    batch = batch_of(lm, ROWS[:1])
    module = lm.module(lm.layout.module("mlp_out", 2))
    key = torch.randn(1, len(ROWS[0]), 24)

    kept = activations(lm, batch, [Point("mlp_out", 2)], patches=[(Point("mlp_key", 2), lambda state: key)])

    torch.testing.assert_close(kept[Point("mlp_out", 2)], module(key))


def test_edits_come_before_patches_and_patches_before_what_is_handed_out() -> None:
    lm = tiny_model()
    edit, batch, point = random_edit(lm, 1), batch_of(lm, ROWS[:1]), Point("mlp_out", 1)
    seen: list[Tensor] = []

    def double(state: Tensor) -> Tensor:
        seen.append(state)
        return 2 * state

    kept = activations(lm, batch, [point], edits=[edit], patches=[(point, double)])

    _, output = plain_states(written(lm, edit), ROWS[0], lm.layout.module("mlp_out", 1))
    torch.testing.assert_close(seen[0][0], output)
    torch.testing.assert_close(kept[point][0], 2 * output)


@each_family
def test_an_overlay_equals_writing_the_weights(family: str) -> None:
    """In float64, as far as the model's own norms keep it: within 1e-6 of the largest logit."""
    lm = tiny_model(family, dtype=torch.float64)
    edits = [random_edit(lm, 1, rank=2), random_edit(lm, 3, seed=1), random_edit(lm, 1, seed=2)]
    expected = plain_run(written(lm, *edits), ROWS[:1])[0]

    found = lm.unembed(hidden_states(lm, batch_of(lm, ROWS[:1]), edits=edits))[0]

    before = plain_run(lm, ROWS[:1])[0]
    assert (expected - before).abs().max() > 0.1 * before.abs().max()  # the edits do something
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@each_family
def test_after_a_call_the_model_is_bit_identical(family: str) -> None:
    lm = tiny_model(family)
    batch = batch_of(lm, ROWS)
    weights = {name: value.clone() for name, value in lm.hf.state_dict().items()}
    before = hidden_states(lm, batch)

    hidden_states(lm, batch, edits=[random_edit(lm)], patches=[(Point("embed"), lambda state: 2 * state)])
    with pytest.raises(ZeroDivisionError):
        hidden_states(lm, batch, edits=[random_edit(lm)], patches=[(Point("resid_post", 2), lambda state: 1 / 0)])
    after = hidden_states(lm, batch)

    assert torch.equal(before, after)
    assert all(torch.equal(weights[name], value) for name, value in lm.hf.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.hf.modules())


def test_an_edit_of_another_model_is_refused_and_leaves_no_trace() -> None:
    lm, other = tiny_model(), tiny_model(seed=1)

    with pytest.raises(EditError, match="This edit was solved for another model than 'tiny-llama'"):
        hidden_states(lm, batch_of(lm, ROWS), edits=[random_edit(lm), random_edit(other)])

    assert not any(m._forward_hooks for m in lm.hf.modules())


def in_a_thread(task: Callable[[], object]) -> list[object]:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(task()))
    thread.start()
    thread.join()
    return found


def test_the_lock_is_held_for_a_pass_and_given_back_even_after_an_error() -> None:
    lm = tiny_model()

    def try_lock() -> bool:
        got = lm.lock.acquire(blocking=False)
        if got:
            lm.lock.release()
        return got

    with hooked(lm):
        assert in_a_thread(try_lock) == [False]
    assert in_a_thread(try_lock) == [True]
    with pytest.raises(KeyError), hooked(lm):
        raise KeyError
    assert in_a_thread(try_lock) == [True]


@pytest.mark.parametrize("size", [0.2, 1e4])
def test_an_edit_in_one_thread_does_not_leak_into_another(size: float) -> None:
    """Not even one that breaks the model for whoever uses it."""
    lm = tiny_model()
    edit, batch = random_edit(lm, size=size), batch_of(lm, ROWS)
    expected = {(): next_logits(lm, batch), (edit,): next_logits(lm, batch, edits=[edit])}
    assert not torch.allclose(expected[()], expected[(edit,)], atol=1e-2)
    leaks: list[tuple[int, int]] = []
    start = threading.Barrier(3)

    def work(edits: tuple[Edit, ...]) -> None:
        start.wait()
        for turn in range(40):
            if not torch.equal(next_logits(lm, batch, edits=edits), expected[edits]):
                leaks.append((len(edits), turn))

    threads = [threading.Thread(target=work, args=(edits,)) for edits in ((), (edit,), ())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert leaks == []


@each_family
def test_the_attention_pattern_is_what_the_model_returns(family: str) -> None:
    lm = tiny_model(family)
    expected = lm.hf(torch.tensor(ROWS[:1]), output_attentions=True).attentions[2]

    found = attention_pattern(lm, batch_of(lm, ROWS[:1]), 2)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert float(found.triu(1).abs().max()) == 0.0  # causal
    edited = attention_pattern(lm, batch_of(lm, ROWS[:1]), 2, edits=[random_edit(lm, 1)])
    assert not torch.allclose(edited, expected, atol=1e-3)


@each_family
def test_the_arguments_of_each_block_can_be_seen_and_changed(family: str) -> None:
    lm = tiny_model(family)
    seen: dict[int, Tensor] = {}

    def calls(layer: int, arguments: dict) -> dict:
        seen[layer] = arguments["hidden_states"]
        return {**arguments, "hidden_states": 2 * arguments["hidden_states"]} if layer == 2 else arguments

    with hooked(lm, calls=calls):
        found = lm.hf(torch.tensor(ROWS[:1]), use_cache=False).logits

    doubled = plain_run(lm, ROWS[:1], {lm.layout.block(1): lambda state: 2 * state})
    torch.testing.assert_close(found, doubled)
    torch.testing.assert_close(seen[1][0], plain_states(lm, ROWS[0], lm.layout.block(0))[1])
    assert sorted(seen) == [0, 1, 2, 3]
