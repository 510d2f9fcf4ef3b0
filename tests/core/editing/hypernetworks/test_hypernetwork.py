"""What MEND and KE share: the gradient's factors, the loss of a lesson, and the file of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rome_core import METHODS, EditError, LanguageModel, load_edit, save_edit, solve
from rome_core.editing.hypernetworks.hypernetwork import (
    HyperNetwork,
    checkpoint_path,
    edited_blocks,
    edited_matrices,
    find_checkpoint,
)
from rome_core.editing.hypernetworks.ke import KeNetwork
from rome_core.editing.hypernetworks.mend import MendNetwork
from rome_core.editing.hypernetworks.training_facts import Lesson, outcome
from rome_core.editing.teacher_forcing import forced_rows
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.tokens import text_ids
from tests.tiny import REQUEST, random_edit, tiny_model
from tests.tiny_networks import FACTS, LONG, PIECES, gradients_of, network_of, plain_gradients, saved, some_lesson


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_the_factors_are_the_gradient(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    plain = plain_gradients(lm, LONG)

    assert len(plain) == 3 * (2 if family != "llama" else 3)
    for gradient in gradients_of(lm, LONG):
        torch.testing.assert_close(gradient.delta.T @ gradient.x, plain[gradient.module], rtol=1e-7, atol=1e-10)
        assert (gradient.delta.abs().amax(1) > 0).all()


@pytest.mark.parametrize("kind", [MendNetwork, KeNetwork])
def test_gradients_of_the_training_loss_against_finite_differences(kind: type[HyperNetwork]) -> None:
    lm = tiny_model("gpt2", dtype=torch.float64)  # Llama's norms count in single precision whatever the model's is
    network, one = network_of(lm, kind, shaken=0.1), some_lesson(lm)
    parameters = list(network.parameters())
    loss: Callable[[], Tensor] = lambda: network.loss(*outcome(lm, network, one))  # noqa: E731
    exact = torch.autograd.grad(loss(), parameters)

    draw = torch.Generator().manual_seed(1)
    for parameter, gradient in zip(parameters, exact, strict=True):
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        direction /= direction.norm()
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                ends.append(float(loss()))
                parameter -= step * direction
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", [MendNetwork, KeNetwork])
def test_what_the_training_sees_is_what_the_edit_does(kind: type[HyperNetwork], tmp_path: Path) -> None:
    """NLL and KL of a lesson, again from an edit that was solved with the saved network."""
    lm = tiny_model(dtype=torch.float64)
    network, one = network_of(lm, kind, shaken=0.1), some_lesson(lm)
    edit = solve(lm, [one.request], METHODS[kind.kind](checkpoint=saved(lm, network, tmp_path)))
    nll, kl = outcome(lm, network, one)

    pairs = [(text, "the city of Rome") for text in (FACTS[0].prompt.text, *FACTS[0].paraphrases)]
    forced = forced_rows(lm, pairs, 0, [edit])
    assert -float(forced.mean(forced.log_p(lm, [])[0]).mean()) == pytest.approx(nll.item(), rel=1e-6)
    kls = []
    neighbour = replace(FACTS[0].prompt, subject=FACTS[1].prompt.subject)
    prompts = [[text_ids(lm.tokenizer, prompt.text)] for prompt in (FACTS[1].prompt, neighbour)]
    for unrelated, rows in zip(one.unrelated, (*[p for p in PIECES if same(lm, p, one)], *prompts), strict=True):
        before, after = (
            lm.unembed(hidden_states(lm, batch_of(lm, rows), edits=edits)).log_softmax(-1) for edits in ([], [edit])
        )
        whole = (before.exp() * (before - after)).sum(-1)
        at = [float(whole[r, p]) for r, places in enumerate(unrelated.positions.tolist()) for p in places]
        kls.append(np.mean(at))
    assert np.mean(kls) == pytest.approx(kl.item(), rel=1e-5)  # Llama norms count in single precision


def same(lm: LanguageModel, rows, one: Lesson) -> bool:
    return torch.allclose(hidden_states(lm, batch_of(lm, rows)), one.unrelated[0].before)


# --------------------------------------------------------------------------------------------- the edit and the file


@pytest.mark.parametrize("kind", [MendNetwork, KeNetwork])
def test_an_edit_survives_its_file_and_can_be_scaled(kind: type[HyperNetwork], tmp_path: Path) -> None:
    lm, below = tiny_model(), random_edit(tiny_model(), 3)
    path = saved(lm, network_of(lm, kind, shaken=0.1), tmp_path)
    config = METHODS[kind.kind]
    edit = solve(lm, [REQUEST], config(checkpoint=path), edits=[below])

    save_edit(edit, tmp_path / "edit.safetensors")
    again = load_edit(tmp_path / "edit.safetensors", lm)

    assert again.id == edit.id and again.config == edit.config and again.on == (below.id,)
    assert edit.corpus == "network trained on 2 facts, 1,000 steps, seed 3"
    assert len(edit.deltas) == 9 and edit.delta_norm > 0
    half = solve(lm, [REQUEST], config(checkpoint=path, scale=0.5), edits=[below])
    assert half.delta_norm == pytest.approx(edit.delta_norm / 2, rel=1e-5)
    assert solve(lm, [REQUEST], config(checkpoint=path)).id != edit.id


@pytest.mark.parametrize("name", ["mend", "ke"])
def test_without_a_network_it_says_how_to_train_one(name: str) -> None:
    with pytest.raises(EditError, match=rf"no {name.upper()} network for 'tiny-llama' yet. .*rome-train {name}"):
        solve(tiny_model(), [REQUEST], METHODS[name]())


def test_a_network_of_another_model_is_refused(tmp_path: Path) -> None:
    other = tiny_model(seed=1)
    path = saved(other, network_of(other, MendNetwork), tmp_path)

    with pytest.raises(EditError, match=r"'mend.safetensors' was trained for another model than 'tiny-llama'"):
        solve(tiny_model(), [REQUEST], METHODS["mend"](checkpoint=path))


def test_a_network_of_another_kind_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    lm = tiny_model()
    path = saved(lm, network_of(lm, MendNetwork), tmp_path)

    with pytest.raises(EditError, match=r"'mend.safetensors' holds no KE network of this version"):
        solve(lm, [REQUEST], METHODS["ke"](checkpoint=path))
    Path(path).write_bytes(Path(path).read_bytes()[:-20])
    for damaged in (path, str(tmp_path / "none.safetensors")):
        with pytest.raises(EditError, match=r"is not a hypernetwork's file.*rome-train mend"):
            solve(lm, [REQUEST], METHODS["mend"](checkpoint=damaged))


def test_ones_own_network_comes_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    monkeypatch.setattr("rome_core.editing.hypernetworks.hypernetwork.SHIPPED", tmp_path)
    own = checkpoint_path(lm, "ke")
    (tmp_path / own.name).touch()
    assert find_checkpoint(lm, "ke") == tmp_path / own.name

    own.parent.mkdir(parents=True)
    own.touch()
    assert find_checkpoint(lm, "ke") == own


def test_the_last_three_blocks_are_edited() -> None:
    assert list(edited_blocks(tiny_model(layers=5))) == [2, 3, 4] and list(edited_blocks(tiny_model(layers=2))) == [
        0,
        1,
    ]
    shapes = edited_matrices(tiny_model("gpt2"))
    assert shapes["transformer.h.1.mlp.c_fc"] == (24, 16) and shapes["transformer.h.3.mlp.c_proj"] == (16, 24)
