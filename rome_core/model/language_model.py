"""A loaded decoder, ready to be looked into: the Hugging Face model, its tokenizer and where its parts are."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from cachetools import LRUCache
from jaxtyping import Float
from torch import Tensor, nn

from rome_core.errors import ModelError
from rome_core.model.layout import Layout, is_transposed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


V = TypeVar("V")
SUMMED_AT_ONCE = 2**22  # weights, 32 MB in int64


@dataclass(frozen=True)
class Kept(Generic[V]):
    """A kind of result that is kept with a model: its name, and how many of them; the least recently used go first."""

    name: str
    limit: int


@dataclass(frozen=True)
class Source:
    """Where a model can be loaded from again: a folder's whole path, or a Hugging Face id with its commit."""

    place: str
    revision: str | None = None


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """One decoder shared by everybody; its weights are never written.

    fingerprint: a hash of configuration and weights, which everything computed from this model carries.
    source: None of a model that was made in memory.
    logit_scale: what the family multiplies its logits by, before a soft cap.
    cannot: what is not possible on this model (`proof.CAPABILITIES`), each with the reason.
    lock: held for one forward pass at a time, because hooks belong to the modules and not to the caller.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    name: str
    fingerprint: str
    source: Source | None = None
    logit_scale: float = 1.0
    cannot: Mapping[str, str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _kept: dict[str, LRUCache[Hashable, Any]] = field(default_factory=dict, repr=False)
    _kept_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def remember(self, kind: Kept[V], key: Hashable, make: Callable[[], V]) -> V:
        """What `make` gave under this key, made now if it is not kept (any more).

        key: every input that it depends on besides the model, by value. Two threads may make the same thing at once;
        both are given the first one's.
        """
        with self._kept_lock:
            cache = self._kept.setdefault(kind.name, LRUCache(kind.limit))
            if key in cache:
                return cast(V, cache[key])
        value = make()
        with self._kept_lock:
            return cast(V, cache.setdefault(key, value))

    def forget(self, kind: Kept[V]) -> None:
        """Drop what is kept of a kind."""
        with self._kept_lock:
            self._kept.pop(kind.name, None)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return int(self.module(self.layout.embed).weight.shape[1])

    @property
    def d_mlp(self) -> int:
        """Entries of a key; where W is no plain matrix and there are no keys, what the configuration says."""
        try:
            return self.weight(0).shape[1]
        except ModelError:
            config = self.hf.config.get_text_config()
            return int(getattr(config, "intermediate_size", None) or 4 * self.d_model)

    def require(self, capability: str) -> None:
        """Raise ModelError with the reason where something is not possible on this model."""
        if reason := self.cannot.get(capability):
            raise ModelError(f"'{self.name}' cannot be used for this: {reason}.", "", "Choose another model.")

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.hf.parameters())

    @property
    def device(self) -> torch.device:
        """Where token ids go in; with several devices accelerate moves states between the blocks."""
        return self.module(self.layout.embed).weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module(self.layout.embed).weight.dtype

    @property
    def max_positions(self) -> int:
        """Longest text in tokens."""
        return int(getattr(self.hf.config.get_text_config(), "max_position_embeddings", 2048))

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.hf.get_submodule(self.layout.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def module(self, path: str) -> Any:
        return self.hf.get_submodule(path)

    def down_projection(self, layer: int) -> str:
        """Path of the module that holds W of a layer."""
        return self.layout.module("mlp_out", layer)

    def weight(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """W of a layer, in the papers' orientation whatever the module's own is (GPT-2 keeps the transpose)."""
        return self.matrix(self.down_projection(layer))

    def matrix(self, path: str) -> Float[Tensor, "out in"]:
        """The matrix of a linear module by its path: y = W x, whatever the module's own orientation is.

        Raises ModelError where the module is of a kind whose matrix is not known.
        """
        module = self.module(path)
        return module.weight.T if is_transposed(module) else module.weight

    def unembed(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of states that have passed the final norm, with the family's scale and soft cap."""
        head = self.hf.get_output_embeddings()
        assert head is not None
        logits = head(hidden)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        cap = soft_cap(self.hf)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def logits(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits read off the residual stream: final norm, then the head."""
        return self.unembed(self.module(self.layout.norm)(resid))

    @property
    def document_start(self) -> int:
        """The token that stood between the documents of the training text, from which free text is sampled."""
        vocabulary = self.tokenizer.get_vocab()
        for token in ("<|endoftext|>", self.tokenizer.bos_token, self.tokenizer.eos_token):
            if token in vocabulary:
                return int(vocabulary[token])
        raise ModelError(f"The tokenizer of '{self.name}' has no start token.", "", "Give prefixes or texts yourself.")


def soft_cap(hf: PreTrainedModel) -> float | None:
    """What a family's logits are held within, if anything."""
    config = hf.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return None if cap is None else float(cap)


def fingerprint(hf: PreTrainedModel) -> str:
    """A hash of every weight: exact integer sums of the bit patterns, with a sample of the entries for their order.

    A sum of integers does not depend on the number of threads, so the hash is the same on every machine.

    Raises ModelError where a weight holds numbers that are not finite.
    """
    text_config = hf.config.get_text_config()
    settings = {key: _setting(text_config, key) for key in _BEHAVIOUR}
    settings |= {key: value for key in _FURTHER if (value := _setting(text_config, key)) is not None}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    with torch.no_grad():
        for path, parameter in sorted(hf.named_parameters()):
            _check_finite(path, parameter)
            bits = parameter.detach().reshape(-1).view(_BITS[parameter.element_size()])
            sample = bits[:: max(1, bits.numel() // 1024)].cpu().contiguous()
            digest.update(f"{path}{tuple(parameter.shape)}{_sum_of_bits(bits)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _setting(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except (ValueError, AttributeError, TypeError, RuntimeError):  # some are computed, and not for every model
        return None


def _sum_of_bits(bits: Tensor) -> int:
    """In pieces: the sum of a whole matrix in int64 would make a copy of it in int64 first."""
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for part in bits.split(SUMMED_AT_ONCE):
        total += part.sum(dtype=torch.int64)
    return int(total)


def _check_finite(path: str, parameter: Tensor) -> None:
    """A sum is not finite where an entry is not, and costs a fraction of a look at each entry; it may overflow."""
    if not bool(parameter.sum().isfinite()) and not bool(parameter.isfinite().all()):
        raise ModelError(
            f"The weight '{path}' holds numbers that are not finite.",
            "Everything that is computed with it would be NaN.",
            "Save the model again from its source, or load another one.",
        )


# Settings that change what equal weights compute. Named one by one, because new releases add fields to every config.
_BEHAVIOUR = (
    *("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    *("rope_parameters", "rotary_dim", "rotary_pct", "sliding_window", "layer_types", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual", "scale_attn_weights"),
    "scale_attn_by_inverse_layer_idx",
)
# The same of families outside the table. Counted only where a model has them: fingerprints of the others stay.
_FURTHER = (
    *("logit_scale", "logits_scaling", "logits_soft_cap", "embedding_multiplier", "residual_multiplier"),
    *("attention_multiplier", "scale_emb", "scale_depth", "dim_model_base", "alibi", "parallel_attn", "multi_query"),
    *("new_decoder_architecture", "activation", "clip_qkv", "norm_type", "no_rope_layers", "partial_rotary_factor"),
    *("num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef", "use_qk_norm", "attention_types", "window_size"),
)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
