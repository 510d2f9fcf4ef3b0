"""Windows, and the choice between replay and plain hooks."""

from __future__ import annotations

import pytest
import torch

from rome_core.model.replay import REPLAY, Cell, Window
from rome_core.model.tokens import Prompt
from rome_core.tracing import restoration
from rome_core.tracing.restoration import n_steps, restored_states, window_of
from rome_core.tracing.runs import TraceConfig, TraceRequest, prepare
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is far", "green dragon")
CONFIG = TraceConfig(samples=2, noise_from="vocabulary")


@pytest.mark.parametrize(
    ("layer", "width", "n_layers", "expected"),
    [
        # The paper's window of 10: layers max(0, l − 5) … min(L, l + 5) − 1, clipped and not shifted.
        (0, 10, 48, (0, 5)),
        (4, 10, 48, (0, 9)),
        (5, 10, 48, (0, 10)),
        (20, 10, 48, (15, 25)),
        (43, 10, 48, (38, 48)),
        (47, 10, 48, (42, 48)),
        # A single layer; odd widths have it in the middle; wider than the model is all of it at the middle.
        (0, 1, 48, (0, 1)),
        (47, 1, 48, (47, 48)),
        (20, 5, 48, (18, 23)),
        (1, 2, 48, (0, 2)),
        (2, 13, 4, (0, 4)),
        (0, 200, 4, (0, 4)),
    ],
)
def test_windows(layer: int, width: int, n_layers: int, expected: tuple[int, int]) -> None:
    assert window_of(layer, width, n_layers) == expected


def test_where_replay_is_wrong_plain_hooks_give_the_same() -> None:
    lm = tiny_model()
    runs = prepare(lm, TraceRequest(PROMPT, CONFIG, " far away"))
    cells = [
        Cell(2, 1, resid=1),
        Cell(2, 1, windows=(Window("mlp_out", 0, 3, runs.clean),)),
        Cell(3, 2, windows=(Window("attn_out", 2, 3, runs.clean),)),
        Cell(2, 1, resid=1, windows=(Window("attn_out", 2, 4, runs.corrupted),)),
    ]

    def logits() -> dict[int, torch.Tensor]:
        return {cells.index(c): state for done in restored_states(lm, runs, cells) for c, state in done}

    right = logits()
    lm.forget(REPLAY)
    lm.remember(REPLAY, (), lambda: "Not on this model.")

    found = logits()
    assert sorted(found) == sorted(right) == [0, 1, 2, 3]
    for at, expected in right.items():
        assert found[at].shape == (2, 2, 400)  # draws, tokens of the answer, vocabulary
        torch.testing.assert_close(found[at], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 2**31])
def test_the_number_of_steps_is_known_before(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    lm = tiny_model()
    runs = prepare(lm, TraceRequest(PROMPT, CONFIG, budget=budget))
    cells = [Cell(token, layer, resid=layer) for token in (1, 3) for layer in (0, 2)]

    assert n_steps(lm, runs, cells) == len(list(restored_states(lm, runs, cells)))
    lm.forget(REPLAY)
    lm.remember(REPLAY, (), lambda: "Not on this model.")
    assert n_steps(lm, runs, cells) == len(list(restored_states(lm, runs, cells))) == 4


def test_logits_read_at_once_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    vocabulary = lm.hf.config.vocab_size

    assert restoration._head_rows(lm) == 512
    monkeypatch.setattr(restoration, "HEAD_BYTES", 7 * 4 * vocabulary)
    assert restoration._head_rows(lm) == 7
    monkeypatch.setattr(restoration, "HEAD_BYTES", 1)
    assert restoration._head_rows(lm) == 1


def test_a_budget_is_at_most_half_of_what_the_device_has_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    runs = prepare(lm, TraceRequest(PROMPT, CONFIG, budget=5_000))
    weights = 4 * lm.n_parameters

    assert restoration._budget(lm, runs) == 5_000 and restoration.device_memory(torch.device("cpu")) is None
    for memory, budget in ((weights + 2_000, 1_000), (weights + 20_000, 5_000), (weights - 1, 1)):
        monkeypatch.setattr(restoration, "device_memory", lambda device, memory=memory: memory)
        assert restoration._budget(lm, runs) == budget
