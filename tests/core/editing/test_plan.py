"""What is planned from a configuration, against the loaded model."""

from __future__ import annotations

import pytest
import torch

from rome_core.editing.plan import plan
from rome_core.editing.second_moment import default_tokens, factor_memory, memory_needed
from tests.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_is_what_the_loaded_model_needs(family: str, dtype: torch.dtype) -> None:
    lm = tiny_model(family, dtype=dtype)

    found = plan(lm.hf.config, dtype)

    assert (found.n_parameters, found.d_mlp) == (lm.n_parameters, lm.d_mlp)
    assert found.weights == sum(p.numel() * p.element_size() for p in lm.hf.parameters())
    assert (found.moment, found.factor) == (memory_needed(lm, [0]), factor_memory(lm))
    assert found.tokens == default_tokens(lm) and found.edit == 2 * found.factor
