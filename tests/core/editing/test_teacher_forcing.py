"""Teacher-forced rows against the model run by itself, target by target."""

from __future__ import annotations

import pytest
import torch

from rome_core.editing.teacher_forcing import final_by_hooks, final_states, forced_rows
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.tokens import target_ids, text_ids
from tests.tiny import FAMILIES, random_edit, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_running_the_upper_blocks_is_running_the_model(family: str) -> None:
    lm = tiny_model(family)
    batch = batch_of(lm, [[5, 60, 300, 17, 260], [7, 8, 9]])
    below = random_edit(lm, 0)
    draw = torch.Generator().manual_seed(0)
    paths = [path for layer in (2, 3) for path in lm.layout.mlp_matrices(layer)]
    matrices = {path: 0.1 * torch.randn(*lm.matrix(path).shape, generator=draw) for path in paths}
    overlays = [(path, lambda x, M=M: x @ M.T) for path, M in matrices.items()]

    fast, plain = (final(overlays)[batch.mask] for final in (final_states(lm, batch, 2, [below]),
                                                             final_by_hooks(lm, batch, [below])))  # fmt: skip

    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, hidden_states(lm, batch, edits=[below])[batch.mask], atol=1e-2)


def test_each_target_token_is_predicted_from_those_before_it() -> None:
    lm = tiny_model()
    pairs = [("The Eiffel Tower is located in the city of", "the city of Rome"), ("France is", "Paris")]

    forced = forced_rows(lm, pairs, 2)
    log_p, first = forced.log_p(lm, [])

    for row, (text, target) in enumerate(pairs):
        front, tokens = text_ids(lm.tokenizer, text), target_ids(lm.tokenizer, text, " " + target)
        for place, token in enumerate(tokens):
            with torch.no_grad():
                logits = lm.hf(input_ids=torch.tensor([front + tokens[:place]])).logits[0, -1]
            torch.testing.assert_close(log_p[row, place], logits.log_softmax(-1)[token], rtol=1e-4, atol=1e-5)
            if place == 0:
                torch.testing.assert_close(first[row], logits, rtol=1e-4, atol=1e-5)
        assert forced.counts[row].sum() == len(tokens) and not log_p[row, len(tokens) :].any()
        assert float(forced.mean(log_p)[row]) == pytest.approx(float(log_p[row, : len(tokens)].mean()), rel=1e-5)
    assert forced.counts.sum(1).unique().numel() == 2  # targets of two lengths
