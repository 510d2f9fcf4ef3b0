"""Sharing δ: what is made of another method's search is what the method's own search makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rome_core import METHODS, EditError, LanguageModel, Moment, solve
from rome_core.methods.emmet import Emmet, emmet_of
from rome_core.methods.rome import POLICIES
from rome_core.methods.shared import reuse, same_search
from tests.tiny import REQUEST, random_edit, random_moment, tiny_model

QUICK = {"layer": 1, "prefixes": ("", "x. ", "So it is. "), "steps": 4, "clamp": 1.0}
SHARING = [*(policy.name for policy in POLICIES), Emmet.name]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("llama", layers=4)


@pytest.fixture(scope="module")
def moments(lm: LanguageModel) -> dict[int, Moment]:
    return {1: random_moment(lm, 1)}


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


def test_only_equal_searches_are_shared() -> None:
    one = METHODS["r-rome"](**QUICK)

    assert all(same_search(one, METHODS[name](**QUICK)) for name in SHARING)
    assert not same_search(one, METHODS["h-rome"](**{**QUICK, "clamp": 2.0}))
    assert not same_search(one, METHODS["h-rome"](**{**QUICK, "prefixes": None}))
    assert not same_search(METHODS["memit"](**QUICK), METHODS["memit"](**QUICK))  # δ at another place


def test_an_edit_without_its_search_is_refused(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    bare = replace(random_edit(lm), extras={})

    with pytest.raises(EditError, match="Solve it again"):
        emmet_of(lm, bare, Emmet(**QUICK), moments)
