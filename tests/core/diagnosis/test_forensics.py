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


def peft_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapters_scaling_counts(tmp_path: Path) -> None:
    lm = tiny_model()
    edit = random_edit(lm, rank=2)
    adapter(lm, edit, tmp_path)
    for changes, factor in (
        ({"lora_alpha": 8, "alpha_pattern": {}}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {}, "use_rslora": True}, 8 / 2**0.5),
        ({"use_rslora": False, "alpha_pattern": {"layers.1.mlp.down_proj": 1}}, 0.5),
    ):
        peft_config(tmp_path, **changes)
        (found,) = changes_of(lm, tmp_path)
        assert found.delta is not None
        np.testing.assert_allclose(
            found.delta.matrix().numpy(), factor * edit.deltas[0].matrix().numpy(), rtol=1e-4, atol=1e-6
        )


def break_adapter(folder: Path, lm: LanguageModel) -> None:
    adapter(lm, random_edit(lm), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no")


def dora(folder: Path, lm: LanguageModel) -> None:
    adapter(lm, random_edit(lm), folder)
    peft_config(folder, use_dora=True)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (break_adapter, r"The adapter in .* cannot be read\. .* It needs adapter_config.json"),
        (dora, r"is an adapter of type DoRA. LoRA adapters can be read\."),
        (
            lambda to, _: export_adapter(random_edit(tiny_model("gpt2")), to),
            r"The adapter changes 'transformer.h.1.mlp.c_proj', which 'tiny-llama' does not have\.",
        ),
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
