"""The search for a value, whatever the method makes of it: prefixes, settings, and what it says of bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rome_core.editing.methods import solve
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.replay import REPLAY
from rome_core.model.tokens import EditRequest, Prompt, encode
from tests.core.editing.methods.test_rome import LAYER, PREFIXES, config, each_policy, solved
from tests.tiny import REQUEST, plain_states, random_moment, tiny_model


def test_sampled_prefixes_are_seeded_and_kept_with_the_edit() -> None:
    lm = tiny_model()
    edit = solved(lm, "r-rome", prefixes=None, steps=2)

    assert edit.config.prefixes[0] == "" and len(edit.config.prefixes) == 1 + edit.config.n_prefixes == 6
    every = solved(lm, "r-rome", prefixes=None, steps=2, n_prefixes=20).config.prefixes
    assert len(every) == 21 and edit.config.prefixes[1:] == every[1::4]
    assert solved(lm, "r-rome", prefixes=None, steps=2).id == edit.id
    assert solved(lm, "r-rome", prefixes=edit.config.prefixes, steps=2).id == edit.id
    assert solved(lm, "r-rome", prefixes=None, steps=2, seed=1).id != edit.id


@each_policy
def test_prefixes_may_be_written_as_the_authors_templates(policy: str) -> None:
    """Their context templates are "{}", "x. {}", …, with the prompt in place of the braces."""
    lm = tiny_model()
    ours, theirs = solved(lm, policy), solved(lm, policy, prefixes=tuple(prefix + "{}" for prefix in PREFIXES))

    torch.testing.assert_close(theirs.k_star, ours.k_star)
    torch.testing.assert_close(theirs.deltas[0].matrix(), ours.deltas[0].matrix(), rtol=1e-3, atol=1e-5)


def test_no_prefixes_at_all_means_the_bare_prompt() -> None:
    lm = tiny_model()
    none, bare, prefixed = (solved(lm, "r-rome", prefixes=prefixes) for prefixes in ((), ("",), PREFIXES))

    assert none.config.prefixes == ("",) and none.id == bare.id
    assert torch.equal(none.deltas[0].matrix(), bare.deltas[0].matrix())
    assert not torch.allclose(none.deltas[0].matrix(), prefixed.deltas[0].matrix())


def test_where_replay_is_wrong_the_edit_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = solved(tiny_model(), "r-rome")
    lm = tiny_model()
    lm.remember(REPLAY, (), lambda: "Not on this model.")
    monkeypatch.setattr("rome_core.editing.value.run_block", None)  # and is not touched

    found = solved(lm, "r-rome")

    torch.testing.assert_close(found.deltas[0].matrix(), expected.deltas[0].matrix(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("subject", "target"),
    [
        ("東京", "Rome"), ("Eiffel Tower", "東京"), ("Eiffel Tower", "the city of São Paulo"), ("Paris", "Paris"),
        ("🐉", "Köln"),
    ],
)  # fmt: skip
def test_unusual_subjects_and_targets(subject: str, target: str) -> None:
    """Multi-byte and multi-token ones, a subject that occurs twice, a target that is the subject: v* is what the
    edited module gives at the subject's last token, and it is nearer to the target."""
    lm = tiny_model("gpt2")
    request = EditRequest(Prompt("The city of Paris and {} is in the country of", subject), target)

    edit = solve(lm, [request], config("p-rome", steps=8), moments={LAYER: random_moment(lm, LAYER)})

    encoded, point = encode(lm.tokenizer, request.prompt), Point("mlp_out", LAYER)
    value = activations(lm, batch_of(lm, [encoded.ids]), [point], edits=[edit])[point][0, encoded.last_subject]
    torch.testing.assert_close(value, edit.v_0 + edit.keys.prompts.bias + edit.keys.delta, rtol=1e-3, atol=1e-3)
    assert edit.history[-1].nll < edit.history[0].nll


def test_a_target_that_never_becomes_likely_is_seen_in_the_history() -> None:
    edit = solved(tiny_model(), "r-rome", clamp=0.1, steps=6)

    assert len(edit.history) == 6 and edit.history[-1].p_target < 0.1
    assert edit.history[-1].delta_norm == pytest.approx(edit.history[-1].limit, rel=1e-5)


@pytest.mark.parametrize(("at", "row"), [("bare prompt", 0), ("prefixed prompts", None)])
def test_the_clamp_is_in_units_of_the_value_at_the_chosen_place(at: str, row: int | None) -> None:
    lm = tiny_model()
    norms = []
    for prefix in PREFIXES:
        ids = lm.tokenizer(prefix + REQUEST.prompt.text[: REQUEST.prompt.span[1]])["input_ids"]
        _, values = plain_states(lm, ids, lm.layout.module("mlp_out", LAYER))
        norms.append(float(values[-1].norm()))

    edit = solved(lm, "h-rome", scale_at=at, clamp=2.0)

    expected = norms[row] if row is not None else float(np.median(norms))
    assert edit.history[0].limit == pytest.approx(2 * expected, rel=1e-4)
