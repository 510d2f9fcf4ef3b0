"""MEND against its equations, written plainly, on tiny models in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rome_core import METHODS, solve
from rome_core.editing.hypernetworks.hypernetwork import describe
from rome_core.editing.hypernetworks.mend import MendNetwork
from tests.tiny import tiny_model
from tests.tiny_networks import FACTS, LONG, gradients_of, network_of, plain_gradients, saved


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_untrained_mend_makes_one_plain_gradient_step(family: str) -> None:
    lm = tiny_model(family, dtype=torch.float64)
    plain = plain_gradients(lm, LONG)

    updates = network_of(lm, MendNetwork).updates(gradients_of(lm, LONG), describe(lm, LONG))

    for update in updates:
        torch.testing.assert_close(update.matrix(), -0.01 * plain[update.module], rtol=1e-6, atol=1e-10)


def test_mend_is_the_papers_equation() -> None:
    lm = tiny_model(dtype=torch.float64)
    network = network_of(lm, MendNetwork, shaken=0.3)
    assert isinstance(network, MendNetwork)
    gradient = gradients_of(lm, LONG)[4]  # the second block's up projection
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


def test_it_takes_several_facts(tmp_path: Path) -> None:
    lm = tiny_model(dtype=torch.float64)
    requests = [LONG, FACTS[1].request]
    edit = solve(lm, requests, METHODS["mend"](checkpoint=saved(lm, network_of(lm, MendNetwork), tmp_path)))

    one, two = (plain_gradients(lm, request) for request in requests)
    for delta in edit.deltas:  # an untrained network: the gradients add up
        both = one[delta.module] + two[delta.module]
        torch.testing.assert_close(delta.matrix(), -0.01 * both, rtol=1e-4, atol=1e-8)
