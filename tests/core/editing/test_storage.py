"""Edits as files: what comes back is what was saved, and other programs read it to equal logits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rome_core.editing import storage
from rome_core.editing.edit import Edit, Step, make_edit, merge_edits
from rome_core.editing.hypernetworks.training import KINDS
from rome_core.editing.method import Foreign
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.storage import export_adapter, export_merged, factors, load_edit, save_edit
from rome_core.errors import EditError
from rome_core.model.edits import Delta
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.language_model import LanguageModel, Source
from rome_core.model.loading import load_model
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import REQUEST, plain_run, random_edit, save_model, tiny_model

IDS = [5, 60, 300, 17, 260, 399, 8]


def logits(lm: LanguageModel, *edits: Edit) -> Tensor:
    with torch.no_grad():
        return lm.unembed(hidden_states(lm, batch_of(lm, [IDS]), edits=edits))


def history() -> tuple[Step, ...]:
    return (Step(0, 5.0, 4.0, 0.5, 0.5, 0.02, 1.5, 3.0, 17), Step(1, 1.0, 0.5, 0.25, 0.25, 0.6, 2.5, 3.0, 1))


def tensors(value: object) -> list[Tensor]:
    """Every tensor in a tree of dataclasses and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else vars(value).values() if is_dataclass(value) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("method", [name for name, config in METHODS.items() if name not in KINDS])
def test_a_saved_edit_comes_back_whole(tmp_path: Path, lm: LanguageModel, moments: dict, method: str) -> None:
    settings = {"layer": 2, "clamp": 2.0, "steps": 2, "prefixes": ("", "x. ", "Köln 東京. ")}
    names = {field.name for field in fields(METHODS[method])}
    config = METHODS[method](**{name: value for name, value in settings.items() if name in names})
    requests = [REQUEST, EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")][: 1 + config.batches]
    edit = solve(lm, requests, config, moments=moments, edits=[random_edit(lm, 3)])

    save_edit(edit, tmp_path / "one.safetensors")
    found = load_edit(tmp_path / "one.safetensors", lm)

    torch.testing.assert_close(logits(lm, found), logits(lm, edit), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(lm, found), logits(lm))
    for mine, own in zip(found.deltas, edit.deltas, strict=True):
        assert mine.module == own.module and torch.equal(mine.U, own.U) and torch.equal(mine.V, own.V)
    for name in ("requests", "method", "config", "history", "base", "on", "corpus", "moment_keys", "id"):
        assert getattr(found, name) == getattr(edit, name), name
    assert type(found.config) is type(edit.config) and bool(edit.moment_keys) == (not method.startswith("ft"))
    for mine, own in zip(tensors(found.keys), tensors(edit.keys), strict=True):
        assert torch.equal(mine, own)
    assert len(tensors(edit.keys)) == 0 if method.startswith("ft") else len(tensors(edit.keys)) > 4
    assert config.single_key == (len(tensors(edit.keys)) == 10)  # k*, v*, k_0, v_0, δ, and those behind each prefix
    assert (tmp_path / "one.safetensors").stat().st_size < 50_000


def test_an_edit_of_several_modules_and_ranks_comes_back(tmp_path: Path) -> None:
    lm = tiny_model()
    one, other = random_edit(lm, 1, rank=3), random_edit(lm, 3)
    edit = replace(one, deltas=(*one.deltas, *other.deltas), history=history())

    save_edit(edit, str(tmp_path / "two.safetensors"))

    found = load_edit(str(tmp_path / "two.safetensors"))
    assert found.id == edit.id and found.history == history()
    assert torch.equal(logits(lm, found), logits(lm, edit))


def test_saving_needs_no_contiguous_tensors(tmp_path: Path) -> None:
    lm = tiny_model()
    (delta,) = random_edit(lm).deltas
    shared = torch.randn(24, 1)
    edit = random_edit(lm)
    keys = replace(edit.known_keys, k_star=shared[:, 0], k_0=shared[:, 0])
    edit = replace(edit, deltas=(replace(delta, V=shared.T),), keys=keys)

    save_edit(edit, tmp_path / "one.safetensors")

    assert load_edit(tmp_path / "one.safetensors").id == edit.id


def test_an_edit_of_another_model_is_refused(tmp_path: Path) -> None:
    save_edit(random_edit(tiny_model(seed=1)), tmp_path / "one.safetensors")

    with pytest.raises(EditError, match=r"'one.safetensors' was solved for another model than 'tiny-llama'"):
        load_edit(tmp_path / "one.safetensors", tiny_model())
    load_edit(tmp_path / "one.safetensors")  # looked at without a model it can be


def about(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["edit"])


def rewritten(path: Path, **changes: object) -> None:
    save_file(load_file(path), path, {"edit": json.dumps({**about(path), **changes})})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "a text": lambda path: path.write_text("k* = 3"),
    "weights": lambda path: save_file({"weight": torch.zeros(3)}, path),
    "settings that are no JSON": lambda path: save_file({"weight": torch.zeros(3)}, path, {"edit": "{"}),
    "an unknown method": lambda path: rewritten(path, method="magic"),
    "a module too many": lambda path: rewritten(
        path, modules=[*about(path)["modules"], "model.layers.9.mlp.down_proj"]
    ),
    "a request without braces": lambda path: rewritten(
        path, requests=[{"prompt": {"template": "no braces", "subject": "x"}, "target_new": "", "target_true": None}]
    ),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_an_edit_has_a_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "one.safetensors"
    save_edit(random_edit(tiny_model()), path)
    DAMAGES[damage](path)

    with pytest.raises(EditError, match=r"'one.safetensors' is not an edit saved by ROME Explorer"):
        load_edit(path)


@pytest.mark.parametrize(
    ("delta", "sentence"),
    [
        (
            Delta("model.layers.1.mlp.down_proj", torch.full((16, 1), torch.nan), torch.ones(1, 24)),
            "that is not finite",
        ),
        (
            Delta("model.layers.9.mlp.down_proj", torch.ones(16, 1), torch.ones(1, 24)),
            "which does not fit 'tiny-llama'",
        ),
        (
            Delta("model.layers.1.mlp.down_proj", torch.ones(16, 1), torch.ones(1, 25)),
            "which does not fit 'tiny-llama'",
        ),
        (Delta("lm_head", torch.ones(400, 1), torch.ones(1, 16)), "changes 'lm_head', which does not fit 'tiny-llama'"),
    ],
)
def test_an_update_that_cannot_act_is_refused(tmp_path: Path, delta: Delta, sentence: str) -> None:
    lm = tiny_model()
    save_edit(replace(random_edit(lm), deltas=(delta,)), tmp_path / "one.safetensors")

    with pytest.raises(EditError, match=sentence):
        load_edit(tmp_path / "one.safetensors", lm)


@pytest.mark.parametrize(
    "module",
    ["model", "model.layers.1", "model.layers.1.input_layernorm", "model.layers.1.mlp.act_fn", "model.layers.9.x", ""],
)
def test_what_is_no_matrix_in_the_blocks_cannot_be_named(tmp_path: Path, module: str) -> None:
    lm, path = tiny_model(), tmp_path / "one.safetensors"
    save_edit(random_edit(lm), path)
    rewritten(path, modules=[module])

    with pytest.raises(EditError, match=rf"changes '{module}', which does not fit 'tiny-llama'"):
        load_edit(path, lm)


CRAFTED: dict[str, dict[str, Tensor]] = {
    "a matrix larger than any": {"delta.0.U": torch.ones(2**16, 1), "delta.0.V": torch.ones(1, 2**16)},
    "no rank": {"delta.0.U": torch.ones(16, 0), "delta.0.V": torch.ones(0, 24)},
    "two ranks": {"delta.0.U": torch.ones(16, 2), "delta.0.V": torch.ones(1, 24)},
    "a vector": {"delta.0.U": torch.ones(16)},
    "whole numbers": {"delta.0.U": torch.ones(16, 1, dtype=torch.int64)},
    "a key of another model": {"k_star": torch.ones(25)},
    "a value for each of two requests": {"v_star": torch.ones(2, 16)},
    "keys of a layer beyond": {"extra.keys_9": torch.ones(24, 1)},
    "no prefixed prompts": {"extra.keys": torch.ones(0, 24)},
}


@pytest.mark.parametrize("tensors", CRAFTED.values(), ids=CRAFTED)
def test_shapes_are_seen_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]
) -> None:
    lm, path = tiny_model(), tmp_path / "one.safetensors"
    save_edit(random_edit(lm), path)
    save_file({**load_file(path), **tensors}, path, {"edit": json.dumps(about(path))})
    monkeypatch.setattr(Tensor, "clone", lambda tensor: pytest.fail("a tensor was read"))

    with pytest.raises(EditError, match=r"is not an edit saved by ROME Explorer|does not fit"):
        load_edit(path, lm)


def test_a_description_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.safetensors"
    save_edit(random_edit(tiny_model()), path)
    rewritten(path, on=["x" * 100] * 300)
    assert load_edit(path).on == ("x" * 100,) * 300

    monkeypatch.setattr(storage, "MOST_VALUES", 200)
    with pytest.raises(EditError, match="is not an edit saved by"):
        load_edit(path)
    monkeypatch.setattr(storage, "MOST_HEADER", 20_000)
    with pytest.raises(EditError, match=r"describes itself in [0-9,]+ bytes; at most 20,000 are read"):
        load_edit(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"history": [{**asdict(Step(0, 1, 1, 1, 1, 1, 1, 1, 1)), "loss": "1"}]},
        {"history": [{"loss": 1}]},
        {"corpus": 3},
        {"on": [["x"]]},
        {"moment_keys": {"1": 2}},
        {"moment_keys": ["1"]},
        {"config": [1]},
        {"config": {"steps": "many"}},
        {"requests": []},
        {"modules": []},
        {"requests": [{"prompt": {"template": "{} is", "subject": ["x"]}, "target_new": "a", "target_true": None}]},
    ],
    ids=str,
)
def test_every_field_is_of_its_type(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "one.safetensors"
    save_edit(random_edit(tiny_model()), path)
    rewritten(path, **changes)

    with pytest.raises(EditError, match="is not an edit saved by ROME Explorer"):
        load_edit(path)


@pytest.mark.parametrize("place", ["folder", "file/one.safetensors", "zero\0"])
def test_a_place_that_cannot_be_written_has_a_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    edit = random_edit(tiny_model())

    with pytest.raises(EditError, match="cannot be written"):
        save_edit(edit, tmp_path / place)
    with pytest.raises(EditError, match="cannot be written"):
        export_adapter(edit, tmp_path / "file" if place == "folder" else tmp_path / place)


def test_an_edit_of_another_version_has_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_edit(random_edit(tiny_model()), path)
    rewritten(path, format="rome-explorer edit 99")

    with pytest.raises(EditError, match=r"was saved by another version \(rome-explorer edit 99\)"):
        load_edit(path)


def test_settings_of_a_later_version_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    edit = random_edit(tiny_model())
    save_edit(edit, path)
    rewritten(path, config={**asdict(edit.config), "temperature_of_the_room": 21})

    assert load_edit(path).config == edit.config


def test_factors_of_one_module_are_stacked() -> None:
    lm = tiny_model()
    edits = [random_edit(lm, 1), random_edit(lm, 2, rank=2), random_edit(lm, 1, seed=3)]

    stacked = factors(edits)

    assert list(stacked) == [lm.down_projection(1), lm.down_projection(2)]
    assert stacked[lm.down_projection(1)].U.shape == (16, 2)
    sums = edits[0].deltas[0].matrix() + edits[2].deltas[0].matrix()
    torch.testing.assert_close(stacked[lm.down_projection(1)].matrix(), sums)


@pytest.mark.parametrize("rank", [3, 16])  # 16: every entry of the matrix, as fine-tuning changes it
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_the_adapter_loads_with_peft_to_equal_logits(tmp_path: Path, family: str, rank: int) -> None:
    from peft import PeftModel

    lm = tiny_model(family, layers=12)
    edits = [random_edit(lm, 1), random_edit(lm, 11, rank=rank), random_edit(lm, 1, seed=1)]

    export_adapter(edits, tmp_path / "adapter")

    adapted = PeftModel.from_pretrained(copy.deepcopy(lm.hf), str(tmp_path / "adapter"))
    with torch.no_grad():
        found = adapted(torch.tensor([IDS])).logits
    expected = logits(lm, *edits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(expected, logits(lm), atol=0.1)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_adapter_of_one_edit_names_its_base(tmp_path: Path) -> None:
    lm = tiny_model()

    export_adapter(random_edit(lm), tmp_path, "someone/model")

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/model" and config["r"] == config["lora_alpha"] == 1


def test_an_adapter_names_the_base_of_its_edit_and_loads_with_auto_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lm = load_model(save_model(tiny_model(), tmp_path / "base"), device="cpu")
    edit = make_edit(lm, [REQUEST], Foreign(), random_edit(lm).deltas, [])
    save_edit(edit, tmp_path / "one.safetensors")

    for made in (edit, load_edit(tmp_path / "one.safetensors", lm), edit.scaled(1.0), *merge_edits([edit, edit])):
        export_adapter(made, tmp_path / "adapter")
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))

        assert adapted.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
        with torch.no_grad():
            found = adapted(torch.tensor([IDS])).logits
        torch.testing.assert_close(found, logits(lm, made), rtol=1e-4, atol=1e-4)
    assert str(tmp_path).encode() not in (tmp_path / "one.safetensors").read_bytes()  # of this machine


def test_a_base_from_the_hub_is_named_with_its_commit(tmp_path: Path) -> None:
    edit = replace(random_edit(tiny_model()), source=Source("owner/name", "1f2e"))

    export_adapter([edit], tmp_path)

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "1f2e")


def test_edits_of_two_models_are_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="Edits of different models cannot be one adapter"):
        export_adapter([random_edit(tiny_model()), random_edit(tiny_model(seed=1))], tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_nothing_to_export_has_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="There is no edit to export"):
        export_adapter([], tmp_path)


@pytest.mark.parametrize("rank", [2, 16])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_the_merged_model_loads_with_transformers_to_equal_logits(tmp_path: Path, family: str, rank: int) -> None:
    lm = tiny_model(family)
    weights = copy.deepcopy(lm.hf.state_dict())
    edits = [random_edit(lm, 1, rank=rank), random_edit(lm, 3), random_edit(lm, 1, seed=1)]

    export_merged(lm, edits, tmp_path / "merged")

    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        found = hf(torch.tensor([IDS])).logits
    expected = logits(lm, *edits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert tokenizer("The Eiffel Tower")["input_ids"] == lm.tokenizer("The Eiffel Tower")["input_ids"]
    assert all(torch.equal(weights[name], value) for name, value in lm.hf.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_square_down_projection_is_merged_the_right_way_round(tmp_path: Path, family: str) -> None:
    lm = tiny_model(family, **{"n_inner" if family == "gpt2" else "intermediate_size": 16})
    edit = random_edit(lm)

    export_merged(lm, [edit], tmp_path)

    found = AutoModelForCausalLM.from_pretrained(tmp_path).get_submodule(edit.deltas[0].module)
    written = found.weight if isinstance(found, nn.Linear) else found.weight.T
    torch.testing.assert_close(written, lm.weight(1) + edit.deltas[0].U @ edit.deltas[0].V)


def test_only_edits_of_this_model_are_merged(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="another model"):
        export_merged(tiny_model(), [random_edit(tiny_model(seed=1))], tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_edits_the_merged_model_is_the_model(tmp_path: Path) -> None:
    lm = tiny_model()

    export_merged(lm, [], tmp_path)

    hf = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(hf(torch.tensor([IDS])).logits, plain_run(lm, [IDS]))
