"""Looking into an edit, each quantity again in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.diagnosis.inspection import (
    constraint_error,
    key_cosines,
    promoted_tokens,
    spectrum,
    strongest_neurons,
    target_rank,
    token_table,
)
from rome_core.editing.methods import METHODS, solve
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import REQUEST, plain_run, random_edit, random_moment, tiny_model


def test_the_table_shows_what_is_trained() -> None:
    rows = token_table(tiny_model(), EditRequest(Prompt("The {} is", "Eiffel Tower"), "Paris, Rome"))

    assert [(row.text, row.role, row.trained) for row in rows] == [
        ("The", "prompt", False),
        (" Eiffel", "subject", False),
        (" Tower", "subject's last", False),
        (" is", "prompt", False),
        (" Paris", "target", True),
        (",", "target", True),
        (" Rome", "target", True),
    ]
    assert [row.id for row in rows] == tiny_model().tokenizer("The Eiffel Tower is Paris, Rome")["input_ids"]
    assert [row.gap for row in rows if row.trained] == ["one space between the prompt and the object", "", ""]


def test_the_table_says_by_which_rule_a_target_has_no_space() -> None:
    rows = token_table(tiny_model(), EditRequest(Prompt("The price of {} is $", "Rome"), "9"))

    assert "".join(row.text for row in rows) == "The price of Rome is $9"
    assert next(row.gap for row in rows if row.trained) == "no space after the currency sign $"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_promoted_tokens_are_read_through_norm_and_head(family: str) -> None:
    lm = tiny_model(family)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    logits = lm.hf.get_output_embeddings()(lm.module(lm.layout.norm)(vector[None]))[0]
    if family == "gemma2":
        logits = 30 * torch.tanh(logits / 30)
    order = logits.argsort(descending=True)[:4]

    found = promoted_tokens(lm, vector, 4)

    assert [value for _, value in found] == pytest.approx(logits[order].tolist(), rel=1e-5)
    assert len({label for label, _ in found}) == 4


def test_the_strongest_neurons() -> None:
    key = torch.zeros(24).index_put((torch.tensor([0, 1, 3]),), torch.tensor([0.5, -3.0, 2.0]))
    edit = random_edit(tiny_model())
    edit = replace(edit, keys=replace(edit.known_keys, k_star=key))

    assert strongest_neurons(edit, 2) == [(1, -3.0), (3, 2.0)]


def test_cosines_between_the_keys() -> None:
    edit = random_edit(tiny_model())
    keys = edit.keys.prompts.keys.double().numpy()
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)

    np.testing.assert_allclose(key_cosines(edit), unit @ unit.T, rtol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["rome", "r-rome", "p-rome", "c-rome", "h-rome"])
def test_the_constraint_of_a_solved_edit_holds_and_of_a_halved_one_does_not(family: str, method: str) -> None:
    lm = tiny_model(family)
    config = METHODS[method](layer=1, clamp=2.0, steps=3, prefixes=("", "x. ", "So. "))
    edit = solve(lm, [REQUEST], config, moments={1: random_moment(lm)})

    assert constraint_error(lm, edit) < 1e-4
    assert constraint_error(lm, edit.scaled(0.5)) > 1e-2
    k = (edit.k_0 if method == "rome" else edit.k_star).double().numpy()
    W, v = lm.weight(1).double().numpy(), edit.v_star.double().numpy()
    halved = np.linalg.norm(W @ k + 0.5 * edit.deltas[0].matrix().numpy() @ k - v) / np.linalg.norm(v)
    assert constraint_error(lm, edit.scaled(0.5)) == pytest.approx(halved, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_spectra(family: str) -> None:
    lm = tiny_model(family)
    edit = random_edit(lm)
    W = lm.weight(1).double().numpy()

    before, after = spectrum(lm, edit)

    np.testing.assert_allclose(before, np.linalg.svd(W, compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose(after, np.linalg.svd(W + edit.deltas[0].matrix().numpy(), compute_uv=False), rtol=1e-9)


def test_the_rank_of_the_target() -> None:
    lm = tiny_model()
    text = REQUEST.prompt.text
    logits = plain_run(lm, [lm.tokenizer(text)["input_ids"]])[0, -1]
    order = logits.argsort(descending=True).tolist()

    assert target_rank(lm, REQUEST) == 1 + order.index(lm.tokenizer(text + " Rome")["input_ids"][-1])
    words = [lm.tokenizer.decode([token]) for token in order]
    best = next(w for w in words if w.startswith(" ") and w[1:].isalpha() and w.isascii())
    assert target_rank(lm, replace(REQUEST, target_new=best.strip())) == 1 + words.index(best)
    edits = [random_edit(lm, size=1.0)]
    assert target_rank(lm, REQUEST, edits=edits) != target_rank(lm, REQUEST)
