"""Deltas in factors against the same thing dense, in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.editing.edit import merge_edits
from rome_core.editing.methods import METHODS
from rome_core.errors import EditError
from rome_core.model.edits import Delta, factors, relative_norms
from rome_core.model.hooks import batch_of, hidden_states
from tests.tiny import random_edit, tiny_model


def delta(rank: int) -> tuple[Delta, np.ndarray]:
    draw = np.random.default_rng(rank)
    U, V = draw.normal(size=(5, rank)).astype("float32"), draw.normal(size=(rank, 7)).astype("float32")
    return Delta("block.mlp", torch.from_numpy(U), torch.from_numpy(V)), U.astype("float64") @ V.astype("float64")


@pytest.mark.parametrize("rank", [1, 3])
def test_the_norm_from_the_factors_is_the_dense_one(rank: int) -> None:
    update, dense = delta(rank)

    assert update.norm() == pytest.approx(np.linalg.norm(dense), rel=1e-12)
    np.testing.assert_allclose(update.matrix().numpy(), dense, rtol=1e-12)
    assert update.matrix().dtype == torch.float64


@pytest.mark.parametrize("rank", [1, 3])
def test_what_it_adds_is_the_dense_product_in_the_keys_precision(rank: int) -> None:
    update, dense = delta(rank)
    keys = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))

    added = update(keys)

    assert added.dtype == torch.float32 and update(keys.bfloat16()).dtype == torch.bfloat16
    np.testing.assert_allclose(added.numpy(), keys.numpy() @ dense.T, rtol=1e-4, atol=1e-5)


def test_factors_that_cancel_have_no_norm_instead_of_a_nan() -> None:
    update = Delta("block.mlp", torch.tensor([[1.0, -1.0]]).repeat(5, 1), torch.full((2, 7), 1e3))

    assert update.norm() == 0.0


def test_the_norm_of_an_edit_is_that_of_all_its_modules_together() -> None:
    edit = random_edit(tiny_model())
    (first,), (second, dense) = edit.deltas, delta(3)
    both = replace(edit, deltas=(first, second))

    assert both.delta_norm == pytest.approx((np.linalg.norm(first.matrix()) ** 2 + np.linalg.norm(dense) ** 2) ** 0.5)
    assert edit.delta_norm == pytest.approx(np.linalg.norm(first.matrix()))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5])
def test_a_scaled_edit_is_the_multiple_and_leaves_the_original(factor: float) -> None:
    edit = random_edit(tiny_model(), rank=2)
    before = edit.deltas[0].matrix()

    scaled = edit.scaled(factor)

    torch.testing.assert_close(scaled.deltas[0].matrix(), factor * before)
    assert scaled.delta_norm == pytest.approx(factor * edit.delta_norm)
    assert torch.equal(edit.deltas[0].matrix(), before)
    assert (scaled.requests, scaled.base, scaled.method) == (edit.requests, edit.base, edit.method)


def test_the_id_is_that_of_the_update_alone() -> None:
    lm = tiny_model()
    edit = random_edit(lm)
    (update,) = edit.deltas

    assert edit.id == random_edit(lm).id == replace(edit, corpus="another").id
    others = [
        random_edit(lm, seed=1),
        edit.scaled(0.5),
        random_edit(lm, layer=2),
        replace(edit, deltas=(update, update)),
        replace(edit, deltas=(replace(update, U=update.U.nextafter(torch.tensor(9.0))),)),
    ]
    assert len({edit.id, *(other.id for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_merged_edits_are_the_stacked_ones(family: str) -> None:
    """Ten edits of two methods on three layers, rank 1 to 4: overlays one after another are the oracle."""
    lm = tiny_model(family)
    edits = [random_edit(lm, 1 + i % 3, rank=1 + i % 4, seed=i, size=0.05) for i in range(10)]
    edits[3] = replace(edits[3], config=METHODS["emmet"](layer=1))
    batch = batch_of(lm, [[5, 60, 300, 17], [8, 9]])
    stacked = hidden_states(lm, batch, edits=edits)

    few = merge_edits(edits)

    assert [edit.method for edit in few] == ["r-rome", "emmet"]
    assert [len(edit.deltas) for edit in few] == [3, 1]
    torch.testing.assert_close(hidden_states(lm, batch, edits=few), stacked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stacked, hidden_states(lm, batch), atol=1e-2)
    assert len(few[0].requests) == 9 and few[0].on == tuple(edit.id for edit in edits if edit.method == "r-rome")
    assert merge_edits(edits[:1]) == (edits[0],) and merge_edits([]) == ()


def test_a_merged_update_of_high_rank_is_applied_whole() -> None:
    """d_model 16, d_mlp 24: two factors are cheaper up to rank 9; from rank 16 on one of them is the identity."""
    lm = tiny_model()
    keys = torch.randn(3, lm.d_mlp)
    for n, rank in ((9, 9), (10, 10), (15, 15), (16, 16), (40, 16)):
        edits = [random_edit(lm, 1, seed=i) for i in range(n)]
        (one,) = merge_edits(edits)
        (delta,) = one.deltas

        torch.testing.assert_close(delta(keys), sum(e.deltas[0](keys) for e in edits), rtol=1e-4, atol=1e-4)
        assert ("_whole" in vars(delta)) == (n > 9)
        assert delta.U.shape[1] == rank and torch.equal(factors(edits)[delta.module].U, delta.U)


def test_keys_that_later_edits_need_stay_side_by_side() -> None:
    lm = tiny_model()
    kept = [torch.randn(lm.d_mlp, n) for n in (2, 3)]
    edits = [random_edit(lm, seed=i) for i in range(2)]
    edits = [
        replace(edit, keys=replace(edit.known_keys, by_layer={1: keys})) for edit, keys in zip(edits, kept, strict=True)
    ]

    (one,) = merge_edits(edits)

    assert torch.equal(one.keys.by_layer[1], torch.cat(kept, 1))
    with pytest.raises(EditError, match="different models"):
        merge_edits([edits[0], replace(edits[1], base="another")])


def test_the_relative_norm_of_several_updates_on_one_module_is_that_of_their_sum() -> None:
    lm = tiny_model()
    edit = random_edit(lm)
    (delta,) = edit.deltas

    W = lm.weight(1)
    expected = {delta.module: pytest.approx(2 * float(delta.matrix().norm() / W.norm()), rel=1e-5)}
    assert relative_norms(lm, [replace(edit, deltas=edit.deltas * 2)]) == relative_norms(lm, [edit, edit]) == expected
