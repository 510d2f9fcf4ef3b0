"""Small random models of every family, made in memory: unit tests load no pretrained model."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rome_core.layout import LAYOUTS
from rome_core.model import LanguageModel, from_pretrained_parts

FAMILIES = tuple(family for family in LAYOUTS if family != "gemma3")  # "gemma3" also reads images: a test of its own

TEXTS = (
    "The Eiffel Tower is located in the city of Paris. The Colosseum is located in the city of Rome.",
    "Paris is the capital of France. Lyon is a city in the country of France, and Milan in the country of Italy.",
    "The home of the green dragon is far away. São Paulo and Zürich are cities; Köln, too. 東京 is the capital of Japan.",
)


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def tiny_model(
    family: str = "llama", *, layers: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> LanguageModel:
    """A random decoder with all the family's peculiarities: grouped heads, sliding windows, soft caps, post-norms."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_sizes(family, layers), **changes})
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() > 1:  # larger than the usual 0.02, so that every layer matters
                parameter.normal_(0.0, 1.0 if "embed" in name or "wte" in name else 0.25)
            elif "bias" in name:
                parameter.normal_(0.0, 0.1)
    return from_pretrained_parts(hf, tiny_tokenizer(), f"tiny-{family}")


def _sizes(family: str, layers: int) -> dict[str, Any]:
    common = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family in ("gpt2", "gptj"):
        sizes: dict[str, Any] = {"n_layer": layers, "n_embd": 16, "n_head": 4, "n_inner": 24, "n_positions": 256}
        return {**common, **sizes, **({"rotary_dim": 4} if family == "gptj" else {})}
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    if family == "gpt_neox":
        return {**common, **sizes}
    sizes |= {"num_key_value_heads": 2, "head_dim": 4}
    if family == "mistral":
        sizes["sliding_window"] = 6
    if family in ("gemma2", "gemma3_text"):
        kinds = ["sliding_attention", "full_attention"]
        sizes |= {"sliding_window": 6, "layer_types": [kinds[i % 2] for i in range(layers)]}
    return {**common, **sizes}
