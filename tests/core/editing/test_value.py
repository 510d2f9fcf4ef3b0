"""v*: tokens, keys, the fast path against the plain one, and every term of the loss written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rome_core.editing.edit import Step
from rome_core.editing.method import AddedTo
from rome_core.editing.methods.rome import RRome
from rome_core.editing.value import (
    final_by_hooks,
    final_by_replay,
    keys_of,
    optimise_delta,
    prompts_of,
    sampled_prefixes,
)
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import FAMILIES, plain_run, plain_states, random_edit, subject_end, tiny_model, watch

PREFIXES = ("", "x. ", "The green dragon is far away. ")
REQUESTS = {
    "middle": EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome"),
    "first": EditRequest(Prompt("{} is the capital of", "Paris"), "Italy, far"),
    "last": EditRequest(Prompt("Far away is {}", "Zürich"), "the city of Paris"),
}
SETTINGS = RRome(steps=4, lr=0.5, clamp=4.0, kl_weight=0.0625, decay=0.5, stop_loss=0.0, kl_at="subject")
LAYER = 1
each_family = pytest.mark.parametrize("family", FAMILIES)


def fronts(lm, request: EditRequest) -> list[list[int]]:
    """Token ids of the prefixed prompts, written out."""
    text = request.prompt.text
    return [lm.tokenizer(prefix + text)["input_ids"] for prefix in PREFIXES]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_rows_are_prompt_and_target_tokens_in_one_column(name: str) -> None:
    lm, request = tiny_model(), REQUESTS[name]
    target = lm.tokenizer(request.prompt.text + " " + request.target_new)["input_ids"][len(fronts(lm, request)[0]) :]

    prompts = prompts_of(lm, request, PREFIXES)

    rows = [row[mask].tolist() for row, mask in zip(prompts.batch.ids, prompts.batch.mask, strict=True)]
    essence = lm.tokenizer(request.prompt.subject + " is a")["input_ids"]
    assert rows == [front + target[:-1] for front in fronts(lm, request)] + [essence]
    assert prompts.targets == tuple(target) and prompts.rows == slice(0, 3) and prompts.essence == 3
    for r, front in enumerate(fronts(lm, request)):
        start = prompts.batch.column[r]
        assert prompts.column - start == subject_end(lm, request.prompt, PREFIXES[r])[1]
        last = start + len(front) - 1
        assert prompts.positions[r].tolist() == [last + t for t in range(len(target))]
    assert prompts.kl_column == prompts.column
    end = prompts_of(lm, request, PREFIXES, "prompt end")
    assert end.kl_column == end.batch.column[3] + len(essence) - 1


def test_without_the_empty_prefix_the_bare_prompt_is_there_but_does_not_count() -> None:
    lm, request = tiny_model(), REQUESTS["middle"]
    with_bare, without = (prompts_of(lm, request, prefixes) for prefixes in (PREFIXES, PREFIXES[1:]))

    assert torch.equal(with_bare.batch.ids, without.batch.ids)
    assert (with_bare.rows, without.rows) == (slice(0, 3), slice(1, 3))
    assert torch.equal(with_bare.positions[1:], without.positions)


@each_family
def test_keys_and_values_are_those_of_single_unpadded_prompts(family: str) -> None:
    lm, request = tiny_model(family), REQUESTS["middle"]
    path = lm.layout.module("mlp_out", LAYER)
    edit = random_edit(lm, 0)

    for edits in ([], [edit]):
        keys = keys_of(lm, prompts_of(lm, request, PREFIXES), LAYER, edits)

        W = lm.weight(LAYER)
        for i, prefix in enumerate(PREFIXES):
            torch.testing.assert_close(keys.values[i], W @ keys.keys[i], rtol=1e-4, atol=1e-4)
            if not edits:
                ids, at = subject_end(lm, request.prompt, prefix)
                key, value = plain_states(lm, ids, path)
                torch.testing.assert_close(keys.keys[i], key[at], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(keys.values[i] + keys.bias, value[at], rtol=1e-4, atol=1e-4)
        assert torch.equal(keys.k_0, keys.keys[0]) and torch.equal(keys.v_0, keys.values[0])


@each_family
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("added_to", ["mlp_out", "resid_post"])
def test_replay_gives_what_whole_passes_give(family: str, name: str, added_to: AddedTo) -> None:
    """For δ = 0 and another, in padded rows of different length, on top of another edit."""
    lm = tiny_model(family)
    prompts = prompts_of(lm, REQUESTS[name], PREFIXES)
    edits = [random_edit(lm, 2)]
    fast, plain = (f(lm, prompts, LAYER, edits, added_to) for f in (final_by_replay, final_by_hooks))
    there = prompts.batch.mask[:, prompts.column :]

    with torch.no_grad():
        for delta in (torch.zeros(16), torch.randn(16, generator=torch.Generator().manual_seed(0))):
            torch.testing.assert_close(fast(delta)[there], plain(delta)[there], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "mistral", "gemma3_text"])
def test_after_equal_steps_both_paths_have_one_delta(family: str) -> None:
    lm = tiny_model(family)
    prompts = prompts_of(lm, REQUESTS["middle"], PREFIXES)
    v_0 = keys_of(lm, prompts, LAYER, []).v_0
    settings = replace(SETTINGS, steps=8, lr=0.1)

    (fast, steps), (plain, _) = (
        optimise_delta(lm, prompts, v_0, final(lm, prompts, LAYER, []), settings)
        for final in (final_by_replay, final_by_hooks)
    )

    assert (fast - plain).norm() < 1e-3 * plain.norm()
    assert plain.norm() > 0.1 and steps[-1].nll < steps[0].nll


def loss_by_hand(lm, request: EditRequest, delta: Tensor, settings: RRome) -> dict[str, float]:
    """SPEC section 2, one prompt at a time on the Hugging Face model, log-probabilities in float64."""
    path = lm.layout.module("mlp_out", LAYER)
    target = lm.tokenizer(request.prompt.text + " " + request.target_new)["input_ids"][len(fronts(lm, request)[0]) :]

    def log_probs(prompt: Prompt, more: list[int], change: Tensor) -> Tensor:
        ids, at = subject_end(lm, prompt)

        def add(out: Tensor) -> Tensor:
            return torch.cat([out[:, :at], out[:, at : at + 1] + change, out[:, at + 1 :]], 1)

        return plain_run(lm, [ids + more], {path: add})[0].double().log_softmax(-1)

    nll = []
    for prefix, front in zip(PREFIXES, fronts(lm, request), strict=True):
        log_p, start = log_probs(request.prompt.behind(prefix), target[:-1], delta), len(front) - 1
        nll.append(-sum(float(log_p[start + t, token]) for t, token in enumerate(target)) / len(target))
    essence = Prompt("{} is a", request.prompt.subject)
    at = subject_end(lm, essence)[1] if settings.kl_at == "subject" else -1
    edited, original = log_probs(essence, [], delta)[at], log_probs(essence, [], 0 * delta)[at]
    ids, end = subject_end(lm, request.prompt)
    _, v_0 = plain_states(lm, ids, path)
    first = log_probs(request.prompt, [], delta)[-1]
    terms = {
        "nll": sum(nll) / len(nll),
        "kl": settings.kl_weight * float((edited.exp() * (edited - original)).sum()),
        "decay": settings.decay * float(delta.norm() / v_0[end].norm() ** 2),
        "p_target": sum(math.exp(-x) for x in nll) / len(nll),
        "rank": 1 + int((first > first[target[0]]).sum()),
    }
    return {**terms, "loss": terms["nll"] + terms["kl"] + terms["decay"]}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("kl_at", ["subject", "prompt end"])
def test_every_term_of_the_loss_is_the_papers(family: str, name: str, kl_at: str) -> None:
    lm, request = tiny_model(family), REQUESTS[name]
    settings = replace(SETTINGS, kl_at=kl_at, steps=3)
    prompts = prompts_of(lm, request, PREFIXES, kl_at)
    keys = keys_of(lm, prompts, LAYER, [])

    delta, history = optimise_delta(
        lm, prompts, keys.v_0 + keys.bias, final_by_replay(lm, prompts, LAYER, []), settings
    )

    assert [step.index for step in history] == [0, 1, 2]
    for step, at in ((history[0], torch.zeros(16)), (history[-1], delta)):  # the last step is taken at the final δ
        for term, expected in loss_by_hand(lm, request, at, settings).items():
            assert getattr(step, term) == pytest.approx(expected, rel=1e-3, abs=1e-5), (step.index, term)
        assert step.delta_norm == pytest.approx(float(at.norm()), rel=1e-6)
    assert history[0].kl == pytest.approx(0, abs=1e-6) and history[0].decay == 0.0


def test_the_first_update_is_adams() -> None:
    """Adam's first step moves every entry by lr against the sign of its gradient, here by finite differences."""
    lm, request = tiny_model("gpt2", dtype=torch.float64), REQUESTS["middle"]
    settings = replace(SETTINGS, steps=2, lr=0.01)
    prompts = prompts_of(lm, request, PREFIXES)
    v_0 = keys_of(lm, prompts, LAYER, []).v_0.double()
    size = 1e-5

    delta, _ = optimise_delta(lm, prompts, v_0, final_by_replay(lm, prompts, LAYER, []), settings)

    for i in (0, 7, 15):
        up, down = (loss_by_hand(lm, request, s * size * torch.eye(16).double()[i], settings) for s in (1, -1))
        slope = (up["nll"] + up["kl"] - down["nll"] - down["kl"]) / (2 * size)
        assert float(delta[i]) == pytest.approx(-0.01 * math.copysign(1, slope), rel=1e-3)


def optimised(settings: RRome, **options) -> tuple[Tensor, tuple[Step, ...], float]:
    lm = tiny_model()
    prompts = prompts_of(lm, REQUESTS["middle"], PREFIXES)
    v_0 = keys_of(lm, prompts, LAYER, []).v_0
    delta, history = optimise_delta(lm, prompts, v_0, final_by_replay(lm, prompts, LAYER, []), settings, **options)
    return delta, history, float(v_0.norm())


@pytest.mark.parametrize("clamp", [0.1, 0.5, 4.0])
def test_the_clamp_is_never_exceeded(clamp: float) -> None:
    delta, history, norm = optimised(replace(SETTINGS, steps=8, lr=2.0, clamp=clamp))

    assert {step.limit for step in history} == {clamp * norm}
    assert all(step.delta_norm <= clamp * norm * (1 + 1e-6) for step in history)
    if clamp < 1:  # at this learning rate it is reached
        assert float(delta.norm()) == pytest.approx(clamp * norm, rel=1e-5)


def test_20_steps_are_19_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[int] = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (updates.append(1), step(self))[1])

    _, history, _ = optimised(replace(SETTINGS, steps=20))

    assert len(history) == 20 and len(updates) == 19


def test_one_step_looks_and_changes_nothing() -> None:
    delta, history, _ = optimised(replace(SETTINGS, steps=1))

    assert len(history) == 1 and torch.equal(delta, torch.zeros(16))


def test_it_stops_below_the_stop_loss_at_once() -> None:
    _, whole, _ = optimised(replace(SETTINGS, steps=12, lr=0.2))
    third = whole[3].loss
    assert all(step.loss > third for step in whole[:3])

    delta, history, _ = optimised(replace(SETTINGS, steps=12, lr=0.2, stop_loss=third * (1 + 1e-6)))

    assert [step.loss for step in history] == [step.loss for step in whole[:4]]
    assert float(delta.norm()) == pytest.approx(history[-1].delta_norm)  # not updated after the last look


def test_every_step_is_reported_as_it_comes_and_raising_stops() -> None:
    seen: list[Step] = []

    def report(step: Step) -> None:
        seen.append(step)
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimised(SETTINGS, report=report)
    assert [step.index for step in seen] == [0, 1, 2]
    labels: list[tuple[str, int]] = []
    _, history, _ = optimised(SETTINGS, track=watch(labels))
    assert labels == [("Optimising v*", 4)] and history[:3] == tuple(seen)


def test_prefixes_are_the_empty_one_and_twenty_seeded_texts() -> None:
    lm = tiny_model()
    prefixes = sampled_prefixes(lm, seed=0)

    assert prefixes[0] == "" and len(prefixes) <= 21
    assert all(prefix.endswith(". ") and "{}" not in prefix for prefix in prefixes[1:])
    assert sampled_prefixes(lm, seed=0) == prefixes != sampled_prefixes(lm, seed=1)
