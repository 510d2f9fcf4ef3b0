"""The loaded model: its parts, its fingerprint, and what is said when it cannot be had."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rome_core.errors import ModelError
from rome_core.model.language_model import Kept, LanguageModel, fingerprint, from_pretrained_parts, load_model
from tests.tiny import FAMILIES, plain_run, plain_states, save_model, tiny_model, tiny_tokenizer

IDS = tiny_tokenizer()("The Eiffel Tower is located in")["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family: str) -> None:
    """From the residual stream through final norm, head and soft cap, against the model's own forward pass."""
    lm = tiny_model(family)
    expected = plain_run(lm, [IDS])[0]
    _, resid = plain_states(lm, IDS, lm.layout.block(lm.n_layers - 1))
    _, normed = plain_states(lm, IDS, lm.layout.norm)

    torch.testing.assert_close(lm.logits(resid), expected)
    torch.testing.assert_close(lm.unembed(normed), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family: str) -> None:
    lm = tiny_model(family, layers=3)

    assert (lm.n_layers, lm.d_model, lm.d_mlp, lm.max_positions) == (3, 16, 24, 256)
    assert lm.n_parameters == sum(p.numel() for p in lm.hf.parameters())
    assert lm.device.type == "cpu" and lm.dtype == torch.float32
    assert not lm.hf.training and not any(p.requires_grad for p in lm.hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_weights_have_one_fingerprint(family: str) -> None:
    one = tiny_model(family)

    assert fingerprint(one.hf) == one.fingerprint == tiny_model(family).fingerprint
    assert one.fingerprint != tiny_model(family, seed=1).fingerprint


def test_the_fingerprint_does_not_depend_on_the_number_of_threads() -> None:
    lm = tiny_model()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert fingerprint(lm.hf) == lm.fingerprint
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_fingerprint_changes_with_any_one_weight(family: str) -> None:
    lm = tiny_model(family)
    pick = torch.Generator().manual_seed(0)
    for name, parameter in lm.hf.named_parameters():
        flat = parameter.data.view(-1)
        at = int(torch.randint(len(flat), (1,), generator=pick))
        before = flat[at].clone()
        flat[at] = torch.nextafter(before, torch.tensor(9.0))  # the smallest change there is
        assert fingerprint(lm.hf) != lm.fingerprint, f"{name}[{at}]"
        flat[at] = before
    assert fingerprint(lm.hf) == lm.fingerprint


OTHER_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"rms_norm_eps": 0.1}, OTHER_ROPE])
def test_the_fingerprint_changes_with_the_configuration(change: dict) -> None:
    """Equal weights that compute something else are another model."""
    one, other = tiny_model(), tiny_model(**change)
    assert not torch.equal(plain_run(one, [IDS]), plain_run(other, [IDS]))

    assert one.fingerprint != other.fingerprint


def test_a_document_starts_with_its_token_and_a_tokenizer_without_one_says_so() -> None:
    lm = tiny_model()
    bare = SimpleNamespace(get_vocab=lambda: {"a": 0}, bos_token=None, eos_token=None)

    with pytest.raises(ModelError, match="The tokenizer of 'tiny-llama' has no start token"):
        LanguageModel.document_start.fget(SimpleNamespace(tokenizer=bare, name="tiny-llama"))
    assert lm.document_start == 0


def test_a_tokenizer_without_offsets_is_refused() -> None:
    slow = tiny_tokenizer().__class__(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    slow.__class__ = type("Slow", (type(slow),), {"is_fast": False})

    with pytest.raises(ModelError, match=r"The tokenizer of 'mine' gives no character offsets.*tokenizer\.json"):
        from_pretrained_parts(tiny_model().hf, slow, "mine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tiny_model(), tmp_path / "model")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_local_folder_loads_as_the_same_model(folder: Path, kind: type) -> None:
    lm = tiny_model()

    loaded = load_model(kind(folder), device="cpu")

    assert loaded.fingerprint == lm.fingerprint
    assert torch.equal(plain_run(loaded, [IDS]), plain_run(lm, [IDS]))
    assert loaded.tokenizer("The Eiffel Tower")["input_ids"] == lm.tokenizer("The Eiffel Tower")["input_ids"]
    assert loaded.hf.config._attn_implementation == "eager"


def test_another_precision_is_another_model(folder: Path) -> None:
    half = load_model(folder, dtype=torch.bfloat16, device="cpu")

    assert half.dtype == torch.bfloat16
    assert half.fingerprint != tiny_model().fingerprint


def test_an_unknown_id() -> None:
    with pytest.raises(ModelError, match=r"The model 'nobody/nothing' could not be loaded.*Check the spelling"):
        load_model("nobody/nothing")


def write_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def pickle_the_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "quantised": lambda folder: write_config(
        folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    ),
    "of an unknown type": lambda folder: write_config(folder, model_type="opt"),
    "of a type that nobody knows": lambda folder: write_config(folder, model_type="perceptron"),
    "weights truncated": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "weights empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "weights pickled": pickle_the_weights,
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
    "a config that is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a weight missing": lose_a_weight,
    "a weight of another size": lambda folder: write_config(folder, intermediate_size=32),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_a_sentence(folder: Path, damage: str) -> None:
    DAMAGES[damage](folder)

    with pytest.raises(ModelError) as caught:
        load_model(folder)

    assert caught.value.what and caught.value.try_next


def test_parts_in_memory_are_frozen_and_know_their_family() -> None:
    hf = AutoModelForCausalLM.from_config(tiny_model("gpt2").hf.config).train()

    lm = from_pretrained_parts(hf, tiny_tokenizer(), "mine")

    assert lm.name == "mine" and lm.layout.mlp_out == "mlp.c_proj"
    assert not hf.training and not any(p.requires_grad for p in hf.parameters())


def test_what_is_kept_with_a_model_is_bounded_and_the_least_used_goes_first() -> None:
    lm, made = tiny_model(), list[int]()
    kind = Kept[int]("squares", limit=2)

    def square(n: int) -> int:
        return lm.remember(kind, n, lambda: made.append(n) or n * n)

    assert [square(n) for n in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert made == [1, 2, 3, 2]  # 2 was used longest ago when 3 came
    assert tiny_model().remember(kind, 1, lambda: 5) == 5  # another model's are its own
    lm.forget(kind)
    assert square(1) == 1 and made[-1] == 1
