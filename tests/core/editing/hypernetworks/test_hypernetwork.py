"""MEND and KE against their equations, written plainly, on tiny models in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rome_core import METHODS, EditError, EditRequest, LanguageModel, Prompt, load_edit, save_edit, solve
from rome_core.editing.hypernetworks.hypernetwork import (
    Checkpoint,
    HyperNetwork,
    checkpoint_path,
    describe,
    edited_blocks,
    edited_matrices,
    find_checkpoint,
    gradients,
    save_checkpoint,
)
from rome_core.editing.hypernetworks.ke import KeNetwork
from rome_core.editing.hypernetworks.mend import MendNetwork
from rome_core.editing.hypernetworks.training_facts import Lesson, Lessons, outcome
from rome_core.editing.teacher_forcing import forced_rows
from rome_core.facts.datasets import Fact
from rome_core.model.hooks import batch_of, hidden_states
from rome_core.model.tokens import target_ids, text_ids
from tests.tiny import REQUEST, random_edit, tiny_model

LONG = EditRequest(REQUEST.prompt, "the city of Rome", "Paris")
FACTS = [
    Fact("a", "city", REQUEST.prompt, "Paris", "Rome", ("To see the Eiffel Tower, go to", "The Eiffel Tower is in")),
    Fact("b", "city", Prompt("The {} is located in the city of", "Colosseum"), "Rome", "Paris"),
]  # fmt: skip
PIECES = [((5, 60, 300, 17, 260, 9), (8, 7, 6, 50, 40, 30)), ((11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26))]


def network_of(lm: LanguageModel, kind: type[HyperNetwork], *, shaken: float = 0.0) -> HyperNetwork:
    """An untrained network, or one whose every parameter has moved."""
    torch.manual_seed(0)
    network = kind(edited_matrices(lm), **{**kind.sizes(lm), **SMALL[kind]}).to(lm.dtype)  # type: ignore[call-arg]
    network.prepare([found(lm, LONG)])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += shaken * torch.randn_like(parameter)
    return network


SMALL: dict[type[HyperNetwork], dict[str, int]] = {MendNetwork: {"rank": 3}, KeNetwork: {"hidden": 4, "bottleneck": 3}}


def found(lm: LanguageModel, request: EditRequest):
    forced = forced_rows(lm, [(request.prompt.text, request.target_new)], edited_blocks(lm).start)
    return gradients(lm, forced, list(edited_matrices(lm)))


def plain_gradients(lm: LanguageModel, request: EditRequest) -> dict[str, Tensor]:
    """∇_W by autograd on a copy of the whole model, y = W x."""
    hf = copy.deepcopy(lm.hf)
    modules = {path: hf.get_submodule(path) for path in edited_matrices(lm)}
    for module in modules.values():
        module.weight.requires_grad_()
    front = text_ids(lm.tokenizer, request.prompt.text)
    target = target_ids(lm.tokenizer, request.prompt.text, " " + request.target_new)
    logits = hf(input_ids=torch.tensor([front + target[:-1]]), use_cache=False).logits[0, len(front) - 1 :]
    nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
    return {p: m.weight.grad if isinstance(m, nn.Linear) else m.weight.grad.T for p, m in modules.items()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_the_factors_are_the_gradient(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    plain = plain_gradients(lm, LONG)

    assert len(plain) == 3 * (2 if family != "llama" else 3)
    for gradient in found(lm, LONG):
        torch.testing.assert_close(gradient.delta.T @ gradient.x, plain[gradient.module], rtol=1e-7, atol=1e-10)
        assert (gradient.delta.abs().amax(1) > 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_untrained_mend_makes_one_plain_gradient_step(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    plain = plain_gradients(lm, LONG)

    updates = network_of(lm, MendNetwork).updates(found(lm, LONG), describe(lm, LONG))

    for update in updates:
        torch.testing.assert_close(update.matrix(), -0.01 * plain[update.module], rtol=1e-6, atol=1e-10)


def test_mend_is_the_papers_equation() -> None:
    lm = tiny_model(dtype=torch.float64)
    network = network_of(lm, MendNetwork, shaken=0.3)
    assert isinstance(network, MendNetwork)
    gradient = found(lm, LONG)[4]  # the second block's up projection
    kind, index = network.place[gradient.module]
    (update,) = network.updates([gradient], describe(lm, LONG))

    mean, deviation = (network.get_buffer(f"{name}_{kind}")[index].numpy() for name in ("mean", "deviation"))
    z = (np.concatenate([gradient.x.numpy(), gradient.delta.numpy()], 1) - mean) / deviation
    for layer in network.layers[kind]:  # type: ignore[union-attr]
        U, V, b, s, o = (getattr(layer, name).detach().numpy() for name in ("U", "V", "b", "scale", "shift"))
        z = z + np.maximum(0, s[index] * (z @ V.T @ U.T + b) + o[index])
    z = mean + deviation * z
    x, delta = z[:, : lm.d_model], z[:, lm.d_model :]
    alpha = float(network.log_alpha[kind][index].detach().exp())
    np.testing.assert_allclose(update.matrix().detach().numpy(), -alpha * delta.T @ x, rtol=1e-9, atol=1e-12)


def test_an_untrained_ke_makes_no_edit_but_can_learn() -> None:
    lm = tiny_model(dtype=torch.float64)
    network = network_of(lm, KeNetwork)

    nll, kl = outcome(lm, network, lesson(lm))
    nll.backward()

    assert all(not u.matrix().any() for u in network.updates(found(lm, LONG), describe(lm, LONG)))
    assert kl.item() == 0
    assert all(float(head.weight.grad.norm()) > 0 for head in network.heads)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ke_is_the_papers_equation(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    network = network_of(lm, KeNetwork, shaken=0.3)
    plain = plain_gradients(lm, LONG)
    text = describe(lm, LONG)
    _, (last, _) = network.reader(text[:, None])  # type: ignore[operator]
    read = torch.tanh(network.narrow(last.flatten()))  # type: ignore[operator]

    for index, update in enumerate(network.updates(found(lm, LONG), text)):
        out, width = plain[update.module].shape
        gamma, column, alpha, beta, eta = network.heads[index](read).split([out, out, width, width, 1])  # type: ignore[index]
        A = torch.outer(gamma, width * alpha.softmax(0))
        B = torch.outer(column, beta.softmax(0))
        torch.testing.assert_close(
            update.matrix(), eta.sigmoid() * (plain[update.module] * A + B), rtol=1e-7, atol=1e-10
        )


def lesson(lm: LanguageModel) -> Lesson:
    return Lessons(lm, FACTS, PIECES, 0).lesson(FACTS[0], "the city of Rome", random.Random(0))


@pytest.mark.parametrize("kind", [MendNetwork, KeNetwork])
def test_gradients_of_the_training_loss_against_finite_differences(kind: type[HyperNetwork]) -> None:
    lm = tiny_model("gpt2", dtype=torch.float64)  # Llama's norms count in single precision whatever the model's is
    network, one = network_of(lm, kind, shaken=0.1), lesson(lm)
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
    network, one = network_of(lm, kind, shaken=0.1), lesson(lm)
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


def saved(lm: LanguageModel, network: HyperNetwork, folder: Path) -> str:
    path = folder / f"{network.kind}.safetensors"
    training = {"facts": 2, "steps": 1000, "seed": 3}
    save_checkpoint(path, Checkpoint(network, lm.fingerprint, training), edited_matrices(lm))
    return str(path)


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


def test_mend_takes_several_facts_and_ke_one(tmp_path: Path) -> None:
    lm = tiny_model(dtype=torch.float64)
    requests = [LONG, FACTS[1].request]
    edit = solve(lm, requests, METHODS["mend"](checkpoint=saved(lm, network_of(lm, MendNetwork), tmp_path)))

    one, two = (plain_gradients(lm, request) for request in requests)
    for delta in edit.deltas:  # an untrained network: the gradients add up
        both = one[delta.module] + two[delta.module]
        torch.testing.assert_close(delta.matrix(), -0.01 * both, rtol=1e-4, atol=1e-8)
    with pytest.raises(EditError, match="ke edits one fact at a time; 2 were given"):
        solve(lm, requests, METHODS["ke"](checkpoint=saved(lm, network_of(lm, KeNetwork), tmp_path)))
    with pytest.raises(EditError, match="no fact to edit"):
        solve(lm, [], METHODS["mend"]())


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
    monkeypatch.setenv("ROME_EXPLORER_CACHE", str(tmp_path / "cache"))
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
