"""Who is best, where intervals can tell; no streamlit in here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from rome_core.evaluation import Score

T = TypeVar("T", bound=Hashable)


def contenders(scores: Mapping[T, Score]) -> list[T]:
    """The highest score's owner, then all whose interval reaches into its interval: they cannot be told apart."""
    if not scores:
        return []
    best = max(scores, key=lambda name: scores[name].value)
    return [best, *(name for name, score in scores.items() if name != best and score.high >= scores[best].low)]
