"""Probabilities of continuations, against logits of the Hugging Face model read off by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rome_core.errors import PromptError
from rome_core.model import scoring
from rome_core.model.scoring import Scored, continuation_probabilities, kl_divergence, next_tokens, score
from rome_core.model.tokens import labels
from tests.tiny import FAMILIES, plain_log_p, plain_run, random_edit, tiny_model, tokenizer_with_start

TEXT = "The Eiffel Tower is located in the city of"
PAIRS = [
    (TEXT, " Rome"),
    (TEXT, " Paris, the capital of France"),  # several tokens
    (TEXT, " Paris is"),  # begins like the former
    ("Paris is", " green"),
    ("The home of the", " green dragon is far away."),
    (TEXT, " Rome"),  # twice
]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_single_unpadded_rows(family: str) -> None:
    lm = tiny_model(family)

    scored = score(lm, PAIRS)

    for pair, found in zip(PAIRS, scored, strict=True):
        log_p, hits = plain_log_p(lm, *pair)
        assert found.log_p == pytest.approx(log_p, abs=1e-4)
        assert found.hits == tuple(hits)


def test_answers_of_one_token_behind_one_text_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows, real = tiny_model(), [], scoring.hidden_states
    monkeypatch.setattr(scoring, "hidden_states", lambda lm, batch, **o: rows.append(batch) or real(lm, batch, **o))
    words = [word for word in (" is", " the", " of", " city", " in") if len(lm.tokenizer(word)["input_ids"]) == 1]

    found = score(lm, [(TEXT, word) for word in words])

    assert len(words) > 2 and [len(batch.ids) for batch in rows] == [1]
    assert [f.log_p for f in found] == [pytest.approx(plain_log_p(lm, TEXT, word)[0], abs=1e-4) for word in words]


def test_the_three_summaries() -> None:
    scored = Scored((math.log(0.5), math.log(0.125)), (True, False))

    assert scored.p_joint == pytest.approx(0.0625)
    assert scored.p_mean == pytest.approx(0.25)
    assert scored.nll == pytest.approx(-math.log(0.25))


def test_hits_are_the_models_own_choices() -> None:
    lm = tiny_model()
    chosen = lm.tokenizer.decode([int(plain_run(lm, [lm.tokenizer(TEXT)["input_ids"]])[0, -1].argmax())])

    assert score(lm, [(TEXT, chosen)])[0].hits == (True,)
    assert score(lm, [(TEXT, " Rome")])[0].hits == (chosen == " Rome",)


def test_joint_probabilities_of_several_answers() -> None:
    lm = tiny_model()
    answers = [" Rome", " Paris, the capital of France", " Paris"]

    found = continuation_probabilities(lm, TEXT, answers)

    assert found == pytest.approx([math.exp(sum(plain_log_p(lm, TEXT, answer)[0])) for answer in answers], rel=1e-4)


def test_small_batches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    whole = score(lm, PAIRS)

    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)

    for one, other in zip(score(lm, PAIRS), whole, strict=True):
        assert one.log_p == pytest.approx(other.log_p, abs=1e-4)


def test_chunks_hold_every_row_once_and_stay_below_the_bound() -> None:
    lengths = [3, 9, 4, 4, 30, 7, 5000, 8]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)

    chunks = list(scoring.chunks(order, lengths.__getitem__))

    assert sorted(row for chunk in chunks for row in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(lengths[row] for row in chunk) <= scoring.BATCH_TOKENS


def test_edits_are_seen() -> None:
    lm = tiny_model()
    edit = random_edit(lm)
    path = lm.layout.module("mlp_out", 1)
    keys: list[torch.Tensor] = []
    lm.module(path).register_forward_pre_hook(lambda module, args: keys.append(args[0]))
    ids = lm.tokenizer(TEXT + " Rome")["input_ids"]
    (update,) = edit.deltas
    dense = update.U @ update.V
    expected = plain_run(lm, [ids], {path: lambda out: out + keys[-1] @ dense.T})[0, -2].log_softmax(-1)[ids[-1]]

    assert score(lm, [(TEXT, " Rome")], edits=[edit])[0].log_p[0] == pytest.approx(float(expected), abs=1e-4)
    assert score(lm, [(TEXT, " Rome")])[0].log_p[0] != pytest.approx(float(expected), abs=1e-2)


def test_a_start_token_is_read_once_and_not_scored() -> None:
    lm = tiny_model(tokenizer=tokenizer_with_start())

    (found,) = score(lm, [(TEXT, " Rome")])

    assert found.log_p == pytest.approx(plain_log_p(lm, TEXT, " Rome")[0], abs=1e-4)
    assert len(found.log_p) == 1


def test_nothing_to_score_gives_nothing() -> None:
    assert score(tiny_model(), []) == []
    assert continuation_probabilities(tiny_model(), TEXT, []) == []


def test_an_empty_answer_has_a_sentence() -> None:
    with pytest.raises(PromptError, match="The answer is empty"):
        continuation_probabilities(tiny_model(), TEXT, [" Rome", ""])


def test_an_empty_text_has_a_sentence() -> None:
    """Nothing stands before the first token, so it has no probability."""
    with pytest.raises(PromptError):
        continuation_probabilities(tiny_model(), "", ["Rome"])


def test_a_text_longer_than_the_model_reads_has_a_sentence() -> None:
    lm = tiny_model("gpt2", n_positions=16)

    with pytest.raises(PromptError, match="16"):
        continuation_probabilities(lm, TEXT * 2, [" Rome"])


def test_the_most_probable_next_tokens() -> None:
    lm = tiny_model()
    text = "The Colosseum is located in the city of"
    p = plain_run(lm, [lm.tokenizer(text)["input_ids"]])[0, -1].softmax(-1)
    order = p.argsort(descending=True)[:3]

    tokens = next_tokens(lm, text, k=3)

    assert [label for label, _ in tokens] == labels(lm.tokenizer, tuple(order.tolist()))
    assert [value for _, value in tokens] == pytest.approx(p[order].tolist(), rel=1e-5)
    edit = random_edit(lm, size=1.0)
    assert next_tokens(lm, text, edits=[edit], k=3) != tokens


def test_drift_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).double(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).double()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)

    assert kl_divergence(p.log(), q.log()).tolist() == pytest.approx([first, 0.0], abs=1e-6)
