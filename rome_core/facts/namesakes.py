"""Subjects that do not exist but end in the same words: whether an edit knows its subject, or only its last word."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

from rome_core.facts.datasets import load_facts
from rome_core.model.tokens import Prompt

ARTICLES = frozenset({"the", "a", "an"})
Use = Literal["edit", "measure"]


@cache
def list_first_words(use: Use) -> tuple[str, ...]:
    """First words of the project's subjects of several words: one half for edits to hold, the other to measure edits
    on, so that none is measured on the names it has seen."""
    words = sorted(
        {words[0] for fact in load_facts() if len(words := _words(fact.prompt.subject)) > 1 and words[0].isalpha()}
    )
    return tuple(words[use == "measure" :: 2])


def _words(subject: str) -> list[str]:
    words = subject.split()
    return words[1:] if words and words[0].lower() in ARTICLES else words


def make_namesakes(prompt: Prompt, n: int, use: Use = "edit") -> list[Prompt]:
    """The prompt of up to n other subjects that end in the same words: "Novak Mantle" and "Claude Mantle" for "Mickey
    Mantle". Evenly chosen, always the same ones. A subject of one word has none."""
    words = _words(prompt.subject)
    if len(words) < 2:
        return []
    others = [word for word in list_first_words(use) if word != words[0]]
    return [
        replace(prompt, subject=" ".join([others[i * len(others) // n], *words[1:]]))
        for i in range(min(n, len(others)))
    ]
