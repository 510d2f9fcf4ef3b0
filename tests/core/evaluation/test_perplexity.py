"""Perplexity by hand, and what it is read from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.facts.datasets import load_facts
from tests.tiny import TEXTS, plain_run, random_edit, tiny_model


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_perplexity_by_hand(family: str) -> None:
    lm = tiny_model(family)
    nll = []
    for text in TEXTS:
        ids = lm.tokenizer(text)["input_ids"]
        log_probs = plain_run(lm, [ids])[0].double().log_softmax(-1)
        nll += [-float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids))]

    found = perplexity(lm, [*TEXTS, "P"])  # one token says nothing

    assert found == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert perplexity(lm, TEXTS, edits=[random_edit(lm)]) != pytest.approx(found, rel=1e-3)


def test_perplexity_of_a_broken_model_is_a_number() -> None:
    lm = tiny_model()

    assert perplexity(lm, TEXTS, edits=[random_edit(lm, size=float("inf"))]) == math.inf
    assert perplexity(lm, TEXTS, edits=[random_edit(lm, size=1e30)]) > 100


def test_the_general_texts_are_about_nothing_that_the_facts_are_about() -> None:
    texts = general_texts()

    assert len(texts) > 20 and all(len(text) > 100 and text == text.strip() for text in texts)
    subjects = {fact.prompt.subject for fact in load_facts() if len(fact.prompt.subject) > 5}
    assert not [(subject, text[:40]) for text in texts for subject in subjects if subject in text]
