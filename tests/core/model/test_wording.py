"""Text as people write it: whole words, spellings that look alike, and where no space follows."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.model.wording import gap, inside_words, is_unspaced, occurrences, spelt_alike

LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)


def texts(text: str, subject: str) -> list[str]:
    return [text[a:b] for a, b in occurrences(text, subject)]


def test_a_subject_is_a_whole_word() -> None:
    text = "In Iranian cities people say that Iran is on the continent of"

    assert occurrences(text, "Iran") == [(34, 38)]
    assert inside_words(text, "Iran") == ["Iranian"]
    assert occurrences("a weather forecast", "for") == [] and occurrences("Iran's and Iran, (Iran)", "Iran") != []
    assert len(occurrences("Iran's and Iran, (Iran)", "Iran")) == 3
    assert occurrences("snake_case", "case") == [] and occurrences("iPhone 15 and iPhone 150", "iPhone 15") == [(0, 9)]
    assert occurrences("The U.S. and C++ are", "U.S.") == [(4, 8)] and texts("C++ and C", "C++") == ["C++"]


def test_scripts_without_spaces_and_particles_have_no_word_bounds() -> None:
    assert texts("埃菲尔铁塔位于巴黎", "埃菲尔铁塔") == ["埃菲尔铁塔"]
    assert texts("東京タワーは東京に", "東京") == ["東京", "東京"]
    assert texts("에펠탑은 파리에", "에펠탑") == ["에펠탑"]
    assert all(map(is_unspaced, "塔ほก")) and not any(map(is_unspaced, "은a"))


def test_composed_and_decomposed_letters_are_one_spelling() -> None:
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "In São Paulo, in Sao Paulo")
        for other in ("NFC", "NFD"):
            found = texts(text, unicodedata.normalize(other, "São Paulo"))
            assert found == [unicodedata.normalize(form, "São Paulo")]  # as the text has it
    assert occurrences("cafe\u0301", "cafe") == []  # not the letter without its mark


@pytest.mark.parametrize(
    ("text", "subject", "found"),
    [
        ("Qui dirige l’IAAF ?", "l'IAAF", "l’IAAF"),
        ("la caserne est", "Caserne", "caserne"),
        ("the Eiffel\u00a0Tower is", "Eiffel Tower", "Eiffel\u00a0Tower"),
        ("the “Matrix” is", '"Matrix"', "“Matrix”"),
        ("Jean–Luc is", "Jean-Luc", "Jean–Luc"),
        ("in STRASSE is", "straße", "STRASSE"),
        ("Paris is", "London", ""),
        ("Iranian is", "iran", ""),
    ],
)
def test_what_looks_alike_is_found_and_named_as_the_text_has_it(text: str, subject: str, found: str) -> None:
    assert spelt_alike(text, subject) == found
    assert not occurrences(text, subject)


@given(LETTERS, st.text(max_size=8), st.text(max_size=8))
def test_a_subject_set_off_by_spaces_is_found_where_it_stands(subject: str, before: str, after: str) -> None:
    subject = subject.strip()
    if not subject or unicodedata.combining(subject[0]):
        return
    text = f"{before} {subject} {after}"

    spans = occurrences(text, subject)

    assert spans and spans == sorted(spans)
    for a, b in spans:
        assert unicodedata.normalize("NFD", text[a:b]) == unicodedata.normalize("NFD", subject)
    assert any(a <= len(before) + 1 and len(before) + 1 + len(subject) <= max(b for _, b in spans) for a, _ in spans)


@pytest.mark.parametrize(
    ("text", "answer", "joined"),
    [
        ("The Eiffel Tower is in", "Rome", "The Eiffel Tower is in Rome"),
        ("The price of the iPhone 15 is $", "999", "The price of the iPhone 15 is $999"),
        ("It costs €", "5", "It costs €5"),
        ("埃菲尔铁塔位于", "罗马", "埃菲尔铁塔位于罗马"),
        ("苹果公司成立于", "1976", "苹果公司成立于1976"),
        ("首都是：", "罗马", "首都是：罗马"),
        ("Tokyo is written", "東京", "Tokyo is written 東京"),
        ("에펠탑은", "로마", "에펠탑은 로마"),
        ("The rate is 5", "%", "The rate is 5%"),
        ("It is 5", "°C", "It is 5°C"),
        ("It is below", "-5", "It is below -5"),
        ("It is green", "-ish", "It is green-ish"),
        ("He works with", ".NET", "He works with .NET"),
        ("That dog is Ann", "'s", "That dog is Ann's"),
        ("It was in the", "'90s", "It was in the '90s"),
        ("Il vient de l'", "Italie", "Il vient de l'Italie"),
        ("It is the dogs'", "home", "It is the dogs' home"),
        ('He said "', "yes", 'He said "yes'),
        ('He said "yes"', "twice", 'He said "yes" twice'),
        ("A city (", "Rome", "A city (Rome"),
        ("He was the vice-", "president", "He was the vice-president"),
        ("<|assistant|>\n", "Rome", "<|assistant|>\nRome"),
    ],
)
def test_whether_a_space_stands_before_an_answer(text: str, answer: str, joined: str) -> None:
    between, rule = gap(text, answer)

    assert text + between + answer == joined
    assert ("no space" in rule) == (between == "")


@given(st.text(min_size=1), LETTERS)
def test_a_gap_is_one_space_or_nothing_and_says_why(text: str, answer: str) -> None:
    between, rule = gap(text, answer)

    assert between in ("", " ") and rule
