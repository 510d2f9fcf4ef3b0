"""Many edits diagnosed: each as by itself, failures in place, and lists read from lines, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest

from rome_core.diagnosis.many import diagnose_many, diagnose_sequence, requests_from
from rome_core.diagnosis.verdict import diagnose, size_of
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.methods.rome import RRome
from rome_core.editing.second_moment import Moment
from rome_core.errors import DataError
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import REQUEST, random_edit, random_moment, tiny_model

T = TypeVar("T")
OTHER = EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")
TOO_LONG = EditRequest(Prompt("{} " + "a b " * 150, "Paris"), "Italy")
CONFIG = RRome(layer=1, clamp=2.0, steps=2, prefixes=("", "x. "))


@pytest.fixture(autouse=True)
def few_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rome_core.diagnosis.ordinary_facts.REFERENCE_FACTS", 4)


def moments(lm: LanguageModel) -> dict[int, Moment]:
    return {1: random_moment(lm)}


def test_each_of_many_is_diagnosed_as_by_itself_and_one_that_fails_says_why() -> None:
    lm, labels = tiny_model(), []

    def track(items: Iterable[T], label: str, total: int, /) -> Iterator[T]:
        labels.append((label, total))
        return iter(items)

    one, failed, two = diagnose_many(lm, [REQUEST, TOO_LONG, OTHER], CONFIG, moments=moments(lm), track=track)

    assert ("Diagnosing", 3) in labels
    assert failed.verdict is failed.edit is None and "can read 256" in failed.error
    for found, request in ((one, REQUEST), (two, OTHER)):
        edit = solve(lm, [request], CONFIG, moments=moments(lm))
        expected = diagnose(lm, edit, moments(lm))
        assert found.request == request and found.edit is not None and found.edit.id == edit.id
        assert found.diagnosis is not None and found.diagnosis.k0_kstar == pytest.approx(expected.k0_kstar)
        assert (found.verdict, found.relative_F) == (expected.verdict, pytest.approx(expected.relative_F))


def test_prefixes_are_sampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, calls = tiny_model(), []

    def sampled(*args: object) -> tuple[str, ...]:
        calls.append(args)
        return ("", "So. ")

    monkeypatch.setattr("rome_core.editing.methods.rome.sampled_prefixes", sampled)
    found = list(diagnose_many(lm, [REQUEST, OTHER], replace(CONFIG, prefixes=None), moments=moments(lm)))

    assert len(calls) == 1
    assert [one.edit.config.prefixes for one in found if one.edit] == [("", "So. ")] * 2


def test_a_sequence_of_solved_edits_of_any_method() -> None:
    lm = tiny_model()
    rome = solve(lm, [REQUEST], METHODS["rome"](layer=1, clamp=2.0, steps=2, prefixes=("", "x. ")), moments=moments(lm))
    many = replace(random_edit(lm, 2), method="memit", extras={})

    by_key, by_size, broken = diagnose_sequence(lm, [rome, many, replace(rome, k_0=rome.k_0 * 0)], moments=moments(lm))

    assert by_key.diagnosis is not None and by_key.diagnosis.method == "rome"
    assert by_size.diagnosis is None and by_size.verdict == size_of(lm, many).verdict
    assert by_size.relative_F == pytest.approx(size_of(lm, many).relative_F)
    assert broken.verdict is None and "zero or not finite" in broken.error


EXPECTED = [EditRequest(REQUEST.prompt, "Rome", "Paris"), OTHER]


@pytest.mark.parametrize(
    "text",
    [
        "The {} is located in the city of | Eiffel Tower | Rome | Paris\n\n{} is the capital of|Paris|Italy",
        "{} is the capital of | Paris | Italy",
        "The Eiffel Tower is located in the city of | Eiffel Tower | Rome | Paris\nParis is the capital of|Paris|Italy",
        "prompt,subject,target_new,target_true\n"
        'The {} is located in the city of,Eiffel Tower,Rome,Paris\n"{} is the capital of",Paris,Italy,',
        "\ufeffsubject,target_new,prompt\nParis,Italy,{} is the capital of",
    ],
)
def test_lines_and_csv_are_read(text: str) -> None:
    found, problems = requests_from(text)

    assert found == EXPECTED[-len(found) :] and problems == []


def test_json_is_read_as_everywhere() -> None:
    rewrite = {
        "prompt": "{} is the capital of",
        "subject": "Paris",
        "target_new": {"str": "Italy"},
        "target_true": {"str": "France"},
    }
    record = {"case_id": 3, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    text = json.dumps([record, {"case_id": 4}])

    found, problems = requests_from(text, "facts.json")

    assert found == [replace(OTHER, target_true="France")]
    assert "facts.json, record 2" in str(problems[0])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  \n", r"'the list' is empty\. Write one edit a line"),
        ("Paris | Italy", r"the list, line 1: 2 of the 3 parts are there\. Write prompt with"),
        ("France is old | Paris | Italy", r"the list, line 1: 'Paris' is not in the prompt"),
        ("{} is | Paris | ", r"the list, line 1: The new object is empty"),
        ("subject,target\nParis,Italy", r"has no column 'prompt'\. Its columns are subject, target"),
        ("subject,prompt,target_new", r"'the list' holds no edits"),
        ("[1", r"'the list' is not JSON"),
    ],
)
def test_each_wrong_list_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        requests_from(text)


def test_one_wrong_line_does_not_stop_the_others() -> None:
    found, problems = requests_from("{} is the capital of | Paris | Italy\nnothing")

    assert found == [OTHER]
    assert [str(p).split(":")[0] for p in problems] == ["the list, line 2"]
