"""One recommended layer, with its reason and where its C comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pages.shared import recommendation
from pages.shared.recommendation import recommend, tell, tell_moment
from rome_core import Prompt
from rome_core.editing.second_moment import kept_path
from tests.tiny import tiny_model

PARIS, EIFFEL = Prompt("{} is the capital of", "Paris"), Prompt("The {} is in", "Eiffel Tower")


@pytest.mark.usefixtures("presets_of_first_tokens")
def test_it_is_the_presets_and_follows_the_subject() -> None:
    lm = tiny_model()

    assert [recommend(lm, prompt).layer for prompt in (None, EIFFEL, PARIS)] == [2, 2, 0]
    assert recommend(lm).reason == "a test"
    assert tell(lm, 3, EIFFEL).startswith("Recommended: layer 2, because a test. C of layer 3 is not there yet")


def test_a_model_that_nobody_measured_is_told_so() -> None:
    found = recommend(lm := tiny_model())
    assert found.layer == round(lm.n_layers / 6) and "not measured" in found.reason


def test_where_the_second_moment_comes_from_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    monkeypatch.setattr(recommendation, "SHIPPED", tmp_path)
    assert "the first edit there makes it from 20,000 tokens" in tell_moment(lm, 1)

    kept_path(lm, 1).parent.mkdir(parents=True)
    kept_path(lm, 1).touch()
    assert tell_moment(lm, 1) == "C of layer 1 is kept on this machine."
    (tmp_path / kept_path(lm, 1).name).touch()
    assert tell_moment(lm, 1) == "C of layer 1 comes with the project."
