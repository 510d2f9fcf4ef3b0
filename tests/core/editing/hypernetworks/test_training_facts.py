"""Lessons: which facts, targets and texts a step sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rome_core.editing.hypernetworks import training_facts as lessons
from rome_core.editing.hypernetworks.hypernetwork import describe, edited_matrices
from rome_core.editing.hypernetworks.mend import MendNetwork
from rome_core.editing.hypernetworks.training_facts import Lessons, gradient_of, outcome, pieces_of_text
from rome_core.facts.datasets import facts_of
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.tokens import text_ids
from rome_core.progress import silent
from tests.tiny import TEXTS, tiny_model
from tests.tiny_networks import PIECES


def test_a_step_depends_on_seed_and_step_alone() -> None:
    lm, facts = tiny_model(), facts_of("train")[:6]
    one, two, other = (Lessons(lm, facts, PIECES, seed) for seed in (0, 0, 1))

    a, b = [one.training(step) for step in range(12)], [two.training(step) for step in reversed(range(12))][::-1]

    assert [lesson.request for lesson in a] == [lesson.request for lesson in b]
    assert all(
        torch.equal(x.positions, y.positions) and torch.equal(x.before, y.before)
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p.unrelated, q.unrelated, strict=True)
    )
    assert [lesson.request for lesson in a] != [other.training(step).request for step in range(12)]


def test_every_fact_comes_once_before_any_comes_twice_and_targets_are_of_its_kind() -> None:
    lm, facts = tiny_model(), facts_of("train")[:6]
    school = Lessons(lm, facts, PIECES, 0)
    seen = [school.training(step).request for step in range(12)]

    for epoch in (seen[:6], seen[6:]):
        assert {request.prompt for request in epoch} == {fact.prompt for fact in facts}
    for request in seen:
        fact = next(fact for fact in facts if fact.prompt == request.prompt)
        kind = {one.target_true for one in facts if one.relation == fact.relation} - {fact.target_true}
        assert request.target_new in kind | {fact.target_new}


def test_unrelated_texts_are_kept_as_they_were_and_never_about_the_subject() -> None:
    lm, facts = tiny_model(), facts_of("train")[:6]
    lesson = Lessons(lm, facts, PIECES, 0).training(3)
    text, other, neighbour = lesson.unrelated

    assert any(torch.allclose(text.before, hidden_states(lm, batch_of(lm, rows)), atol=1e-5) for rows in PIECES)
    others = [f.prompt for f in facts if f.prompt.subject != lesson.request.prompt.subject]
    own_words = [replace(lesson.request.prompt, subject=prompt.subject) for prompt in others]
    for found, prompts in ((other, others), (neighbour, own_words)):
        batches = [batch_of(lm, [text_ids(lm.tokenizer, prompt.text)]) for prompt in prompts]
        same = [b for b in batches if b.ids.shape[1] == found.before.shape[1]]
        assert any(torch.allclose(found.before, hidden_states(lm, batch), atol=1e-5) for batch in same)
        assert found.positions.tolist() == [[found.before.shape[1] - 1]]
    before, after = text.states([])
    torch.testing.assert_close(before, after)


def test_pieces_for_looking_come_from_other_texts(monkeypatch) -> None:
    lm = tiny_model()
    texts = [f"{number} {text} {text}" for number, text in enumerate(TEXTS * 4)]
    monkeypatch.setattr(lessons, "self_written_texts", lambda *_, **__: texts)

    known, unknown = pieces_of_text(lm, 0, silent)

    assert known and unknown
    assert all(len(piece) == lessons.PIECE for pieces in known + unknown for piece in pieces)
    own = [" ".join(map(str, text_ids(lm.tokenizer, text))) for text in texts[9:]]
    assert all(any(" ".join(map(str, piece)) in text for text in own) for pieces in unknown for piece in pieces)


def test_a_neighbour_counts_as_much_as_a_whole_piece_of_text() -> None:
    lm, facts = tiny_model(), facts_of("train")[:6]
    lesson, network = Lessons(lm, facts, PIECES, 0).training(0), MendNetwork(edited_matrices(lm), rank=4)
    network.prepare([gradient_of(lm, lesson)])
    updates = network.updates(gradient_of(lm, lesson), describe(lm, lesson.request))
    overlays = [(delta.module, delta) for delta in updates]

    with torch.no_grad():
        _, kl = outcome(lm, network, lesson)

    each = []
    for one in lesson.unrelated:
        before, after = (lm.unembed(states).log_softmax(-1) for states in one.states(overlays))
        each.append((before.exp() * (before - after)).sum(-1).mean())
    assert len(each) == 3 and float(kl) == pytest.approx(float(torch.stack(each).mean().detach()), rel=1e-3)
