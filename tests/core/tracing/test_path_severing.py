"""Severed paths, against whole runs with hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import trace
from rome_core.tracing.path_severing import path_severing_steps
from rome_core.tracing.runs import TraceConfig, TraceRequest, draw_noise, prepare
from tests.tiny import FAMILIES, corrupt, plain_run, plain_states, put, tiny_model, tiny_tokenizer

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
IDS = tiny_tokenizer()(PROMPT.text)["input_ids"]
TOKEN = 2  # the subject's last
CONFIG = TraceConfig(site="resid_post", samples=3, noise_from="vocabulary", noise_scale=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_curves_are_runs_with_the_outputs_above_held(family: str) -> None:
    lm = tiny_model(family)
    noise, _ = draw_noise(lm, CONFIG, 2)
    embed = {lm.layout.embed: corrupt(noise)}
    answer = int(plain_run(lm, [IDS])[0, -1].argmax())
    *_, result = path_severing_steps(lm, prepare(lm, TraceRequest(PROMPT, CONFIG)))

    def p(hooks: dict) -> float:
        return float(plain_run(lm, [IDS] * 3, hooks)[:, -1].double().softmax(-1)[:, answer].mean())

    held: dict[str, Tensor] = {}

    def remember(path: str):
        def see(out: Tensor) -> Tensor:
            held[path] = out[:, TOKEN].clone()
            return out

        return see

    paths = {s: [lm.layout.module(s, layer) for layer in range(4)] for s in ("mlp_out", "attn_out")}
    base = p({**embed, **{path: remember(path) for every in paths.values() for path in every}})
    for layer in range(4):
        clean = plain_states(lm, IDS, lm.layout.block(layer))[1][TOKEN]
        restore = {**embed, lm.layout.block(layer): put(clean, TOKEN)}
        assert float(result.plain[layer]) == pytest.approx(p(restore) - base, abs=1e-6)
        for curve, site in ((result.without_mlp, "mlp_out"), (result.without_attention, "attn_out")):
            frozen = {path: put(held[path], TOKEN) for path in paths[site][layer + 1 :]}
            assert float(curve[layer]) == pytest.approx(p({**restore, **frozen}) - base, abs=1e-6)
    assert torch.equal(result.through_mlp, result.plain - result.without_mlp)
    assert float(result.through_mlp[-1]) == 0  # above the last block there is nothing to sever


def test_the_plain_curve_is_the_heat_maps_row() -> None:
    lm = tiny_model("llama")
    row = trace(lm, PROMPT, CONFIG).indirect_effect[TOKEN]
    *_, result = path_severing_steps(lm, prepare(lm, TraceRequest(PROMPT, CONFIG)))
    torch.testing.assert_close(result.plain, row, atol=1e-7, rtol=1e-4)
