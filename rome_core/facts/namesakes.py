"""Subjects that do not exist but end in the same words: whether an edit knows its subject, or only its last word."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from rome_core.facts.datasets import load_facts
from rome_core.model.tokens import Prompt

ARTICLES = frozenset({"the", "a", "an"})


@cache
def first_words(asked: bool) -> tuple[str, ...]:
    """First words of the project's subjects of several words. asked: one half is for measuring, the other to be held by
    edits, so that no edit is measured on the names it has seen."""
    words = sorted(
        {words[0] for fact in load_facts() if len(words := _words(fact.prompt.subject)) > 1 and words[0].isalpha()}
    )
    return tuple(words[asked::2])


def _words(subject: str) -> list[str]:
    words = subject.split()
    return words[1:] if words and words[0].lower() in ARTICLES else words


def namesakes(prompt: Prompt, n: int, *, asked: bool = False) -> list[Prompt]:
    """The prompt of up to n other subjects that end in the same words: "Novak Mantle" and "Claude Mantle" for "Mickey
    Mantle". Evenly chosen, always the same ones. A subject of one word has none."""
    words = _words(prompt.subject)
    if len(words) < 2:
        return []
    others = [word for word in first_words(asked) if word != words[0]]
    return [
        replace(prompt, subject=" ".join([others[i * len(others) // n], *words[1:]]))
        for i in range(min(n, len(others)))
    ]
