"""Loading: a model that comes in is what was meant, or is refused in one sentence, and none of its code is run."""

from __future__ import annotations

import copy
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rome_core.editing.storage import export_adapter
from rome_core.errors import ModelError, PromptError
from rome_core.model.hooks import batch_of, hidden_states, next_logits
from rome_core.model.language_model import Source
from rome_core.model.loading import from_pretrained_parts, load_model
from tests.tiny import FAMILIES, plain_run, random_edit, save_model, tiny_model, tiny_tokenizer, tokenizer_with_start

IDS = tiny_tokenizer()("The Eiffel Tower is located in")["input_ids"]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    slow = tiny_tokenizer().__class__(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    slow.__class__ = type("Slow", (type(slow),), {"is_fast": False})

    with pytest.raises(ModelError, match=r"The tokenizer of 'mine' gives no character offsets.*tokenizer\.json"):
        from_pretrained_parts(tiny_model().hf, slow, "mine")


def tiny_images() -> nn.Module:
    """Gemma 3 with the part that reads images."""
    text = {
        "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


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


# ----------------------------------------------------------------------------------------------- what is not the model


def write_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_config(folder: Path, **changes: object) -> None:
    write_json(folder / "config.json", **changes)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda weights: {k: v for k, v in weights.items() if k != name})


def having(name: str, value: Tensor) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda weights: {**weights, name: value})


def pickle_the_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only(folder: Path, *files: str) -> None:
    """Leave a folder with some empty files."""
    for path in folder.iterdir():
        path.unlink()
    for name in files:
        (folder / name).write_text("{}")


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    load = AutoModelForCausalLM.from_config(tiny_model().hf.config)
    load.save_pretrained(folder, max_shard_size="20KB")
    next(folder.glob("model-00002-*")).unlink()


def as_adapter(folder: Path) -> None:
    only(folder, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')


def with_tokens(number: int, *, special: bool = False) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which leaves 9 of the tiny models' 400 embeddings unused, with more tokens: '<391>', …"""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<{first + i}>", special=special) for i in range(number)])
    return tokenizer


def as_fp8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(torch.float8_e4m3fn) if "mlp" in k else v for k, v in weights.items()}


def gptq(folder: Path) -> None:
    write_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


DOWN = "model.layers.1.mlp.down_proj.weight"
NAN = torch.full((16, 24), torch.nan)
HEAD = torch.randn(400, 16, generator=torch.Generator().manual_seed(3))
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gptq": (gptq, r"has quantised weights\..*Choose the unquantised version"),
    "fp8": (lambda to: rewrite(to, as_fp8), r"has quantised weights\. '.*mlp.*' is of type F8_E4M3"),
    "int8": (having(DOWN, torch.ones(16, 24, dtype=torch.int8)), rf"quantised weights\. '{DOWN}' is of type I8"),
    "another family's config": (lambda to: write_config(to, model_type="opt"), "are incomplete. 'model.decoder"),
    "a type that nobody knows": (
        lambda to: write_config(to, model_type="perceptron"),
        r"of type 'perceptron', which transformers 5.* does not know\..*Install a release that does",
    ),
    "no type": (lambda to: write_config(to, model_type=None), r"config.json names no model_type\."),
    "an encoder and a decoder": (
        lambda to: write_config(to, model_type="t5"),
        r"of type 't5', and no model of that type continues a text\.",
    ),
    "weights truncated": (
        lambda to: os.truncate(to / "model.safetensors", 1000),
        r"'model.safetensors' cannot be read\.",
    ),
    "weights empty": (lambda to: os.truncate(to / "model.safetensors", 0), r"'model.safetensors' cannot be read\."),
    "weights pickled": (pickle_the_weights, r"has no safetensors\..*pickled.*Save the model again"),
    "no tokenizer": (lambda to: [path.unlink() for path in to.glob("tokenizer*")], "could not be loaded"),
    "a config that is no JSON": (lambda to: (to / "config.json").write_text("{"), "could not be loaded"),
    "a config that is a list": (lambda to: (to / "config.json").write_text("[1]"), "could not be loaded"),
    "a weight missing": (without(DOWN), rf"are incomplete\. '{DOWN}' is missing\. Copy or save"),
    "the head missing": (without("lm_head.weight"), r"'lm_head.weight' is missing\..*tie_word_embeddings to true"),
    "a shard missing": (lose_a_shard, r"'model-00002-.*' is missing\. model.safetensors.index.json names it"),
    "another size": (
        lambda to: write_config(to, intermediate_size=32),
        r"do not fit its config.json\..* \(16, 24\) and",
    ),
    "a weight too many": (
        having("model.layers.1.mlp.gate.weight", HEAD),
        r"weights that its family does not have\. 'model.layers.1.mlp.gate.weight' would be left out\.",
    ),
    "a layer too many": (
        lambda to: write_config(to, num_hidden_layers=3),
        r"'model.layers.3.* would be left out, and 8 ",
    ),
    "a weight that is not finite": (having(DOWN, NAN), rf"The weight '{DOWN}' holds numbers that are not finite"),
    "a head that should be the embedding": (
        lambda to: write_config(to, tie_word_embeddings=True),
        r"holds a head that is not its embedding\..*set tie_word_embeddings to false",
    ),
    "an adapter beside the weights": (
        lambda to: export_adapter(random_edit(tiny_model()), to),
        r"an adapter beside the model's weights\..*Merge it .*merge_and_unload.*, or take adapter_config.json out",
    ),
    "an adapter alone": (as_adapter, r"is an adapter, no model\. Its base is 'someone/base'\. Load the base"),
    "a GGUF file": (lambda to: only(to, "model.Q4.gguf"), r"has no config.json\. It holds model.Q4.gguf\. GGUF holds"),
    "nothing": (only, r"has no config.json\. It is empty\. Give a folder"),
    "fewer embeddings than tokens": (
        lambda to: with_tokens(11).save_pretrained(to),
        r"has tokens up to number 401; the model has 400 embeddings\. '<400>' has none, and 1 more\.",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_the_model_that_it_seems_is_one_sentence(folder: Path, damage: str) -> None:
    make, sentence = DAMAGES[damage]
    make(folder)

    with pytest.raises(ModelError, match=sentence) as caught:
        load_model(folder)

    assert "Traceback" not in str(caught.value) and caught.value.try_next


@pytest.mark.parametrize("damage", ["a weight missing", "a weight too many", "another size"])
def test_nothing_but_the_sentence_is_said(folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would print a table that calls tensors of no use "can be ignored"."""
    DAMAGES[damage][0](folder)
    said, logger = list[str](), logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(logger, "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))

    with pytest.raises(ModelError):
        load_model(folder)

    assert not said and not logger.filters
    AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert any("LOAD REPORT" in message for message in said)


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq", torch.ones(2)),
        ("gpt2", "transformer.h.1.attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
        ("gpt_neox", "gpt_neox.layers.1.attention.masked_bias", torch.tensor(-1e9)),
    ],
)
def test_what_older_releases_saved_beside_the_weights_does_no_harm(
    tmp_path: Path, family: str, name: str, value: Tensor
) -> None:
    lm = tiny_model(family)
    having(name, value)(save_model(lm, tmp_path))

    assert load_model(tmp_path, device="cpu").fingerprint == lm.fingerprint


def test_a_tied_head_that_is_in_the_file_twice_is_one(tmp_path: Path) -> None:
    lm = tiny_model(tie_word_embeddings=True)
    having("lm_head.weight", lm.hf.get_input_embeddings().weight.clone())(save_model(lm, tmp_path))

    assert load_model(tmp_path, device="cpu").fingerprint == lm.fingerprint


def test_weights_in_parts_are_read_whole(tmp_path: Path) -> None:
    lm = tiny_model()
    lm.hf.save_pretrained(tmp_path, max_shard_size="20KB")
    lm.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    assert load_model(tmp_path, device="cpu").fingerprint == lm.fingerprint


# ------------------------------------------------------------------------------------------------------- foreign code

EVIL = """
open({marker!r}, "w").close()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
Config.model_type = "evil"
"""
MAPS: dict[str, Callable[[Path], None]] = {
    "the model, of a type of its own": lambda to: write_config(
        to, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    ),
    "the model, of a known type": lambda to: write_config(to, auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "the configuration": lambda to: write_config(to, auto_map={"AutoConfig": "evil.Config"}),
    "the tokenizer": lambda to: write_json(
        to / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}, tokenizer_class="Evil"
    ),
    "the tokenizer, as it used to be written": lambda to: write_json(
        to / "tokenizer_config.json", auto_map=["evil.Tokenizer", None]
    ),
}
DRIVER = """
import sys
from rome_core import ModelError, load_model
try:
    load_model(sys.argv[1])
    print("loaded")
except ModelError as error:
    print(error)
"""


def with_code(folder: Path, kind: str) -> Path:
    """The folder's Python leaves a file "ran" there, wherever it is copied to."""
    (folder / "evil.py").write_text(EVIL.format(marker=str(folder / "ran")))
    MAPS[kind](folder)
    return folder


@pytest.mark.parametrize("kind", MAPS)
def test_a_folder_with_code_of_its_own_is_refused(folder: Path, kind: str) -> None:
    with_code(folder, kind)

    with pytest.raises(ModelError, match=r"comes with code of its own \(auto_map in .*\)\. Such code is never run"):
        load_model(folder)

    assert not (folder / "ran").exists()


@pytest.mark.parametrize("terminal", [True, False], ids=["with a terminal", "without one"])
def test_nobody_is_asked_whether_a_folders_code_shall_run(tmp_path: Path, terminal: bool) -> None:
    """The person at the terminal has answered yes before anything was asked."""
    folder = with_code(save_model(tiny_model(), tmp_path / "evil-model"), "the model, of a type of its own")
    command = [sys.executable, "-c", DRIVER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    stdin = subprocess.PIPE
    if terminal:
        server, stdin = pty.openpty()
        os.write(server, b"y\n")
    child = subprocess.run(
        command,
        **({"stdin": stdin} if terminal else {"input": "y\n"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )

    assert "comes with code of its own" in child.stdout and "Do you wish" not in child.stdout
    assert not (folder / "ran").exists()


# --------------------------------------------------------------------------------------------------- names and places


def test_a_folder_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny_model(), tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))

    lm = load_model("~/mine", device="cpu")

    assert lm.name == "~/mine" and lm.source == Source(str(tmp_path / "mine"))


@pytest.mark.parametrize("name", ["nobody/nothing", "my model", "nothing"])
def test_an_unknown_id(name: str) -> None:
    with pytest.raises(
        ModelError, match=rf"The model '{name}' could not be loaded.*reached from here.*Check the spell"
    ):
        load_model(name)


def test_without_a_network_an_unknown_id_is_answered_at_once_and_without_noise() -> None:
    """The hub's own client says what it tries in the log, and tries for 23 seconds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:1", "NO_PROXY": "*"}  # a port that nobody listens at

    child = subprocess.run(
        [sys.executable, "-c", DRIVER, "nobody/nothing"], capture_output=True, text=True, env=environment
    )

    assert child.stdout.startswith("The model 'nobody/nothing' could not be loaded.") and child.stdout.count("\n") == 1
    assert child.stderr == ""


@pytest.fixture
def repository(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the hub's cache keeps commit 1f2e of owner/name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("1f2e")
    (kept / "snapshots").mkdir()
    return folder.rename(kept / "snapshots" / "1f2e")


def test_without_a_network_the_hubs_cache_is_used(repository: Path) -> None:
    lm = load_model("owner/name", device="cpu")

    assert lm.fingerprint == tiny_model().fingerprint and lm.source == Source("owner/name", "1f2e")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (MAPS["the model, of a type of its own"], r"'owner/name' comes with code of its own"),
        (MAPS["the tokenizer"], r"'owner/name' comes with code of its own"),
        (as_adapter, r"'owner/name' is an adapter, no model\. Its base is 'someone/base'"),
        (pickle_the_weights, r"'owner/name' has no safetensors"),
        (without(DOWN), r"The weights of 'owner/name' are incomplete"),
    ],
)
def test_a_repository_is_refused_as_a_folder_is(
    repository: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(repository)

    with pytest.raises(ModelError, match=sentence):
        load_model("owner/name")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", torch.device("cuda:99"), "nonsense:0"])
def test_a_device_that_is_not_there(folder: Path, device: str | torch.device) -> None:
    with pytest.raises(ModelError, match=rf"There is no device '{device}' here\. Choose \"cpu\", \"auto\""):
        load_model(folder, device=device)


# ---------------------------------------------------------------------------------------------------- parts in memory


def test_a_tokenizer_that_ends_texts_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    ending = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    lm = tiny_model()
    sentence = r"ends every text with '<\|endoftext\|>'\..*Set add_eos_token to false"

    with pytest.raises(ModelError, match=sentence):
        from_pretrained_parts(lm.hf, ending, "mine")
    ending.save_pretrained(save_model(lm, tmp_path))
    with pytest.raises(ModelError, match=sentence):
        load_model(tmp_path)
    assert from_pretrained_parts(lm.hf, tokenizer_with_start(), "mine").fingerprint == lm.fingerprint


def test_a_special_token_without_an_embedding_is_refused_where_a_text_holds_it() -> None:
    """Gemma 3 comes with one: its tokenizer is that of the models that read images."""
    tokenizer = with_tokens(11, special=True)

    lm = from_pretrained_parts(tiny_model().hf, tokenizer, "mine")

    with pytest.raises(PromptError, match="'<401>' is a token that 'mine' has no embedding for"):
        next_logits(lm, batch_of(lm, [tokenizer("Paris <401>")["input_ids"]]))


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_family_gives_its_own_logits(family: str, dtype: torch.dtype) -> None:
    hf = tiny_images().to(dtype) if family == "gemma3" else tiny_model(family, dtype=dtype).hf

    assert from_pretrained_parts(hf, tiny_tokenizer(), "mine").dtype == dtype


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda logits: logits + logits.roll(1, -1),
            r"gives other logits here than in transformers\. They differ by .*, and are at",
        ),
        (lambda logits: logits * torch.nan, r"gives other logits.* They are not finite in float32\. Load it in"),
    ],
)
def test_a_model_whose_logits_are_others_is_refused(change: Callable[[Tensor], Tensor], sentence: str) -> None:
    """Everything that is read off the states would be wrong."""
    hf = tiny_model().hf

    def scaled(*args: Any, **options: Any) -> Any:
        output = type(hf).forward(hf, *args, **options)
        output.logits = change(output.logits)
        return output

    hf.forward = scaled

    with pytest.raises(ModelError, match=sentence):
        from_pretrained_parts(hf, tiny_tokenizer(), "mine")


def test_a_scale_of_the_logits_is_found() -> None:
    """As Cohere's and Granite's."""
    lm = tiny_model("cohere", logit_scale=0.9)
    ids = [[5, 6, 7]]

    assert lm.logit_scale == pytest.approx(0.9)
    with torch.no_grad():
        own, expected = lm.unembed(hidden_states(lm, batch_of(lm, ids))), plain_run(lm, ids)
    torch.testing.assert_close(own, expected)


def test_a_model_that_cannot_read_is_refused() -> None:
    hf = tiny_model().hf
    hf.base_model.layers[1].mlp.up_proj = nn.Linear(5, 24)

    with pytest.raises(ModelError, match=r"'mine' cannot read a text\. RuntimeError: "):
        from_pretrained_parts(hf, tiny_tokenizer(), "mine")


def test_a_model_that_is_partly_on_the_disk_is_refused() -> None:
    hf = tiny_model().hf
    hf.base_model.layers[1].to("meta")

    with pytest.raises(ModelError, match=r"'mine' does not fit into memory\. 'model.layers.1.*' was left on the disk"):
        from_pretrained_parts(hf, tiny_tokenizer(), "mine")


def test_an_adapter_that_is_still_attached_is_refused() -> None:
    peft = pytest.importorskip("peft")
    hf = tiny_model().hf
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["down_proj"]), hf)

    with pytest.raises(ModelError, match=r"of the kind peft\..*Linear holds no plain matrix\..*without adapters"):
        from_pretrained_parts(hf, tiny_tokenizer(), "mine")


def test_parts_in_memory_are_frozen_and_know_their_family() -> None:
    hf = AutoModelForCausalLM.from_config(tiny_model("gpt2").hf.config).train()

    lm = from_pretrained_parts(hf, tiny_tokenizer(), "mine")

    assert lm.name == "mine" and lm.layout.mlp_out == "mlp.c_proj"
    assert not hf.training and not any(p.requires_grad for p in hf.parameters())
