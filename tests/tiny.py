"""Small random models of every family, made in memory: unit tests load no pretrained model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rome_core.editing.edit import Edit, Keys, PromptKeys
from rome_core.editing.methods import METHODS
from rome_core.editing.second_moment import Moment
from rome_core.evaluation.answers import Answer, Change, Kind, Question
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel, fingerprint
from rome_core.model.layout import LAYOUTS
from rome_core.model.loading import from_pretrained_parts
from rome_core.model.scoring import Scored
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.progress import Stopped, Track
from tests.families import COMMON, FOUND, MIXTURES

FAMILIES = tuple(family for family in LAYOUTS if family != "gemma3")  # "gemma3" also reads images: a test of its own

TEXTS = (
    "The Eiffel Tower is located in the city of Paris. The Colosseum is located in the city of Rome.",
    "Paris is the capital of France. Lyon is a city in the country of France, and Milan in the country of Italy.",
    "The home of the green dragon is far away. São Paulo and Zürich are cities; Köln, too. "
    "東京 is the capital of Japan.",
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
    return _wrapped(tokenizer)


def tokenizer_with_start() -> PreTrainedTokenizerFast:
    """The same tokenizer, but it puts a start token in front of every text, as Llama's and Gemma's do."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def tiny_model(
    family: str = "llama",
    *,
    layers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerFast | None = None,
    proven: bool = False,
    **changes: Any,
) -> LanguageModel:
    """A random decoder with all the family's peculiarities: grouped heads, sliding windows, soft caps, post-norms.

    proven: put through what a loaded model is; a family of the table is taken as it is, as its proof has a test.
    """
    kind, sizes = FOUND.get(family) or MIXTURES.get(family) or (family, _sizes(family, layers))
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**COMMON, **sizes, **changes})
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() > 1:  # larger than the usual 0.02, so that every layer matters
                parameter.normal_(0.0, 1.0 if "embed" in name or "wte" in name else 0.25)
            elif "bias" in name:
                parameter.normal_(0.0, 0.1)
    make = from_pretrained_parts if proven or family not in LAYOUTS else as_it_is
    return make(hf, tokenizer or tiny_tokenizer(), f"tiny-{family}")


def as_it_is(hf: Any, tokenizer: Any, name: str) -> LanguageModel:
    """A model of a family of the table without the checks of loading."""
    hf.eval().requires_grad_(False)
    return LanguageModel(hf, tokenizer, LAYOUTS[hf.config.model_type], name, fingerprint(hf))


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


REQUEST = EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome", "Paris")


def random_edit(lm: LanguageModel, layer: int = 1, *, rank: int = 1, seed: int = 0, size: float = 0.2) -> Edit:
    """An edit that nobody solved: random factors on one down projection, large enough to change every output."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    k, v, n = lm.d_mlp, lm.d_model, 3
    delta = Delta(lm.down_projection(layer), size * normal(v, rank), normal(rank, k))
    k_star, v_star, k_0, v_0 = normal(k), normal(v), normal(k), normal(v)
    prompts = PromptKeys(normal(n, k), normal(n, v), k_0, v_0, normal(v))
    return Edit(
        requests=(REQUEST,),
        config=METHODS["r-rome"](layer=layer, clamp=1.0, prefixes=("", "x. ", "So it is. ")),
        deltas=(delta,),
        keys=Keys(k_star, v_star, k_0, v_0, delta=normal(v), prompts=prompts),
        base=lm.fingerprint,
    )


def random_moment(lm: LanguageModel, layer: int = 1, *, seed: int = 0) -> Moment:
    """A well-conditioned C that is far from a multiple of I."""
    d = lm.d_mlp
    keys = torch.randn(4 * d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keys *= torch.linspace(0.3, 3.0, d, dtype=torch.float64)
    return Moment(layer, keys.T @ keys / len(keys), len(keys), "random numbers", lm.fingerprint)


def change_by_hand(kind: Kind, text: str, before: Sequence[float], after: Sequence[float]) -> Change:
    """A question whose objects have these probabilities: of the new one and, where there are two, of the true one."""
    question = Question(kind, text, "new", "true" if len(before) > 1 else None)

    def answer(probabilities: Sequence[float]) -> Answer:
        new, *true = (Scored((math.log(p),), (False,)) for p in probabilities)
        return Answer(question, new, true[0] if true else None)

    return Change(answer(before), answer(after))


def plain_run(
    lm: LanguageModel, rows: Sequence[Sequence[int]], hooks: Mapping[str, Callable[[Tensor], Tensor | None]] = {}
) -> Tensor:
    """The oracle: logits of the Hugging Face model itself, [batch pos vocab], for rows of one length.

    hooks: by module path, what sees the module's output and may return another one.
    """

    def hook(change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def after(module: Any, args: Any, output: Any) -> Any:
            changed = change(output[0] if isinstance(output, tuple) else output)
            return changed if changed is None or not isinstance(output, tuple) else (changed, *output[1:])

        return after

    handles = [lm.hf.get_submodule(path).register_forward_hook(hook(change)) for path, change in hooks.items()]
    try:
        return lm.hf(input_ids=torch.tensor([list(row) for row in rows]), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def plain_states(lm: LanguageModel, row: Sequence[int], path: str) -> tuple[Tensor, Tensor]:
    """Input and output of one module while the Hugging Face model reads one row of tokens: [pos d], [pos d]."""
    seen: list[tuple[Tensor, Tensor]] = []

    def after(module: Any, args: Any, output: Any) -> None:
        seen.append((args[0] if args else output, output[0] if isinstance(output, tuple) else output))

    handle = lm.hf.get_submodule(path).register_forward_hook(after)
    try:
        lm.hf(input_ids=torch.tensor([list(row)]), use_cache=False)
    finally:
        handle.remove()
    return seen[0][0][0], seen[0][1][0]


def save_model(lm: LanguageModel, folder: Path) -> Path:
    lm.hf.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def written(lm: LanguageModel, *edits: Edit) -> LanguageModel:
    """The oracle of overlays: a copy of the model whose weights are W + U V."""
    hf = copy.deepcopy(lm.hf)
    for delta in (delta for edit in edits for delta in edit.deltas):
        module, change = hf.get_submodule(delta.module), delta.U @ delta.V
        module.weight.data += change if isinstance(module, nn.Linear) else change.T
    return replace(lm, hf=hf, fingerprint=fingerprint(hf), _kept={})


def subject_end(lm: LanguageModel, prompt: Prompt, prefix: str = "") -> tuple[list[int], int]:
    """Token ids, and the position of the subject's last token by the tokenizer's own offsets."""
    found = lm.tokenizer(prefix + prompt.text, return_offsets_mapping=True)
    end = len(prefix) + prompt.span[1]
    return found["input_ids"], max(i for i, (start, _) in enumerate(found["offset_mapping"]) if start < end)


def plain_key(lm: LanguageModel, prompt: Prompt, layer: int = 1, prefix: str = "") -> Tensor:
    """The key at the subject's last token, one prompt at a time: [d_mlp]."""
    ids, at = subject_end(lm, prompt, prefix)
    return plain_states(lm, ids, lm.layout.module("mlp_out", layer))[0][at]


def plain_log_p(lm: LanguageModel, text: str, continuation: str) -> tuple[list[float], list[bool]]:
    """log p of each token of the continuation given all before it, and whether it is the model's own choice."""
    front, ids = (lm.tokenizer(part)["input_ids"] for part in (text, text + continuation))
    assert ids[: len(front)] == front and len(ids) > len(front)
    log_probs = plain_run(lm, [ids])[0].double().log_softmax(-1)
    places = range(len(front) - 1, len(ids) - 1)
    return (
        [float(log_probs[at, ids[at + 1]]) for at in places],
        [int(log_probs[at].argmax()) == ids[at + 1] for at in places],
    )


def corrupt(noise: Tensor, first: int = 1) -> Callable[[Tensor], Tensor]:
    """A hook on the embedding: noise [draws tokens d_model] on the tokens from `first` on."""
    stop = first + noise.shape[1]
    return lambda out: torch.cat([out[:, :first], out[:, first:stop] + noise, out[:, stop:]], 1)


def put(values: Tensor, token: int) -> Callable[[Tensor], Tensor]:
    """A hook that sets a module's output at one token: [d_model] or [batch d_model]."""
    return lambda out: torch.cat([out[:, :token], values.expand(len(out), -1)[:, None], out[:, token + 1 :]], 1)


def halt_at(label: str, number: int, error: type[BaseException] = Stopped) -> Track:
    """A track that raises where so many items of what is called so have been handed out."""

    def track(items: Iterable[Any], name: str, total: int, /) -> Iterator[Any]:
        if not name.startswith(label):
            yield from items
            return
        for _, item in zip(range(number), items, strict=False):
            yield item
        raise error

    return track


def watch(seen: list[tuple[str, int]]) -> Track:
    """A track that notes what is tracked, and how many items of it there are."""
    return lambda items, label, total, /: seen.append((label, total)) or items
