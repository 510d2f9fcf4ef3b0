"""KE against its equations, written plainly, on tiny models in float64."""

from __future__ import annotations

import pytest
import torch

from rome_core.editing.hypernetworks.hypernetwork import describe
from rome_core.editing.hypernetworks.ke import KeNetwork
from rome_core.editing.hypernetworks.training_facts import outcome
from tests.tiny import tiny_model
from tests.tiny_networks import LONG, gradients_of, network_of, plain_gradients, some_lesson


def test_an_untrained_ke_makes_no_edit_but_can_learn() -> None:
    lm = tiny_model(dtype=torch.float64)
    network = network_of(lm, KeNetwork)

    nll, kl = outcome(lm, network, some_lesson(lm))
    nll.backward()

    assert all(not u.matrix().any() for u in network.updates(gradients_of(lm, LONG), describe(lm, LONG)))
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

    for index, update in enumerate(network.updates(gradients_of(lm, LONG), text)):
        out, width = plain[update.module].shape
        gamma, column, alpha, beta, eta = network.heads[index](read).split([out, out, width, width, 1])  # type: ignore[index]
        A = torch.outer(gamma, width * alpha.softmax(0))
        B = torch.outer(column, beta.softmax(0))
        torch.testing.assert_close(
            update.matrix(), eta.sigmoid() * (plain[update.module] * A + B), rtol=1e-7, atol=1e-10
        )
