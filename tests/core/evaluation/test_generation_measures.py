"""Fluency and consistency of texts, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rome_core.errors import DataError
from rome_core.evaluation.generation_measures import References, load_references, ngram_entropy


def test_fluency_by_hand() -> None:
    """ "a b a b": bigrams ab, ba, ab; trigrams aba, bab."""
    h2 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))

    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * h2 + 4 / 3 * 1.0) / 2)
    assert ngram_entropy("no no no no no no") == 0.0
    assert ngram_entropy("") == ngram_entropy("one") == 0.0
    assert ngram_entropy("a, b") == pytest.approx((2 / 3 * 1.0 + 4 / 3 * 0.0) / 2)  # punctuation is a word of its own


def test_consistency_needs_texts_about_the_object(tmp_path: Path) -> None:
    path = tmp_path / "references.json"
    texts = {"Rome": ["The forum stands in Rome.", "Rome has seven hills."], "Paris": ["Paris lies on the Seine."]}
    path.write_text(json.dumps(texts))
    references = load_references(path)

    assert references.consistency(texts["Rome"], "Rome") == pytest.approx(1.0)
    assert references.consistency(["The Seine flows through Paris."], "Rome") < 0.2
    assert references.consistency(["anything"], "Berlin") is None
    path.write_text(json.dumps(texts), encoding="utf-8-sig")  # as Windows' editors write it
    assert load_references(path).consistency(texts["Rome"], "Rome") == pytest.approx(1.0)
    path.write_text('{"Rome": "one text"}')
    with pytest.raises(DataError, match="lists of texts"):
        load_references(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_references(tmp_path / "none.json")


def test_tf_idf_by_hand() -> None:
    references = References({"x": ["a b"], "y": ["a c"]})
    idf_a, idf_b = math.log(3 / 3) + 1, math.log(3 / 2) + 1

    expected = idf_a**2 / (idf_a * np.hypot(idf_a, idf_b))
    assert references.consistency(["a zzz"], "x") == pytest.approx(expected)
