"""Answers to questions, against probabilities read off the model one by one."""

from __future__ import annotations

import pytest

from rome_core import continuation_probabilities
from rome_core.evaluation.answers import Question, ask
from tests.tiny import random_edit, tiny_model

TEXT = "The Eiffel Tower is located in the city of"


def test_each_answer_belongs_to_its_question() -> None:
    lm = tiny_model()
    edits = [random_edit(lm)]
    questions = [
        Question("edit", TEXT, "Rome", "Paris"),
        Question("yours", "Milan is in the country of", "France"),
        Question("reversed", "In Rome there is the", "Tower", "Tower", "In Paris there is the"),
    ]

    answers = ask(lm, questions, edits=edits)

    for question, answer in zip(questions, answers, strict=True):
        assert answer.question == question
        (new,) = continuation_probabilities(lm, question.text, [f" {question.new}"], edits=edits)
        assert answer.new.p_joint == pytest.approx(new, rel=1e-4)
    (true,) = continuation_probabilities(lm, "In Paris there is the", [" Tower"], edits=edits)
    assert answers[2].true is not None and answers[2].true.p_joint == pytest.approx(true, rel=1e-4)
    assert answers[1].true is None and answers[1].lead == answers[1].new.p_mean - 0.5


def test_on_neighbours_the_true_object_should_win() -> None:
    lm = tiny_model()

    near, own = ask(lm, [Question("neighbour+", TEXT, "Rome", "Paris"), Question("edit", TEXT, "Rome", "Paris")])

    assert near.lead == -own.lead
    assert near.question.behind("So. ").text == f"So. {TEXT}"
