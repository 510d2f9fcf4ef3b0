"""Answers to questions, against probabilities read off the model one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest

from rome_core import Fact, Prompt, continuation_probabilities
from rome_core.evaluation.answers import Question, ask, ask_before_and_after, known_facts, pairs_of, questions_about
from tests.tiny import plain_log_p, plain_run, random_edit, tiny_model

FACT = Fact(
    id="tower",
    relation="city",
    prompt=Prompt("The {} is located in the city of", "Eiffel Tower"),
    target_true="Paris",
    target_new="Rome",
    paraphrases=("The city of the Eiffel Tower is",),
    neighbours=("The Colosseum is located in the city of", "Lyon is a city in the country of"),
    neighbour_true="France",
)
BARE = replace(FACT, id="bare", paraphrases=(), neighbours=())
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


def test_a_fact_is_asked_for_new_and_true_on_every_prompt() -> None:
    lm = tiny_model()

    pairs = pairs_of(ask(lm, questions_about(FACT)))

    def pair(text: str, true: str) -> tuple[float, float]:
        means = [math.exp(fmean(plain_log_p(lm, text, target)[0])) for target in (" Rome", f" {true}")]
        return pytest.approx(tuple(means), rel=1e-3)

    assert pairs["edit"] == [pair(FACT.prompt.text, "Paris")]
    assert pairs["paraphrase"] == [pair(FACT.paraphrases[0], "Paris")]
    assert pairs["neighbour"] == [pair(text, "France") for text in FACT.neighbours]
    assert pairs_of(ask(lm, questions_about(FACT), edits=[random_edit(lm)]))["edit"] != pairs["edit"]
    bare = pairs_of(ask(lm, questions_about(BARE)))
    assert bare["paraphrase"] == bare["neighbour"] == []


def test_before_and_after_are_the_same_questions_without_and_with_the_edit() -> None:
    lm = tiny_model()
    edit, below = random_edit(lm), random_edit(lm, 2, seed=1)
    back = Question("reversed", "In Rome there is the", "Tower", "Tower", "In Paris there is the")
    questions = [*questions_about(FACT), back, Question("yours", "Milan is in the country of", "France")]

    changes = ask_before_and_after(lm, questions, [edit], below=[below])

    assert tuple(change.before for change in changes) == ask(lm, questions, edits=[below])
    assert tuple(change.after for change in changes) == ask(lm, questions, edits=[below, edit])
    assert [len(change.after.probabilities) for change in changes] == [2, 2, 2, 2, 2, 1]
    assert all(change.before != change.after for change in changes)
    (joint,) = continuation_probabilities(lm, TEXT, [" Paris"], edits=[below, edit])
    assert changes[0].after.probabilities[1] == pytest.approx(joint, rel=1e-4)
    assert ask_before_and_after(lm, (), [edit]) == ()


def test_known_facts_are_those_that_the_model_would_say() -> None:
    lm = tiny_model("gemma2")
    ids = lm.tokenizer(FACT.prompt.text)["input_ids"]
    order = plain_run(lm, [ids])[0, -1].argsort(descending=True).tolist()
    words = [lm.tokenizer.decode([token]) for token in order]
    assert words[0].startswith(" ") and words[0][1:].isalpha()  # else this prompt shows nothing

    knowing, guessing = replace(FACT, target_true=words[0].strip()), replace(FACT, target_true="Zürich")

    assert known_facts(lm, [knowing, guessing, knowing]) == [True, False, True]
