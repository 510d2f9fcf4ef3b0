"""Where a family keeps the modules that tracing and editing need: a table of known good cases.

The layout of any other family is found (`rome_core.model.discovery`). Names are paths inside the Hugging Face module
tree.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from torch.nn import Linear, Module

from rome_core.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Module paths of one family. `attn_out` and `mlp_out` are relative to a block.

    attn_out: the attention's output projection. mlp_out: the MLP's down projection W, whose input is the key
    (in a gated MLP the product act(gate)·up) and whose output is the value. Their outputs are what the module adds
    to the residual stream (Gemma 2 and 3 put a norm in between). mlp_up: the matrices that read the MLP's input.
    mlp_in: the module that is given that input; empty where it is the one around W. flat: whether the MLP is given its
    states as [batch·pos d].
    """

    embed: str
    blocks: str
    attn_out: str
    mlp_out: str
    norm: str
    mlp_up: tuple[str, ...]
    mlp_in: str = ""
    flat: bool = False

    def block(self, layer: int) -> str:
        return f"{self.blocks}.{layer}"

    def module(self, site: str, layer: int) -> str:
        """Path of the module at a site ("attn_out", "mlp_out", "mlp_in") of a layer."""
        if site == "mlp_in" and not self.mlp_in:
            return self.module("mlp_out", layer).rpartition(".")[0]
        return f"{self.block(layer)}.{getattr(self, site)}"

    def mlp_matrices(self, layer: int) -> list[str]:
        """Paths of all matrices of a layer's MLP, the down projection last."""
        return [f"{self.block(layer)}.{name}" for name in (*self.mlp_up, self.mlp_out)]


_GATED = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = Layout("model.embed_tokens", "model.layers", "self_attn.o_proj", "mlp.down_proj", "model.norm", _GATED)

LAYOUTS: dict[str, Layout] = {
    "gpt2": Layout("transformer.wte", "transformer.h", "attn.c_proj", "mlp.c_proj", "transformer.ln_f", ("mlp.c_fc",)),
    "gptj": Layout(
        "transformer.wte", "transformer.h", "attn.out_proj", "mlp.fc_out", "transformer.ln_f", ("mlp.fc_in",)
    ),
    "gpt_neox": Layout(
        "gpt_neox.embed_in",
        "gpt_neox.layers",
        "attention.dense",
        "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
        ("mlp.dense_h_to_4h",),
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    "gemma3": Layout(  # the text half of the models that also read images
        "model.language_model.embed_tokens",
        "model.language_model.layers",
        "self_attn.o_proj",
        "mlp.down_proj",
        "model.language_model.norm",
        _GATED,
    ),
}


# What transformers calls a key-value cache among a module's arguments: since 5.24, before, in the blocks of GPT-NeoX.
CACHE_NAMES = ("cache", "past_key_values", "layer_past")


def cache_argument(module: Module) -> str:
    """The name under which this model, or this block, takes its key-value cache; ModelError where none is known."""
    parameters = inspect.signature(module.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    raise ModelError(
        f"{type(module).__name__} takes no key-value cache under a known name.",
        f"Known names are {', '.join(CACHE_NAMES)}.",
        "Install the release of transformers that pyproject.toml names.",
    )


def is_transposed(module: Module) -> bool:
    """Whether a linear module keeps its matrix as [in out], as GPT-2's Conv1D does, and not as [out in].

    Raises ModelError for any other kind: an adapter around the module, quantised weights, experts.
    """
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    plain = weight is not None and weight.dim() == 2 and weight.is_floating_point() and weight.element_size() > 1
    if not isinstance(module, Linear | Conv1D) or not plain:
        kind = f"{type(module).__module__}.{type(module).__name__}"
        raise ModelError(
            f"A module of the kind {kind} holds no plain matrix.",
            "Keys, values and updates need one.",
            "Load the model without adapters, and with unquantised weights.",
        )
    return isinstance(module, Conv1D)


# What older releases saved beside the weights, and what follows from the configuration: attention masks, the value that
# masks, positions, rotary frequencies.
_RECOMPUTED = re.compile(
    r"(^|\.)(attn|attention)\.(masked_)?bias$|(^|\.)rotary_emb\.inv_freq$|(^|\.)(position_ids|embed_positions)$"
)


def is_recomputed(name: str) -> bool:
    """Whether a tensor of a file is none of the weights, by its name: the model makes it anew as it is built."""
    return _RECOMPUTED.search(name) is not None
