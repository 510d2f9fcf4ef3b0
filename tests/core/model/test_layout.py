"""The table of architectures, against real modules of every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rome_core.errors import ModelError
from rome_core.model.layout import (
    CACHE_NAMES,
    LAYOUTS,
    cache_argument,
    is_recomputed,
    is_transposed,
)
from tests.tiny import FAMILIES, tiny_model

DOWN = {"gpt2": "mlp.c_proj", "gptj": "mlp.fc_out", "gpt_neox": "mlp.dense_4h_to_h"}  # all others: mlp.down_proj


@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_of_the_row_exists(family: str) -> None:
    lm = tiny_model(family, layers=3)
    layout = LAYOUTS[family]

    assert lm.layout is layout
    assert lm.module(layout.embed) is lm.hf.get_input_embeddings()
    assert isinstance(lm.module(layout.blocks), nn.ModuleList) and len(lm.module(layout.blocks)) == 3
    assert "norm" in type(lm.module(layout.norm)).__name__.lower()
    for layer in range(3):
        assert lm.module(layout.block(layer)) is lm.blocks[layer]
        assert layout.module("mlp_out", layer).endswith(f".{layer}.{DOWN.get(family, 'mlp.down_proj')}")
        assert isinstance(lm.module(layout.module("attn_out", layer)), nn.Module)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_key_is_what_goes_into_w_and_the_value_what_comes_out(family: str) -> None:
    """W in d_model × d_mlp orientation whatever the module keeps: module(key) = W key + bias."""
    lm = tiny_model(family)
    key = torch.randn(24)
    module = lm.module(lm.layout.module("mlp_out", 1))
    bias = 0 if module.bias is None else module.bias

    W = lm.weight(1)

    assert W.shape == (lm.d_model, lm.d_mlp) == (16, 24)
    torch.testing.assert_close(module(key), W @ key + bias)
    assert W.data_ptr() == module.weight.data_ptr()  # a view, no copy


def test_the_text_half_of_a_model_that_reads_images() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {
        "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    hf = AutoModelForCausalLM.from_config(config)
    layout = LAYOUTS["gemma3"]

    assert config.model_type in LAYOUTS
    assert hf.get_submodule(layout.embed) is hf.get_input_embeddings()
    assert len(hf.get_submodule(layout.blocks)) == 2
    assert hf.get_submodule(layout.module("mlp_out", 1)).weight.shape == (16, 24)
    assert hf.get_submodule(layout.module("attn_out", 1)).weight.shape == (16, 16)
    assert hf.get_submodule(layout.norm).weight.shape == (16,)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_goes_under_the_name_that_the_installed_release_gives_it(family: str) -> None:
    lm = tiny_model(family)

    assert cache_argument(lm.blocks[0]) in CACHE_NAMES and cache_argument(lm.hf.base_model) in CACHE_NAMES


def test_a_module_without_a_cache() -> None:
    with pytest.raises(ModelError, match="Linear takes no key-value cache under a known name"):
        cache_argument(nn.Linear(2, 2))


@pytest.mark.parametrize(("module", "expected"), [(nn.Linear(3, 2), False), (Conv1D(2, 3), True)])
def test_only_gpt2s_own_module_is_transposed(module: nn.Module, expected: bool) -> None:
    assert is_transposed(module) is expected
    x = torch.randn(3)
    matrix = module.weight.T if expected else module.weight
    torch.testing.assert_close(module(x), matrix @ x + module.bias)


@pytest.mark.parametrize("module", [nn.Conv1d(3, 2, 1), nn.Embedding(3, 2), nn.LayerNorm(2), nn.ReLU()])
def test_other_modules_are_no_matrices(module: nn.Module) -> None:
    with pytest.raises(ModelError, match=rf"of the kind torch.nn.*{type(module).__name__} holds no plain matrix"):
        is_transposed(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_taken_for_one_that_is_made_anew(family: str) -> None:
    assert not [name for name, _ in tiny_model(family).hf.named_parameters() if is_recomputed(name)]
    for name in ("h.0.attn.bias", "gpt_neox.layers.1.attention.masked_bias", "a.rotary_emb.inv_freq", "position_ids"):
        assert is_recomputed(name)
