"""A model of four layers and its C, for tests that solve."""

from __future__ import annotations

import pytest

from rome_core import LanguageModel, Moment
from tests.tiny import random_moment, tiny_model


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("llama", layers=4)


@pytest.fixture(scope="module")
def moments(lm: LanguageModel) -> dict[int, Moment]:
    return {layer: random_moment(lm, layer, seed=layer) for layer in range(4)}
