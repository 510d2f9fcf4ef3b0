"""Many edits diagnosed: each as by itself, failures in place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rome_core.diagnosis.many import diagnose_many, diagnose_sequence
from rome_core.diagnosis.verdict import diagnose, size_of
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.methods.rome import RRome
from rome_core.editing.second_moment import Moment
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import REQUEST, random_edit, watch

pytestmark = pytest.mark.usefixtures("few_facts")
OTHER = EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")
TOO_LONG = EditRequest(Prompt("{} " + "a b " * 150, "Paris"), "Italy")
CONFIG = RRome(layer=1, clamp=2.0, steps=2, prefixes=("", "x. "))


def test_each_of_many_is_diagnosed_as_by_itself_and_one_that_fails_says_why(
    lm: LanguageModel, moments: dict[int, Moment]
) -> None:
    labels: list[tuple[str, int]] = []

    one, failed, two = diagnose_many(lm, [REQUEST, TOO_LONG, OTHER], CONFIG, moments=moments, track=watch(labels))

    assert ("Diagnosing", 3) in labels
    assert failed.verdict is failed.edit is None and "can read 256" in failed.error
    for found, request in ((one, REQUEST), (two, OTHER)):
        edit = solve(lm, [request], CONFIG, moments=moments)
        expected = diagnose(lm, edit, moments)
        assert found.request == request and found.edit is not None and found.edit.id == edit.id
        assert found.diagnosis is not None and found.diagnosis.k0_kstar == pytest.approx(expected.k0_kstar)
        assert (found.verdict, found.relative_F) == (expected.verdict, pytest.approx(expected.relative_F))


def test_prefixes_are_sampled_once(
    lm: LanguageModel, moments: dict[int, Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def sampled(*args: object) -> tuple[str, ...]:
        calls.append(args)
        return ("", "So. ")

    monkeypatch.setattr("rome_core.editing.value_search.sampled_prefixes", sampled)
    found = list(diagnose_many(lm, [REQUEST, OTHER], replace(CONFIG, prefixes=None), moments=moments))

    assert len(calls) == 1
    assert [one.edit.config.prefixes for one in found if one.edit] == [("", "So. ")] * 2


def test_a_sequence_of_solved_edits_of_any_method(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    rome = solve(lm, [REQUEST], METHODS["rome"](layer=1, clamp=2.0, steps=2, prefixes=("", "x. ")), moments=moments)
    many = replace(random_edit(lm, 2), config=METHODS["memit"](layer=2), keys=None)

    by_key, by_size, broken = diagnose_sequence(
        lm, [rome, many, replace(rome, keys=replace(rome.known_keys, k_0=rome.k_0 * 0))], moments=moments
    )

    assert by_key.diagnosis is not None and by_key.diagnosis.method == "rome"
    assert by_size.diagnosis is None and by_size.verdict == size_of(lm, many).verdict
    assert by_size.relative_F == pytest.approx(size_of(lm, many).relative_F)
    assert broken.verdict is None and "zero or not finite" in broken.error
