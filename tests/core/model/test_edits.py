"""Deltas in factors against the same thing dense, in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.model.edits import Delta, Update, factors, relative_norms
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


def test_the_relative_norm_of_several_updates_on_one_module_is_that_of_their_sum() -> None:
    lm = tiny_model()
    edit = random_edit(lm)
    (delta,) = edit.deltas

    W = lm.weight(1)
    expected = {delta.module: pytest.approx(2 * float(delta.matrix().norm() / W.norm()), rel=1e-5)}
    assert relative_norms(lm, [replace(edit, deltas=edit.deltas * 2)]) == relative_norms(lm, [edit, edit]) == expected


def test_balanced_factors_are_the_same_update_bit_for_bit_and_fit_half_precision() -> None:
    """C⁻¹k is as large as C is small: its entries go far beyond where float16 ends."""
    draw = torch.Generator().manual_seed(0)
    U, V = 3e-7 * torch.randn(5, 3, generator=draw), 9e6 * torch.randn(3, 7, generator=draw)
    update = Delta("block.mlp", U, V)

    balanced = Delta("block.mlp", *update.balanced)

    assert torch.equal(balanced.matrix(), update.matrix())
    ratio = balanced.V.norm(dim=1) / balanced.U.norm(dim=0)
    assert bool((ratio >= 0.5).all()) and bool((ratio <= 2.0).all())
    keys = torch.randn(4, 7, generator=draw)
    added = update(keys.half())
    assert not bool(V.half().isfinite().all()) and update.fits(torch.float16)
    np.testing.assert_allclose(added.double(), keys.double() @ update.matrix().T, atol=2e-2 * float(added.abs().max()))


def test_factors_of_nothing_stay_as_they_are() -> None:
    U, V = torch.tensor([[0.0, 1.0, 0.0]]).repeat(5, 1), torch.tensor([[1.0], [0.0], [0.0]]).repeat(1, 7)

    update = Delta("block.mlp", U, V)

    assert all(torch.equal(own, kept) for own, kept in zip(update.balanced, (U, V), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_fits_no_precision(bad: float) -> None:
    update, _ = delta(1)

    assert update.fits(torch.float16)
    for U, V in ((bad * update.U, update.V), (update.U, bad * update.V), (1e9 * update.U, 1e9 * update.V)):
        assert not Delta("block.mlp", U, V).fits(torch.float16)


def test_updates_of_several_devices_are_put_together_on_the_first_ones() -> None:
    """An edit from a file is on the processor, a solved one where its model is; `meta` stands for another device."""
    here, there = delta(1)[0], Delta("block.mlp", torch.zeros(5, 1, device="meta"), torch.zeros(1, 7, device="meta"))
    edits = [Update((there,), "f"), Update((here,), "f")]

    stacked = factors(edits)["block.mlp"]

    assert stacked.U.device.type == stacked.V.device.type == "meta" and stacked.U.shape == (5, 2)
