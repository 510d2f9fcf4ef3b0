"""Edits as data: merged into few overlays, the keys that later edits need kept side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rome_core.editing.edit import Keys, merge_edits
from rome_core.editing.methods import METHODS
from rome_core.errors import EditError
from rome_core.model.edits import factors
from rome_core.model.hooks import batch_of, hidden_states
from tests.tiny import random_edit, tiny_model


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


def test_an_edit_without_keys_says_so() -> None:
    edit = replace(random_edit(tiny_model()), keys=None, config=METHODS["ft"](layer=1))

    with pytest.raises(EditError, match="Edits by 'ft' have no key and value"):
        _ = edit.k_star
    assert merge_edits([edit, edit])[0].keys is None


def test_one_request_of_a_batch_has_its_own_rows() -> None:
    edit = random_edit(tiny_model())
    k, v = edit.known_keys.k_star, edit.known_keys.v_star
    rows = Keys(torch.stack([k, 2 * k]), torch.stack([v, v]), torch.stack([k, k]), torch.stack([v, v]))
    both = replace(edit, requests=edit.requests * 2, keys=rows)

    second = both.of_request(1)

    assert torch.equal(second.k_star, 2 * edit.k_star[None]) and len(second.requests) == 1
    assert second.deltas is both.deltas
