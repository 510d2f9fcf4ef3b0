"""The ordinary facts that an edit is compared with, again from the Hugging Face model's own states."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from rome_core.diagnosis.ordinary_facts import Reference, reference
from rome_core.facts.datasets import load_facts
from tests.tiny import plain_key, random_moment, tiny_model

pytestmark = pytest.mark.usefixtures("few_facts")
RIDGE, PREFIXES = 1e-3, ("", "x. ", "So. ")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_quantities_of_ordinary_facts_by_hand(family: str) -> None:
    lm = tiny_model(family)
    moment = random_moment(lm, 1)
    inverse = np.linalg.inv(moment.C.numpy() + RIDGE * np.trace(moment.C.numpy()) / 24 * np.eye(24))
    prompts = [fact.prompt for fact in load_facts() if not fact.prompt.template.startswith("{}")]
    chosen = prompts[:: len(prompts) // 4][:4]

    found = reference(lm, moment, RIDGE, PREFIXES)

    for index, prompt in enumerate(chosen):
        keys = [plain_key(lm, prompt, 1, prefix) for prefix in PREFIXES]
        k_0, k_star = keys[0].double().numpy(), torch.stack(keys).double().numpy().mean(0)
        gram = np.stack([k_0, k_star]) @ inverse @ np.stack([k_0, k_star]).T
        assert found.k0_k0[index] == pytest.approx(gram[0, 0], rel=1e-3)
        assert found.k0_kstar[index] == pytest.approx(gram[0, 1], rel=1e-3)
        assert found.kstar_kstar[index] == pytest.approx(gram[1, 1], rel=1e-3)
        assert found.cosine_whitened[index] == pytest.approx(gram[0, 1] / np.sqrt(gram[0, 0] * gram[1, 1]), rel=1e-3)
        plain = k_0 @ k_star / np.linalg.norm(k_0) / np.linalg.norm(k_star)
        assert found.cosine[index] == pytest.approx(plain, rel=1e-3)


def test_the_reference_of_another_c_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a C that is gone and a new one have one address, as they often do."""
    lm = tiny_model()
    monkeypatch.setattr(sys.modules["rome_core.diagnosis.ordinary_facts"], "id", lambda moment: 1, raising=False)

    first = reference(lm, random_moment(lm, 1), RIDGE, PREFIXES)
    other = reference(lm, random_moment(lm, 1, seed=1), RIDGE, PREFIXES)

    assert first.k0_kstar != pytest.approx(other.k0_kstar, rel=1e-3)
    assert reference(lm, random_moment(lm, 1), RIDGE, PREFIXES).k0_kstar == pytest.approx(first.k0_kstar)


def test_the_share_of_ordinary_facts_below_a_value() -> None:
    ordinary = Reference(k0_kstar=(1.0, 2.0, 3.0, 4.0))

    assert [ordinary.below("k0_kstar", value) for value in (0.5, 2.5, 4.0, 9.0)] == [0.0, 0.5, 0.75, 1.0]
    assert math.isnan(ordinary.below("k0_k0", 1.0))
