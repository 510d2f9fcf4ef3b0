"""The whole proof on every family, and that each check fails on what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rome_core import METHODS, EditRequest, ModelError, Prompt, TraceConfig, solve, trace
from rome_core.model import proof
from rome_core.model.generation import generate
from rome_core.model.hooks import attention_pattern, batch_of, hidden_states
from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import from_pretrained_parts
from rome_core.model.proof import CAPABILITIES, TRACED, incapacities, prove
from tests.families import FOUND, MIXTURES
from tests.tiny import (
    FAMILIES,
    REQUEST,
    corrupt,
    plain_run,
    plain_states,
    put,
    random_moment,
    subject_end,
    tiny_model,
    tiny_tokenizer,
    written,
)

PROMPT = REQUEST.prompt
IDS = tiny_tokenizer()(PROMPT.text)["input_ids"]
NOISE = 2 * torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
EVERY = [*FAMILIES, *FOUND, *MIXTURES]


@pytest.mark.parametrize("name", EVERY)
def test_everything_can_be_done_with_every_family_but_experts_edited(name: str) -> None:
    lm = tiny_model(name, proven=True)

    checks = prove(lm)

    assert {capability for check in checks for capability in check.concerns} == set(CAPABILITIES)
    off = set(incapacities(checks))
    assert off == ({"edit", "hypernetworks"} if name in MIXTURES else set()), incapacities(checks)
    assert lm.cannot == incapacities(checks)


@pytest.mark.parametrize("name", EVERY)
def test_a_traced_cell_is_what_plain_hooks_on_the_familys_own_model_give(name: str) -> None:
    """One cell of each kind; the oracle knows the Hugging Face modules and nothing of this project's runs."""
    lm, layer, token = tiny_model(name), 1, 2
    for site in ("resid_post", "mlp_out", "attn_out"):
        path = lm.layout.block(layer) if site == "resid_post" else lm.layout.module(site, layer)
        clean = outputs_of(lm, path)

        found = trace(lm, PROMPT, TraceConfig(site=site, samples=2, window=1), noise=NOISE, answer=" Paris")

        restore = {lm.layout.embed: corrupt(NOISE), path: flat_put(clean[token], token)}
        with torch.no_grad():
            p = plain_run(lm, [IDS] * 2, restore)[:, -1].softmax(-1)
        answer = lm.tokenizer(PROMPT.text + " Paris")["input_ids"][-1]
        assert float(found.probabilities[token, layer]) == pytest.approx(float(p[:, answer].mean()), abs=2e-6), site


def outputs_of(lm: LanguageModel, path: str) -> Tensor:
    """A module's output in the clean run, [pos d], taken before anything can change it."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> None:
        kept.append(output.detach().clone())

    with torch.no_grad():
        plain_run(lm, [IDS], {path: keep})
    return kept[0].reshape(len(IDS), -1)


def flat_put(value: Tensor, token: int) -> Any:
    """As `put`, also where a module writes [batch·pos d]."""
    whole = put(value, token)
    return lambda out: whole(out) if out.dim() == 3 else whole(out.unflatten(0, (-1, len(IDS)))).flatten(0, 1)


@pytest.mark.parametrize("name", [*FAMILIES, *FOUND])
def test_an_edit_acts_as_a_written_weight_and_gives_the_value_at_the_key(name: str) -> None:
    lm = tiny_model(name)
    config = METHODS["r-rome"](layer=1, steps=3, clamp=1.0, prefixes=("", "x. "), ridge=1e-10)

    edit = solve(lm, [REQUEST], config, moments={1: random_moment(lm)})

    W = lm.weight(1).double() + edit.deltas[0].matrix().double()
    torch.testing.assert_close(W @ edit.k_star.double(), edit.v_star.double(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        own = lm.unembed(hidden_states(lm, batch_of(lm, [IDS]), edits=[edit])).softmax(-1)
        torch.testing.assert_close(own, plain_run(written(lm, edit), [IDS]).softmax(-1), rtol=1e-3, atol=1e-5)
    if lm.layout.flat:
        return
    ids, at = subject_end(lm, PROMPT)
    key = plain_states(lm, ids, lm.layout.module("mlp_out", 1))[0][at]
    torch.testing.assert_close(edit.k_0.float(), key.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_in_half_precision_the_proof_holds_within_its_tolerance(name: str) -> None:
    lm = tiny_model(name, dtype=torch.bfloat16, proven=True)

    assert not set(TRACED) & set(lm.cannot), lm.cannot
    assert name in MIXTURES or "edit" not in lm.cannot, lm.cannot
    assert generate(lm, "The Eiffel", 2) is not None


def test_experts_are_traced_and_refused_for_editing_with_the_reason() -> None:
    lm = tiny_model("mixtral")

    with pytest.raises(
        ModelError, match="'tiny-mixtral' cannot be used for this: its MLP has no single matrix W; router"
    ):
        solve(lm, [REQUEST], METHODS["r-rome"](layer=1))
    assert trace(lm, PROMPT, TraceConfig(samples=2, window=2)).complete


# ----------------------------------------------------------------------------------------------- what a check is about


def check(lm: LanguageModel, name: str) -> proof.Check:
    (found,) = [one for one in prove(lm) if one.name == name]
    return found


def test_a_wrong_path_of_w_is_noticed() -> None:
    lm = tiny_model("gemma2")
    wrong = replace(lm, layout=replace(lm.layout, mlp_out="mlp.up_proj"))

    found = check(wrong, "key times W is the MLP's output")
    assert found.passed, "it is a matrix as well"
    assert not check(wrong, "the MLP's output set to itself changes nothing").passed
    assert set(incapacities(prove(wrong))) >= {"trace the MLP", "edit"}


def test_a_scale_behind_w_is_noticed() -> None:
    lm = tiny_model()
    down = lm.hf.get_submodule(lm.down_projection(2))
    down.forward = lambda x, forward=down.forward: 2 * forward(x)  # type: ignore[method-assign]

    assert not check(lm, "key times W is the MLP's output").passed


def test_padding_that_is_seen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    assert check(lm, "padding changes nothing").passed
    plain = lm.hf.base_model.forward
    monkeypatch.setattr(
        lm.hf.base_model,
        "forward",
        lambda **given: plain(**{**given, "attention_mask": torch.ones_like(given["input_ids"])}),
    )

    found = check(lm, "padding changes nothing")

    assert not found.passed and "padding changes what it says" in found.reason


def test_an_attention_without_weights_is_noticed_and_said_where_they_are_asked_for() -> None:
    hf = tiny_model().hf
    hf.set_attn_implementation("sdpa")
    lm = from_pretrained_parts(hf, tiny_tokenizer(), "fast")

    assert set(lm.cannot) == {"attention patterns"}
    with pytest.raises(ModelError, match="its attention shows no pattern"):
        attention_pattern(lm, batch_of(lm, [IDS]), 1)


def test_where_a_cache_does_not_work_text_is_generated_without() -> None:
    lm = tiny_model()
    with_cache = generate(lm, "The Eiffel Tower", 6)

    assert generate(replace(lm, cannot={"cache": "a reason"}), "The Eiffel Tower", 6) == with_cache


def test_what_is_off_is_said_where_it_is_asked_for() -> None:
    lm = replace(tiny_model(), cannot=dict.fromkeys(CAPABILITIES, "of a reason"))

    with pytest.raises(ModelError, match="cannot be used for this: of a reason"):
        trace(lm, PROMPT)
    with pytest.raises(ModelError, match="cannot be used for this: of a reason"):
        solve(lm, [EditRequest(Prompt("The {} is", "Tower"), "x")], METHODS["ft-m"](layer=1))
