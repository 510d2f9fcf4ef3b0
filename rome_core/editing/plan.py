"""What a model needs, on paper: bytes from its configuration alone, before anything of it is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from rome_core.editing.second_moment import DEFAULT_TOKENS, ENOUGH
from rome_core.model.scoring import BATCH_TOKENS


@dataclass(frozen=True)
class Plan:
    """Bytes, beside what the process has anyway.

    weights: of the loaded model. moment: collecting C of one layer (`second_moment.memory_needed`). factor: C's
    Cholesky factor beside C. tokens: how many C is made from.
    """

    n_parameters: int
    d_mlp: int
    weights: int
    moment: int
    factor: int
    tokens: int

    @property
    def edit(self) -> int:
        """C and its factor, which every method that uses C holds while it solves. The search comes on top."""
        return 2 * self.factor


def plan(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Plan:
    """Parameters are counted on a model without storage, so ties, biases and norms are as the library has them."""
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    text = config.get_text_config()
    given = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
    n, d_mlp = sum(p.numel() for p in hf.parameters()), int(given or 4 * text.hidden_size)
    one, keys = 8 * d_mlp**2, BATCH_TOKENS * d_mlp
    moment = one + (2 * dtype.itemsize + 8) * keys
    return Plan(n, d_mlp, n * dtype.itemsize, moment, one, max(DEFAULT_TOKENS, ENOUGH * d_mlp))
