"""FT, FT-M and FT+L against plain fine-tuning of a copied model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rome_core import METHODS, EditRequest, LanguageModel, Prompt, solve
from rome_core.diagnosis.verdict import size_of
from rome_core.editing.teacher_forcing import forced_rows
from rome_core.editing.value import Step
from rome_core.model.edits import dense_delta
from rome_core.model.tokens import target_ids, text_ids
from tests.tiny import REQUEST, random_edit, tiny_model

LONG = EditRequest(REQUEST.prompt, "the city of Rome", "Paris")
REQUESTS = (LONG, EditRequest(Prompt("The capital of {} is", "France"), "London", "Paris"))
LAYER = 1


def plainly(lm: LanguageModel, request: EditRequest, *, forced: bool, lr: float, updates: int, box: float | None):
    """The baseline as the papers describe it: a copy of the model whose own weight is trained by Adam."""
    hf = copy.deepcopy(lm.hf)
    module = hf.get_submodule(lm.down_projection(LAYER))
    weight = module.weight.requires_grad_()
    start = weight.detach().clone()
    adam = torch.optim.Adam([weight], lr=lr)
    front = text_ids(lm.tokenizer, request.prompt.text)
    target = target_ids(lm.tokenizer, request.prompt.text, " " + request.target_new)
    for _ in range(updates):
        logits = hf(input_ids=torch.tensor([front + target[:-1]]), use_cache=False).logits[0]
        places = [len(front) - 1 + (t if forced else 0) for t in range(len(target))]
        loss = nn.functional.cross_entropy(logits[places], torch.tensor(target))
        adam.zero_grad()
        loss.backward()
        adam.step()
        if box is not None:
            with torch.no_grad():
                weight.copy_(start + (weight - start).clamp(-box, box))
    change = (weight - start).detach()
    return change if isinstance(module, nn.Linear) else change.T


@pytest.mark.parametrize(("name", "forced", "box"), [("ft", False, None), ("ft-m", True, None), ("ft-l", False, 0.008)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_what_plain_fine_tuning_does(family: str, name: str, forced: bool, box: float | None) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    kept = copy.deepcopy(lm.hf.state_dict())
    settings = {"layer": LAYER, "lr": 0.01, "steps": 5, "stop_loss": 0.0} | ({"epsilon": box} if box else {})

    edit = solve(lm, [LONG], METHODS[name](**settings))

    plain = plainly(lm, LONG, forced=forced, lr=0.01, updates=4, box=box)
    torch.testing.assert_close(edit.deltas[0].matrix(), plain, rtol=1e-4, atol=1e-6)  # Adam magnifies rounding
    assert len(edit.history) == 5 and edit.history[-1].nll < edit.history[0].nll
    assert all(torch.equal(value, kept[key]) for key, value in lm.hf.state_dict().items())


def test_the_two_losses_differ_on_targets_of_several_tokens() -> None:
    lm = tiny_model()
    ft, ft_m = (solve(lm, [LONG], METHODS[name](layer=LAYER, steps=2)) for name in ("ft", "ft-m"))

    assert ft.history[0].nll != pytest.approx(ft_m.history[0].nll, rel=1e-3)
    assert ft.history[0].p_target == pytest.approx(ft_m.history[0].p_target, rel=1e-5)  # always teacher-forced


def test_ft_l_never_leaves_its_box() -> None:
    lm, seen = tiny_model(), list[Step]()
    box = 2e-3

    edit = METHODS["ft-l"](layer=LAYER, epsilon=box, lr=0.05, steps=12, stop_loss=0.0)
    found = solve(lm, [REQUEST], edit, report=seen.append)

    change = found.deltas[0].matrix()
    assert float(change.abs().max()) == pytest.approx(box, rel=1e-6)  # it reaches the wall and stays inside
    assert all(step.delta_norm <= step.limit * (1 + 1e-6) for step in seen)
    assert seen[0].limit == pytest.approx(box * (lm.d_model * lm.d_mlp) ** 0.5)


def test_weight_decay_pulls_to_zero() -> None:
    lm = tiny_model()
    W = lm.weight(LAYER)
    free, pulled = (
        solve(lm, [REQUEST], METHODS["ft-m"](layer=LAYER, steps=6, stop_loss=0.0, weight_decay=decay))
        for decay in (0.0, 1.0)
    )

    norms = [float((W + edit.deltas[0].matrix()).norm()) for edit in (free, pulled)]
    assert norms[1] < norms[0]
    assert free.history[0].decay == 0 and pulled.history[0].decay == pytest.approx(float(W.square().sum()) / 2)


def test_it_stops_once_the_target_is_likely_enough() -> None:
    edit = solve(tiny_model(), [REQUEST], METHODS["ft-m"](layer=LAYER, lr=0.02, steps=60, stop_loss=4.0))

    assert len(edit.history) < 60 and edit.history[-1].nll < 4.0 <= edit.history[-2].nll


def test_several_facts_are_trained_together_and_on_top_of_edits() -> None:
    lm, below = tiny_model(), random_edit(tiny_model(), 2)
    config = METHODS["ft-m"](layer=LAYER, lr=0.02, steps=30)
    edit = solve(lm, REQUESTS, config, edits=[below])
    pairs = [(r.prompt.text, r.target_new) for r in REQUESTS]

    forced = forced_rows(lm, pairs, 0, [below, edit])
    assert edit.requests == REQUESTS and edit.on == (below.id,)
    assert edit.history[-1].nll < 0.7 * edit.history[0].nll
    now = -forced.mean(forced.log_p(lm, [])[0]).mean()
    last = METHODS["ft-m"](layer=LAYER, lr=0.02, steps=1)
    assert solve(lm, REQUESTS, last, edits=[below, edit]).history[0].nll == pytest.approx(float(now), rel=1e-4)


def test_a_dense_delta_keeps_every_entry() -> None:
    wide = torch.randn(16, 24)
    for matrix in (wide, wide.T):
        delta = dense_delta("m", matrix)
        assert torch.equal(delta.matrix().float(), matrix) and delta.U.shape[1] == 16
        torch.testing.assert_close(delta(torch.eye(matrix.shape[1])), matrix.T)


@pytest.mark.parametrize("name", ["ft", "ft-m", "ft-l"])
def test_a_dense_edit_has_a_size(name: str) -> None:
    lm = tiny_model()
    edit = solve(lm, [REQUEST], METHODS[name](layer=LAYER, steps=3))

    assert size_of(lm, edit).relative_F == pytest.approx(edit.delta_norm / float(lm.weight(LAYER).norm()), rel=1e-6)
