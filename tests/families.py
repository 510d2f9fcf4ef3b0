"""Tiny configurations of many families: those of the table of layouts, and those whose structure is found."""

from __future__ import annotations

from typing import Any

COMMON = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 4}
EVERY_OTHER = ["sliding_attention", "full_attention"] * 2
OPT = {
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": 16,
}
FALCON = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "ffn_hidden_size": 24}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}

# name: (model_type, changes of its configuration)
FOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 4,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 4,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 6,
        },
    ),
    "opt": ("opt", OPT),
    "bloom": ("bloom", {"n_layer": 4, "hidden_size": 16, "n_head": 4}),
    "falcon-rw": (
        "falcon",
        {
            **FALCON,
            "alibi": True,
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "falcon-7b": ("falcon", {**FALCON, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True}),
    "falcon-40b": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", {"n_layers": 4, "d_model": 16, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 256}),
    "phi": ("phi", SIZES),
    "phi3": ("phi3", {**SIZES, "num_key_value_heads": 2}),
    "stablelm": ("stablelm", {**SIZES, "num_key_value_heads": 2}),
    "stablelm-parallel": ("stablelm", {**SIZES, "num_key_value_heads": 2, "use_parallel_residual": True}),
    "olmo": ("olmo", {**SIZES, "num_key_value_heads": 2}),
    "olmo2": ("olmo2", {**SIZES, "num_key_value_heads": 2}),
    "olmo3": ("olmo3", {**SIZES, "num_key_value_heads": 2, "sliding_window": 6, "layer_types": EVERY_OTHER}),
    "ministral": ("ministral", {**GROUPED, "sliding_window": 6, "layer_types": EVERY_OTHER}),
    "smollm3": ("smollm3", {**SIZES, "num_key_value_heads": 2}),
    "granite": ("granite", {**SIZES, "num_key_value_heads": 2}),
    "granite-multipliers": (
        "granite",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "logits_scaling": 8.0,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.4,
        },
    ),
    "cohere": ("cohere", {**SIZES, "num_key_value_heads": 2, "logit_scale": 0.25}),
    "cohere2": (
        "cohere2",
        {**GROUPED, "logit_scale": 0.25, "sliding_window": 6, "layer_types": EVERY_OTHER},
    ),
    "starcoder2": ("starcoder2", {**SIZES, "num_key_value_heads": 2}),
    "starcoder": ("gpt_bigcode", {"n_layer": 4, "n_embd": 16, "n_head": 4, "n_inner": 24, "n_positions": 256}),
    "glm": ("glm", GROUPED),
    "glm4": ("glm4", GROUPED),
    "exaone4": ("exaone4", {**GROUPED, "sliding_window": 6, "layer_types": EVERY_OTHER}),
    "nemotron": ("nemotron", {**GROUPED}),
    "helium": ("helium", GROUPED),
    "ernie4_5": ("ernie4_5", GROUPED),
    "seed_oss": ("seed_oss", GROUPED),
    "apertus": ("apertus", {**SIZES, "num_key_value_heads": 2}),
    "codegen": (
        "codegen",
        {"n_layer": 4, "n_embd": 16, "n_head": 4, "n_inner": 24, "n_positions": 256, "rotary_dim": 4},
    ),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", GROUPED),
    "arcee": ("arcee", GROUPED),
    "xglm": (
        "xglm",
        {"num_layers": 4, "d_model": 16, "ffn_dim": 24, "attention_heads": 4, "max_position_embeddings": 256},
    ),
    "biogpt": ("biogpt", SIZES),
    "vaultgemma": ("vaultgemma", {**GROUPED, "sliding_window": 6, "layer_types": EVERY_OTHER}),
    "minicpm3": ("minicpm3", {**SIZES, "num_key_value_heads": 4}),
    "gpt-oss-like": ("qwen3_next", {}),
}
# Mixtures of experts: traced, with router and experts as one MLP, and refused for editing.
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {**EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 8}),
    "olmoe": ("olmoe", {**EXPERTS, "num_experts": 4}),
    "granitemoe": ("granitemoe", {**EXPERTS, "num_local_experts": 4}),
}
del FOUND["gpt-oss-like"]
