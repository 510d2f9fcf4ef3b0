"""Adapters are read as peft reads them, which is the oracle: what it merges, weight by weight; all else is refused."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rome_core.diagnosis.adapters import CONFIG, WEIGHTS, read_adapter
from rome_core.diagnosis.forensics import changes_of
from rome_core.editing.storage import export_adapter
from rome_core.errors import ModelError
from rome_core.model.language_model import LanguageModel
from tests.tiny import random_edit, save_model, tiny_model


def train(lm: LanguageModel, folder: Path, **settings: Any) -> None:
    """An adapter that peft wrote, everything in it that can be trained moved at random."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is saved with it, and of settings that usually are not together
        config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 2, "lora_alpha": 4, **settings})
        model = peft.get_peft_model(copy.deepcopy(lm.hf), config)
        draw = torch.Generator().manual_seed(0)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
        model.save_pretrained(folder)


def merged(lm: LanguageModel, folder: Path) -> dict[str, Tensor]:
    """The oracle: what peft's own merge adds to each weight that it changes."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = PeftModel.from_pretrained(copy.deepcopy(lm.hf), str(folder)).merge_and_unload().state_dict()
    own = lm.hf.state_dict()
    assert own.keys() == weights.keys()
    return {name: weights[name] - own[name] for name in own if not torch.equal(own[name], weights[name])}


ALL = ["down_proj", "up_proj", "q_proj"]
GPT2 = {"fan_in_fan_out": True, "target_modules": ["c_proj", "c_attn"]}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ALL}),
    "a pattern of alpha": (
        "llama",
        {"target_modules": ["down_proj"], "alpha_pattern": {".*layers\\.1\\..*down_proj": 16}},
    ),
    "patterns of rank and alpha": (
        "llama",
        {
            "target_modules": ALL,
            "rank_pattern": {"layers.1.mlp.down_proj": 3, "q_proj": 1},
            "alpha_pattern": {"^model.layers.2.*": 9, "down_proj": 5, "layers.1.mlp.down_proj": 7, "own_proj": 99},
        },
    ),
    "rank-stabilised": ("llama", {"target_modules": ALL, "use_rslora": True, "rank_pattern": {"q_proj": 3}}),
    "with the head": ("llama", {"target_modules": ["down_proj"], "modules_to_save": ["lm_head"]}),
    "with embedding and norms": ("llama", {"target_modules": ALL, "modules_to_save": ["embed_tokens", "norm"]}),
    "of the embedding": ("llama", {"target_modules": ["down_proj", "embed_tokens"]}),
    "of the head": ("llama", {"target_modules": ["down_proj", "lm_head"]}),
    "DoRA": ("llama", {"target_modules": ALL, "use_dora": True}),
    "DoRA, rank-stabilised, of the embedding": (
        "llama",
        {"target_modules": ["embed_tokens", "down_proj"], "use_dora": True, "use_rslora": True},
    ),
    "DoRA of GPT-2": ("gpt2", {**GPT2, "use_dora": True}),
    "of GPT-2": ("gpt2", GPT2),
    "of some layers": (
        "gpt2",
        {"fan_in_fan_out": True, "target_modules": ["c_proj"], "layers_to_transform": [1, 3], "layers_pattern": "h"},
    ),
    "of one layer": ("llama", {"target_modules": ALL, "layers_to_transform": 2}),
    "by an expression": ("llama", {"target_modules": r".*\.(1|2)\.mlp\..*_proj", "exclude_modules": ["gate_proj"]}),
    "of all linear modules": ("llama", {"target_modules": "all-linear"}),
    "with all biases": ("gpt2", {**GPT2, "bias": "all"}),
    "with its biases": ("gpt2", {**GPT2, "bias": "lora_only"}),
    "with a bias of its own": ("gpt2", {**GPT2, "lora_bias": True}),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_every_weight_is_changed_as_by_pefts_own_merge(tmp_path: Path, kind: str) -> None:
    family, settings = TRAINED[kind]
    lm = tiny_model(family)
    train(lm, tmp_path, **settings)
    expected = merged(lm, tmp_path)

    found = {difference.weight: difference.delta.float() for difference in read_adapter(lm, tmp_path)[0]}

    assert found.keys() == expected.keys() and len(found) > 0
    for weight, delta in expected.items():
        torch.testing.assert_close(found[weight], delta, rtol=1e-4, atol=2e-6 * float(1 + delta.abs().max()))


def test_a_saved_head_is_told_apart_from_the_embedding_that_it_was(tmp_path: Path) -> None:
    """peft unties the two: its model's own logits are the oracle, as a merge would write both."""
    lm = tiny_model(tie_word_embeddings=True)
    train(lm, tmp_path, target_modules=["down_proj"], modules_to_save=["lm_head"])
    stored = load_file(tmp_path / WEIGHTS)["base_model.model.lm_head.weight"]

    found = {change.weight: change for change in changes_of(lm, tmp_path)}

    assert "lm_head.weight" in found and "model.embed_tokens.weight" not in found
    own = lm.hf.get_output_embeddings().weight
    assert found["lm_head.weight"].relative == pytest.approx(float((stored - own).norm() / own.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("down_proj", True),
        ("mlp.down_proj", True),
        ("layers.1.mlp.down_proj", True),
        ("model.layers.1.mlp.down_proj", True),
        (r".*layers\.1\..*down_proj", True),
        (r"^model\.layers\.1\..*", True),
        ("up_proj|down_proj", True),
        ("own_proj", False),
        ("mlp", False),
        ("layers.1", False),
        (r"layers\.2\.mlp\.down_proj", False),
    ],
)
def test_a_pattern_is_the_end_of_a_path_from_a_dot_on(tmp_path: Path, pattern: str, fits: bool) -> None:
    lm = tiny_model()
    edit = random_edit(lm, rank=2)
    export_adapter(edit, tmp_path)
    write(tmp_path, lora_alpha=2, alpha_pattern={pattern: 10})

    [found], _ = read_adapter(lm, tmp_path)

    torch.testing.assert_close(found.delta, (5.0 if fits else 1.0) * edit.deltas[0].matrix())
    peft = pytest.importorskip("peft.utils.other")
    assert (peft.get_pattern_key([pattern], edit.deltas[0].module) == pattern) == fits


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    lm = tiny_model()
    edit = random_edit(lm, rank=2)
    export_adapter(edit, tmp_path)
    write(tmp_path, alpha_pattern={"mlp.down_proj": 4, "layers.1.mlp.down_proj": 8}, use_rslora=True)

    [found], _ = read_adapter(lm, tmp_path)

    torch.testing.assert_close(found.delta, 4 / 2**0.5 * edit.deltas[0].matrix())


def test_the_base_that_an_adapter_names_is_told(tmp_path: Path) -> None:
    lm = tiny_model()
    export_adapter(random_edit(lm), tmp_path)
    assert changes_of(lm, tmp_path).base == ""

    export_adapter(random_edit(lm), tmp_path, "someone/base")
    assert changes_of(lm, tmp_path).base == "someone/base"


def test_an_untrained_adapter_changes_nothing(tmp_path: Path) -> None:
    lm = tiny_model()
    export_adapter(random_edit(lm, size=0.0), tmp_path)

    assert changes_of(lm, tmp_path) == () and changes_of(lm, tmp_path).compared == len(lm.hf.state_dict())


# -------------------------------------------------------------------------------------------------------------- refused


def write(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def setting(**changes: object) -> Callable[[Path], None]:
    return lambda folder: write(folder, **changes)


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


AT = "base_model.model.model.layers.1.mlp.down_proj"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "IA3": (setting(peft_type="IA3"), r"is an adapter of type IA3\. Only LoRA .* Merge it into its base with peft"),
    "LoHa": (setting(peft_type="LOHA"), r"is an adapter of type LOHA\."),
    "no type": (setting(peft_type=None), r"is an adapter of type None\."),
    "activated LoRA": (
        setting(alora_invocation_tokens=[1, 2]),
        r"is an adapter with alora_invocation_tokens\.",
    ),
    "QALoRA": (setting(use_qalora=True), r"is an adapter with use_qalora\."),
    "more layers": (setting(layer_replication=[[0, 2], [1, 4]]), r"is an adapter with layer_replication\."),
    "single tokens": (setting(trainable_token_indices=[1]), r"is an adapter with trainable_token_indices\."),
    "parameters": (setting(target_parameters=["mlp.down_proj.weight"]), r"is an adapter with target_parameters\."),
    "a variant of tomorrow": (setting(use_xlora2=True), r"is an adapter with use_xlora2\. Its weights are not known"),
    "PiSSA": (setting(init_lora_weights="pissa"), r"began with init_lora_weights = pissa\. It takes a part out of"),
    "DoRA without magnitudes": (setting(use_dora=True), r"are incomplete, or more than its adapter_config.json says"),
    "magnitudes without DoRA": (
        tensors(lambda all: {**all, f"{AT}.lora_magnitude_vector": torch.ones(16)}),
        r"are incomplete, or more than its adapter_config.json says\. There are A, B, magnitude_vector\.",
    ),
    "a half": (tensors(lambda all: {k: v for k, v in all.items() if "lora_B" not in k}), r"incomplete.* There are A\."),
    "a bias where there is none": (
        tensors(lambda all: {**all, f"{AT}.lora_B.bias": torch.ones(16)}),
        r"adds a bias to 'model.layers.1.mlp.down_proj'\. It has none there\.",
    ),
    "a tensor of another kind": (
        tensors(lambda all: {**all, f"{AT}.ia3_l": torch.ones(24), f"{AT}.x": torch.ones(1)}),
        rf"holds '{AT}.ia3_l', which is not understood, nor 1 more\.",
    ),
    "not finite": (tensors(lambda all: {k: v * torch.nan for k, v in all.items()}), r"factors for .* are not finite"),
    "another rank": (
        setting(rank_pattern={}, r=3),
        r"do not fit 'tiny-llama'\. .* \(16, 3\) and \(3, 24\) are",
    ),
    "a module that it does not target": (setting(target_modules=["up_proj"]), r"does not target that module, so peft"),
    "a layer that it leaves out": (
        setting(target_modules=["down_proj"], layers_to_transform=[2]),
        r"has factors for 'model.layers.1.mlp.down_proj'\. .* does not target",
    ),
    "a saved module that is not there": (setting(modules_to_save=["lm_head"]), r"lacks the weights of 'lm_head'\."),
    "a pattern that is none": (
        setting(alpha_pattern={"(": 3}),
        r"cannot be read\. .* It needs adapter_config.json",
    ),
    "a rank of nothing": (
        setting(rank_pattern={"down_proj": 0}),
        r"do not fit .* \(16, 0\) and \(0, 24\) are",
    ),
    "settings that are a list": (lambda to: (to / CONFIG).write_text("[1]"), r"cannot be read\."),
    "settings that are no JSON": (lambda to: (to / CONFIG).write_text("{"), r"cannot be read\."),
    "no file of weights": (lambda to: (to / WEIGHTS).unlink(), r"cannot be read\. .*and adapter_model.safetensors\."),
    "a broken file": (lambda to: (to / WEIGHTS).write_bytes(b"no"), r"cannot be read\."),
    "nothing in it": (tensors(lambda all: {}), r"has no LoRA factors\. Save it again with peft\."),
    "a whole model, too": (
        lambda to: save_model(tiny_model(), to),
        r"holds an adapter and 'model.safetensors'\. It cannot be seen which",
    ),
    "of another model": (
        lambda to: export_adapter(random_edit(tiny_model("gpt2")), to),
        r"The adapter changes 'transformer.h.1.mlp.c_proj', which 'tiny-llama' does not have\.",
    ),
    "of a larger model": (
        lambda to: export_adapter(random_edit(tiny_model(intermediate_size=32)), to),
        r"do not fit 'tiny-llama'\. They have shapes \(16, 1\) and \(1, 32\)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path: Path, kind: str) -> None:
    lm = tiny_model()
    export_adapter(random_edit(lm, rank=2), tmp_path)
    make, sentence = REFUSED[kind]
    make(tmp_path)

    with pytest.raises(ModelError, match=sentence):
        changes_of(lm, tmp_path)
