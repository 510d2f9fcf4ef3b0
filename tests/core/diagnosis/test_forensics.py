"""Edited checkpoints and adapters taken apart: the factors that were put in come out, and the model comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rome_core.diagnosis.forensics import as_edit, changes_of, promoted, suspects
from rome_core.editing.edit import Edit
from rome_core.editing.storage import export_adapter, export_merged
from rome_core.errors import EditError, ModelError
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import load_model
from rome_core.model.tokens import Prompt
from tests.tiny import REQUEST, plain_key, random_edit, tiny_model

IDS = [5, 60, 300, 17, 260]
Export = Callable[[LanguageModel, Edit, Path], None]


def merged(lm: LanguageModel, edit: Edit, folder: Path) -> None:
    export_merged(lm, [edit], folder)


def adapter(lm: LanguageModel, edit: Edit, folder: Path) -> None:
    export_adapter(edit, folder)


def logits(lm: LanguageModel, *edits: Edit) -> torch.Tensor:
    with torch.no_grad():
        return lm.unembed(hidden_states(lm, batch_of(lm, [IDS]), edits=edits))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("export", [merged, adapter])
@pytest.mark.parametrize("rank", [1, 3])
def test_layer_rank_and_factors_come_out(tmp_path: Path, family: str, export: Export, rank: int) -> None:
    lm = tiny_model(family)
    edit = random_edit(lm, 2, rank=rank)
    export(lm, edit, tmp_path)
    expected = edit.deltas[0].matrix().numpy()

    (found,) = changes_of(lm, tmp_path)

    assert (found.layer, found.rank, found.module) == (2, rank, lm.down_projection(2))
    assert found.delta is not None
    np.testing.assert_allclose(found.delta.matrix().numpy(), expected, atol=1e-5)
    singular = np.linalg.svd(expected, compute_uv=False)[:rank]
    np.testing.assert_allclose(found.energy, singular**2 / (singular**2).sum(), rtol=1e-3)
    W = lm.weight(2).double().numpy()
    assert found.relative == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(W), rel=1e-4)


@pytest.mark.parametrize("export", [merged, adapter])
def test_the_overlay_is_the_edited_model_and_its_negative_the_base(tmp_path: Path, export: Export) -> None:
    lm = tiny_model("llama")
    one, other = random_edit(lm, 1), random_edit(lm, 3, rank=2, seed=1)
    edit = replace(one, deltas=(*one.deltas, *other.deltas))
    export(lm, edit, tmp_path)

    found = as_edit(lm, changes_of(lm, tmp_path), REQUEST)

    torch.testing.assert_close(logits(lm, found), logits(lm, edit), rtol=1e-4, atol=1e-4)
    if export is merged:
        edited = load_model(tmp_path, device="cpu")
        torch.testing.assert_close(logits(edited), logits(lm, edit), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            logits(edited, replace(found.scaled(-1.0), base=edited.fingerprint)), logits(lm), rtol=1e-4, atol=1e-4
        )


def test_the_model_itself_has_no_changes(tmp_path: Path) -> None:
    lm = tiny_model()
    export_merged(lm, [], tmp_path)

    assert changes_of(lm, tmp_path) == ()
    with pytest.raises(EditError, match="Nothing was changed"):
        as_edit(lm, (), REQUEST)


def test_rounding_to_a_lower_precision_is_no_change_and_hides_no_edit(tmp_path: Path) -> None:
    lm = tiny_model()
    export_merged(lm, [random_edit(lm, 1, size=1.0)], tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, {"format": "pt"})

    (found,) = changes_of(lm, tmp_path)

    assert (found.layer, found.rank) == (1, 1)
    assert found.energy[0] > 0.99


def test_a_changed_norm_is_reported_and_cannot_be_an_overlay(tmp_path: Path) -> None:
    lm = tiny_model()
    export_merged(lm, [], tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if "norm" in name)
    save_file({**weights, name: weights[name] + 1}, file, {"format": "pt"})

    (found,) = changes_of(lm, tmp_path)

    assert (found.weight, found.delta, found.layer, found.rank) == (name, None, None, 0)
    with pytest.raises(EditError, match=r"cannot be made an overlay: .* Load the base model"):
        as_edit(lm, [found], REQUEST)
    with pytest.raises(EditError, match="is no down projection"):
        suspects(lm, found)


def test_the_subject_that_was_edited_is_found_and_its_value_promotes_the_target(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    prompts = [Prompt("The {} is far", name) for name in ("Eiffel Tower", "Colosseum", "green dragon", "Zürich")]
    keys = [plain_key(lm, prompt) for prompt in prompts]
    value = lm.hf.get_output_embeddings().weight[77].detach()
    delta = replace(random_edit(lm).deltas[0], U=value[:, None], V=keys[2][None] / keys[2].norm() ** 2)
    adapter(lm, replace(random_edit(lm), deltas=(delta,)), tmp_path)
    (change,) = changes_of(lm, tmp_path)

    (first, *_) = ranked = suspects(lm, change, prompts, k=4)

    assert first.subject == "green dragon" and abs(first.response) == pytest.approx(1.0, abs=1e-4)
    assert [abs(s.response) for s in ranked] == sorted((abs(s.response) for s in ranked), reverse=True)
    normed = lm.module(lm.layout.norm)(value[None])
    expected = int(lm.unembed(normed)[0].argmax())
    token, _ = promoted(lm, change, first.response)[0]
    assert token == lm.tokenizer.decode([expected])


def rewrite(made: None, folder: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Change a folder of one file, tensor by tensor."""
    (file,) = folder.glob("*.safetensors")
    weights = [change(name, value) for name, value in load_file(file).items()]
    save_file({name: value for part in weights for name, value in part.items()}, file, {"format": "pt"})


def gptq(folder: Path, lm: LanguageModel) -> None:
    export_merged(lm, [], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: f"base_model.model.{name}",
    ],
    ids=["module.", "module._orig_mod.", "model.", "without model.", "base_model.model."],
)
def test_names_with_a_prefix_more_or_less_are_the_models_own(tmp_path: Path, name: Callable[[str], str]) -> None:
    lm = tiny_model()
    rewrite(export_merged(lm, [random_edit(lm)], tmp_path), tmp_path, lambda k, v: {name(k): v})

    found = changes_of(lm, tmp_path)

    assert [change.weight for change in found] == [DOWN]
    assert (found.compared, found.not_compared) == (len(lm.hf.state_dict()), {})


def test_what_was_not_compared_is_named(tmp_path: Path) -> None:
    lm = tiny_model()

    def change(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        if name == DOWN:  # the edited one is lost, under another name it is there
            return {"wrapped." + name: value}
        return {name: value, "module." + name: value.clone()} if name == "model.norm.weight" else {name: value}

    rewrite(export_merged(lm, [random_edit(lm)], tmp_path), tmp_path, change)
    (tmp_path / "consolidated.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())

    found = changes_of(lm, tmp_path)

    assert found == ()
    assert found.compared == len(lm.hf.state_dict()) - 1
    twice = found.not_compared.keys() & {"model.norm.weight", "module.model.norm.weight"}  # whichever comes later
    assert found.not_compared == {
        "consolidated.safetensors": "no model is loaded from this file",
        "wrapped." + DOWN: "tiny-llama has no such weight",
        **dict.fromkeys(twice, "model.norm.weight is there under another name, too"),
        DOWN: f"{tmp_path.name} does not hold it",
    }
    assert len(twice) == 1


def test_a_head_that_is_the_embedding_is_stored_once(tmp_path: Path) -> None:
    lm = tiny_model(tie_word_embeddings=True)
    export_merged(lm, [], tmp_path)
    assert changes_of(lm, tmp_path).not_compared == {}

    head = lm.hf.get_output_embeddings().weight.detach() + 1
    rewrite(None, tmp_path, lambda k, v: {k: v, "lm_head.weight": head})

    assert [change.weight for change in changes_of(lm, tmp_path)] == ["lm_head.weight"]


def test_what_the_model_makes_anew_is_not_compared(tmp_path: Path) -> None:
    lm = tiny_model("gpt2")
    mask = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    rewrite(export_merged(lm, [], tmp_path), tmp_path, lambda k, v: {k: v, "transformer.h.0.attn.bias": mask.clone()})

    assert changes_of(lm, tmp_path).not_compared == {}


def test_a_changed_head_is_told_but_is_no_overlay(tmp_path: Path) -> None:
    """The head reads states when the pass with its overlays is over: it would do nothing."""
    lm = tiny_model()
    export_merged(lm, [], tmp_path)
    u, v = torch.randn(400, 1), torch.randn(1, 16)
    rewrite(None, tmp_path, lambda k, w: {k: w + u @ v if k == "lm_head.weight" else w})

    (found,) = changes_of(lm, tmp_path)

    assert (found.weight, found.rank, found.layer) == ("lm_head.weight", 1, None)
    with pytest.raises(EditError, match=r"'lm_head.weight' cannot be made an overlay: it is outside the blocks"):
        as_edit(lm, [found], REQUEST)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda to, lm: rewrite(export_merged(lm, [], to), to, lambda k, v: {k: v.to(torch.float8_e4m3fn)}),
            r"has quantised weights\. '.*' is of type F8_E4M3;",
        ),
        (gptq, r"has quantised weights\. They stand for others, which cannot be compared\."),
        (
            lambda to, _: export_merged(tiny_model("llama", intermediate_size=32), [], to),
            r"has shape .*; 'tiny-llama' has .* there\. It is a checkpoint of another model\.",
        ),
        (
            lambda to, _: export_merged(tiny_model("gpt2"), [], to),
            r"has no weight with a name that 'tiny-llama' has\.",
        ),
        (
            lambda to, lm: export_merged(lm, [random_edit(lm, size=float("inf"))], to),
            r"holds numbers that are not finite\.",
        ),
        (lambda to, _: (to / "model.safetensors").write_bytes(b"{}"), r"'model.safetensors' cannot be read\."),
        (
            lambda to, _: (to / "notes.txt").write_text("hello"),
            r"holds no safetensors\. It has notes.txt\. Give a folder",
        ),
    ],
)
def test_each_wrong_folder_has_its_sentence(
    tmp_path: Path, make: Callable[[Path, LanguageModel], object], sentence: str
) -> None:
    lm = tiny_model("llama")
    make(tmp_path, lm)

    with pytest.raises(ModelError, match=sentence):
        changes_of(lm, tmp_path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a folder\. Give the folder of an edited checkpoint"):
        changes_of(tiny_model(), tmp_path / "nowhere")
