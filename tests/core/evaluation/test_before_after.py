"""The same questions before an edit and after it: which are asked, and that a report says what plain calls say."""

from __future__ import annotations

import pytest

from rome_core import METHODS, EditRequest, LanguageModel, Prompt, Step, diagnose, generate
from rome_core.diagnosis.inspection import target_rank
from rome_core.evaluation.answers import ask_before_and_after
from rome_core.evaluation.before_after import (
    NEW_TOKENS,
    choose_questions,
    find_own_fact,
    own_questions,
    same_fact,
    solve_and_measure,
)
from tests.tiny import REQUEST, random_edit


def test_a_known_subject_brings_its_paraphrases_and_neighbours_in_the_words_of_the_request() -> None:
    questions = choose_questions(REQUEST)

    assert questions[0].text == "The Eiffel Tower is located in the city of"
    assert all("Eiffel Tower" in question.text for question in questions if question.kind == "paraphrase")
    neighbours = [question.text for question in questions if question.kind == "neighbour"]
    assert all(text.endswith(" is located in the city of") for text in neighbours)
    assert questions[-1].kind == "reversed"
    assert "Rome" in questions[-1].text
    assert (questions[-1].new, questions[-1].true) == ("Eiffel Tower", None)


def test_an_unknown_fact_has_only_its_own_prompt_and_namesakes() -> None:
    unknown = EditRequest(Prompt("{} lives in", "The green dragon"), "Rome")

    assert find_own_fact(unknown) is None
    assert [one.kind for one in choose_questions(unknown)] == ["edit", "namesake", "namesake"]
    assert all(one.text.endswith(" dragon lives in") for one in choose_questions(unknown)[1:])
    assert [one.kind for one in choose_questions(EditRequest(Prompt("{} lives in", "Dragon"), "Rome"))] == ["edit"]
    assert [one.text for one in own_questions(unknown, ["", "a b ", "  "])] == ["a b"]


@pytest.mark.usefixtures("random_moments", "few_facts")
def test_a_report_says_what_plain_calls_say(lm: LanguageModel) -> None:
    below, steps = (random_edit(lm, 0, size=0.02),), list[tuple[Step, ...]]()
    config = METHODS["r-rome"](layer=2, prefixes=("", "x. "), steps=2, clamp=1.0)

    report = solve_and_measure(lm, REQUEST, config, below, publish=steps.append)

    assert [len(so_far) for so_far in steps] == list(range(1, len(report.edit.history) + 1))
    assert same_fact(report.edit, REQUEST) and report.request == REQUEST
    assert report.changes == ask_before_and_after(lm, choose_questions(REQUEST), [report.edit], below)
    assert report.rank == (
        target_rank(lm, REQUEST, edits=below),
        target_rank(lm, REQUEST, edits=[*below, report.edit]),
    )
    opening = report.continuations[0]
    assert opening.before == generate(lm, opening.text, NEW_TOKENS, edits=below)
    assert opening.after == generate(lm, opening.text, NEW_TOKENS, edits=[*below, report.edit])
    assert report.diagnosis is not None and report.verdict == diagnose(lm, report.edit).verdict
    assert report.relative_norm == pytest.approx(report.diagnosis.relative_F, rel=1e-5)
