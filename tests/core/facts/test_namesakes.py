"""Made-up subjects that end in the same words."""

from __future__ import annotations

import pytest

from rome_core.facts.datasets import load_facts
from rome_core.facts.namesakes import Use, list_first_words, make_namesakes
from rome_core.model.tokens import Prompt


def subjects(subject: str, n: int, use: Use = "edit") -> list[str]:
    prompts = make_namesakes(Prompt("The {} is", subject), n, use)
    assert all(prompt.template == "The {} is" for prompt in prompts)
    return [prompt.subject for prompt in prompts]


def test_they_end_in_the_same_words_and_begin_in_another() -> None:
    found = subjects("Leonardo da Vinci", 5)

    assert len(set(found)) == 5
    assert all(one.split()[1:] == ["da", "Vinci"] and one.split()[0] != "Leonardo" for one in found)
    assert found == subjects("Leonardo da Vinci", 5)


def test_the_article_does_not_count_as_a_word() -> None:
    assert all(one.endswith(" Wall") and "Great" not in one for one in subjects("The Great Wall", 9))
    assert subjects("The Beatles", 9) == []


@pytest.mark.parametrize("subject", ["Paris", "北京", "the"])
def test_a_subject_of_one_word_has_none(subject: str) -> None:
    assert subjects(subject, 3) == []


def test_what_is_asked_is_never_what_was_held() -> None:
    asked, held = set(list_first_words("measure")), set(list_first_words("edit"))

    assert asked and held and not asked & held
    assert {name.split()[0] for name in subjects("Mickey Mantle", 9, "measure")} <= asked
    everybody = {fact.prompt.subject.split()[0] for fact in load_facts()}
    assert held <= everybody | {fact.prompt.subject.split()[-2] for fact in load_facts() if " " in fact.prompt.subject}


def test_no_more_than_there_are() -> None:
    assert len(subjects("Mickey Mantle", 10_000)) == len([w for w in list_first_words("edit") if w != "Mickey"])
