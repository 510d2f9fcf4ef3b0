"""A loaded decoder, ready to be looked into: the Hugging Face model, its tokenizer and where its parts are."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from cachetools import LRUCache
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from rome_core.errors import ModelError
from rome_core.model.default_model import DEFAULT_MODEL, fetch_default_model
from rome_core.model.layout import Layout, layout_of
from rome_core.progress import Track, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


V = TypeVar("V")


@dataclass(frozen=True)
class Kept(Generic[V]):
    """A kind of result that is kept with a model: its name, and how many of them; the least recently used go first."""

    name: str
    limit: int


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """One decoder shared by everybody; its weights are never written.

    fingerprint: a hash of configuration and weights, which everything computed from this model carries.
    lock: held for one forward pass at a time, because hooks belong to the modules and not to the caller.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    name: str
    fingerprint: str
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
        return self.weight(0).shape[0]

    @property
    def d_mlp(self) -> int:
        return self.weight(0).shape[1]

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
        """The matrix of a linear module by its path: y = W x, whatever the module's own orientation is."""
        module = self.module(path)
        return module.weight if isinstance(module, nn.Linear) else module.weight.T

    def unembed(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of states that have passed the final norm, with the soft cap of the models that have one."""
        head = self.hf.get_output_embeddings()
        assert head is not None
        logits = head(hidden)
        cap = getattr(self.hf.config.get_text_config(), "final_logit_softcapping", None)
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


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    track: Track = silent,
) -> LanguageModel:
    """Load a decoder: the default model, a local folder, or a Hugging Face id.

    device: "cpu", "cuda", …, or "auto" to spread a large model over all devices; None takes the GPU if there is one.
    Only safetensors are read, and no code that comes with a model is run. Raises ModelError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = str(fetch_default_model(track)) if str(name) == DEFAULT_MODEL else str(name)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        layout = layout_of(config.model_type)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(
                f"'{name}' has quantised weights.",
                "Keys, values and updates need the plain ones.",
                "Choose the unquantised version of the model.",
            )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        placement = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Tracing replays single blocks and shows attention patterns: both need the mask and the weights spelt out.
            attn_implementation="eager",
            **({"device_map": "auto"} if placement == "auto" else {}),
        )
        hf, report = loaded
        if lost := sorted(map(str, report["missing_keys"])):
            raise ValueError(f"Its weights are incomplete: {lost[0]} and {len(lost) - 1} others are missing.")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The model '{name}' could not be loaded.",
            _reason(error, local=Path(source).exists()),
            "Check the spelling, or give a local folder with config.json, tokenizer and *.safetensors.",
        ) from error
    if placement != "auto":
        nn.Module.to(hf, torch.device(placement))
    return from_pretrained_parts(hf, tokenizer, str(name), layout)


def from_pretrained_parts(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, layout: Layout | None = None
) -> LanguageModel:
    """Wrap a model that is already in memory. It is set to evaluation mode and its weights are frozen."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer of '{name}' gives no character offsets.",
            "They are needed to find the subject's tokens.",
            "Choose a model that comes with a tokenizer.json.",
        )
    hf.eval().requires_grad_(False)
    return LanguageModel(hf, tokenizer, layout or layout_of(hf.config.model_type), name, fingerprint(hf))


def fingerprint(hf: PreTrainedModel) -> str:
    """A hash of every weight: exact integer sums of the bit patterns, with a sample of the entries for their order.

    A sum of integers does not depend on the number of threads, so the hash is the same on every machine.
    """
    text_config = hf.config.get_text_config()
    settings = {key: getattr(text_config, key, None) for key in _BEHAVIOUR}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
    with torch.no_grad():
        for path, parameter in sorted(hf.named_parameters()):
            bits = parameter.detach().reshape(-1).view(_BITS[parameter.element_size()])
            sample = bits[:: max(1, bits.numel() // 1024)].cpu().contiguous()
            digest.update(f"{path}{tuple(parameter.shape)}{int(bits.sum(dtype=torch.int64))}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


# Settings that change what equal weights compute. Named one by one, because new releases add fields to every config.
_BEHAVIOUR = (
    *("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    *("rope_parameters", "rotary_dim", "rotary_pct", "sliding_window", "layer_types", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual", "scale_attn_weights"),
    "scale_attn_by_inverse_layer_idx",
)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _reason(error: Exception, *, local: bool) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if local:
        return first[:200]
    return "It is neither a local folder nor a Hugging Face id that can be reached from here."
