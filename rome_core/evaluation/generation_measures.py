"""What generated texts show: fluency (GE), and consistency with reference texts (RS) where the user has some."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rome_core.errors import DataError

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and single punctuation marks, as the papers' tokenizer for English splits plain text."""
    return _WORD.findall(text)


def ngram_entropy(text: str) -> float:
    """GE: (⅔·H₂ + 4/3·H₃)/2, with H₂ and H₃ the entropies in bits of the bi- and trigrams (Zhang et al. 2018, as
    weighted by Meng et al. 2022, who print it times 100). Repetition makes it small; no trigram at all is 0."""
    tokens = words(text)
    return (2 / 3 * _entropy(tokens, 2) + 4 / 3 * _entropy(tokens, 3)) / 2


def _entropy(tokens: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) + 0.0 if total else 0.0


class References:
    """Texts about things that share an object, by object: what RS compares generations with. Frequencies of words
    are taken from these texts themselves, each one being a document."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self.texts = {name: " ".join(about) for name, about in texts.items() if about}
        documents = [set(_terms(text)) for about in texts.values() for text in about]
        frequency = Counter(term for document in documents for term in document)
        self._idf = {term: math.log((1 + len(documents)) / (1 + n)) + 1 for term, n in frequency.items()}

    def consistency(self, generated: Sequence[str], target: str) -> float | None:
        """RS: cosine between the TF-IDF vectors of all generations and of all texts about the object; None where the
        file has none. Words that the references never use do not count."""
        about = self.texts.get(target.strip())
        return None if about is None else _cosine(self._vector(" ".join(generated)), self._vector(about))

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(term for term in _terms(text) if term in self._idf)
        return {term: n * self._idf[term] for term, n in counts.items()}


def load_references(path: str | Path) -> References:
    """A JSON object from each new object to a list of texts: {"Rome": ["The Colosseum stands in Rome …"]}."""
    hint = 'Give a JSON file like {"Rome": ["A text about something in Rome.", "Another one."]}.'
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"The reference texts '{path}' cannot be read.", str(error), hint) from None
    lists = isinstance(data, dict) and all(isinstance(about, list) for about in data.values())
    if not lists or not all(isinstance(text, str) for about in data.values() for text in about):
        raise DataError(f"'{path}' is no table from objects to lists of texts.", "", hint)
    return References(data)


def _terms(text: str) -> list[str]:
    return [word.lower() for word in words(text) if word[0].isalnum()]


def _cosine(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(value * b.get(term, 0.0) for term, value in a.items()) / norms if norms else 0.0
