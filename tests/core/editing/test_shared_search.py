"""Sharing δ: what is made of another method's search is what the method's own search makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rome_core import METHODS, EditError, EditRequest, LanguageModel, Moment, Prompt, solve
from rome_core.editing.method import EditContext, FoundValue, MethodConfig
from rome_core.editing.methods.emmet import Emmet
from rome_core.editing.shared_search import policies, repolicy, reuse
from tests.tiny import REQUEST, random_edit

QUICK = {"layer": 1, "prefixes": ("", "x. ", "So it is. "), "steps": 4, "clamp": 1.0}
SHARING = [*policies(), Emmet.name]


def search(lm: LanguageModel, request: EditRequest, config: MethodConfig) -> FoundValue:
    return config.search(EditContext(lm), request)


@pytest.mark.parametrize("name", SHARING)
def test_a_shared_delta_gives_the_edit_of_a_search_of_its_own(
    lm: LanguageModel, moments: dict[int, Moment], name: str
) -> None:
    donor = solve(lm, [REQUEST], METHODS["rome"](**QUICK), moments=moments)
    config = METHODS[name](**QUICK)

    shared, own = reuse(lm, donor, config, moments), solve(lm, [REQUEST], config, moments=moments)

    assert shared.method == own.method == name
    assert shared.config == own.config
    torch.testing.assert_close(shared.deltas[0].matrix(), own.deltas[0].matrix(), rtol=1e-5, atol=1e-7)
    for field in ("k_star", "v_star", "k_0", "v_0"):
        torch.testing.assert_close(getattr(shared, field), getattr(own, field), rtol=1e-5, atol=1e-6)
    assert shared.history == own.history and shared.corpus == own.corpus
    if config.single_key:
        other = repolicy(lm, donor, name, moments)
        assert (other.id, other.config) == (own.id, own.config)


def test_methods_over_several_layers_share_theirs(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    below = random_edit(lm, 0, size=0.02)
    settings = {**QUICK, "layer": 2, "span": 2}
    donor = solve(lm, [REQUEST], METHODS["memit"](**settings), moments=moments, edits=[below])
    config = METHODS["alphaedit"](**settings, energy=0.5)

    shared = reuse(lm, donor, config, moments, [below])
    own = solve(lm, [REQUEST], config, moments=moments, edits=[below])

    assert donor.config.shares_search(own.config) and shared.config == own.config and shared.on == own.on
    for one, two in zip(shared.deltas, own.deltas, strict=True):
        torch.testing.assert_close(one.matrix(), two.matrix(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["emmet", "memit"])
def test_values_searched_one_by_one_make_the_edit_of_the_batch(
    lm: LanguageModel, moments: dict[int, Moment], name: str
) -> None:
    config = METHODS[name](**QUICK, **({"span": 2} if name == "memit" else {}))
    requests = [REQUEST, EditRequest(Prompt("The capital of {} is", "France"), "London", "Paris")]

    whole = solve(lm, requests, config, moments=moments)
    values = [search(lm, request, config) for request in requests]
    one_by_one = config.update(EditContext(lm, moments=moments), values)

    assert one_by_one.id == whole.id and one_by_one.requests == whole.requests
    with pytest.raises(EditError, match="makes no edit of values"):
        METHODS["ft"](layer=1).update(EditContext(lm), values)
    with pytest.raises(EditError, match="searches no value"):
        search(lm, REQUEST, METHODS["ft"](layer=1))
    with pytest.raises(EditError, match="prefixes of rome are not chosen"):
        search(lm, REQUEST, METHODS["rome"](**{**QUICK, "prefixes": None}))


def test_only_equal_searches_are_shared() -> None:
    one = METHODS["r-rome"](**QUICK)

    assert all(one.shares_search(METHODS[name](**QUICK)) for name in SHARING)
    assert not one.shares_search(METHODS["h-rome"](**{**QUICK, "clamp": 2.0}))
    assert not one.shares_search(METHODS["h-rome"](**{**QUICK, "prefixes": None}))
    assert not METHODS["emmet"](**QUICK).shares_search(one)  # keeps no keys to lend
    assert not one.shares_search(METHODS["memit"](**QUICK))  # δ at another place


def test_an_edit_without_its_search_is_refused(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    bare = replace(random_edit(lm), keys=None)

    with pytest.raises(EditError, match="An edit by 'r-rome' does not hold the δ of its search"):
        reuse(lm, bare, METHODS["emmet"](**QUICK), moments)
