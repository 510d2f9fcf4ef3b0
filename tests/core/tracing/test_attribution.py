"""The preview, against a gradient taken by hand and against the exact map where a linear approximation is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from rome_core.model.tokens import Prompt
from rome_core.tracing.attribution import average_ranks, compare_with_exact, preview, previews
from rome_core.tracing.heat_map import trace
from rome_core.tracing.runs import TraceConfig, TraceRequest, prepare
from tests.tiny import corrupt, plain_run, plain_states, random_edit, tiny_model, tiny_tokenizer, written

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
IDS = tiny_tokenizer()(PROMPT.text)["input_ids"]
CONFIG = TraceConfig(site="resid_post", samples=2, window=1, noise_from="vocabulary", noise_scale=1.0)
SITES = ("resid_post", "mlp_out", "attn_out")
NOISE = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))


def by_hand(lm, site: str, token: int, layer: int, score) -> float:
    """(h_clean − h_corrupted)·∂score/∂h at one state: a variable is added to it and differentiated at zero."""
    path = lm.layout.block(layer) if site == "resid_post" else lm.layout.module(site, layer)
    clean = plain_states(lm, IDS, path)[1][token]
    more = torch.zeros(2, 16, requires_grad=True)
    corrupted: list[Tensor] = []

    def add(out: Tensor) -> Tensor:
        corrupted.append(out[:, token].detach())
        return torch.cat([out[:, :token], (out[:, token] + more)[:, None], out[:, token + 1 :]], 1)

    logits = plain_run(lm, [IDS, IDS], {lm.layout.embed: corrupt(NOISE), path: add})[:, -1]
    (gradient,) = torch.autograd.grad(score(logits).mean(), more)
    return float(((clean - corrupted[0]) * gradient).sum())


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma3_text"])
@pytest.mark.parametrize("metric", ["p", "log p", "logit difference"])
def test_every_kind_is_the_gradient_times_the_difference(family: str, metric: str) -> None:
    lm = tiny_model(family)
    paris, rome = (lm.tokenizer(PROMPT.text + a)["input_ids"][-1] for a in (" Paris", " Rome"))
    score = {
        "p": lambda logits: logits.softmax(-1)[:, paris],
        "log p": lambda logits: logits.log_softmax(-1)[:, paris],
        "logit difference": lambda logits: logits[:, paris] - logits[:, rome],
    }[metric]
    request = TraceRequest(PROMPT, replace(CONFIG, metric=metric), " Paris", " Rome")

    maps = previews(lm, prepare(lm, request, noise=NOISE))

    assert tuple(maps) == SITES
    for site, found in maps.items():
        assert found.config.site == site
        for token, layer in ((2, 0), (5, 2)):
            expected = by_hand(lm, site, token, layer, score)
            assert float(found.indirect_effect[token, layer]) == pytest.approx(expected, rel=1e-3, abs=1e-9), site
        assert (found.indirect_effect[0] == 0).all()  # before the subject


@pytest.mark.parametrize("site", SITES)
def test_for_little_noise_it_approaches_the_exact_map(site: str) -> None:
    """The error is of second order: a tenth of the noise leaves about a tenth of the relative error."""
    lm = tiny_model("gpt2", dtype=torch.float64)  # whose norms keep the precision
    config = replace(CONFIG, site=site, metric="log p")
    errors = []
    for size in (1e-2, 1e-3):
        exact, guess = (f(lm, PROMPT, config, noise=size * NOISE.double(), answer=" Paris") for f in (trace, preview))
        error = (guess.indirect_effect - exact.indirect_effect).norm() / exact.indirect_effect.norm()
        errors.append(float(error))

    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0]


def test_a_window_adds_its_layers_up() -> None:
    lm = tiny_model()
    single, wide = (preview(lm, PROMPT, replace(CONFIG, site="mlp_out", window=w)).indirect_effect for w in (1, 3))

    expected = torch.stack([single[:, max(0, layer - 1) : layer + 2].sum(1) for layer in range(4)], 1)
    torch.testing.assert_close(wide, expected)


def test_it_says_that_it_is_a_guess_and_shares_the_exact_maps_frame() -> None:
    lm = tiny_model()
    exact, guess = trace(lm, PROMPT, CONFIG), preview(lm, PROMPT, CONFIG)

    assert guess.approximate and guess.engine == "attribution" and "approximation" in guess.note
    assert not exact.approximate
    assert (guess.clean, guess.corrupted, guess.answer) == (exact.clean, exact.corrupted, exact.answer)
    torch.testing.assert_close(guess.probabilities, (guess.corrupted + guess.indirect_effect).clamp(0, 1))
    assert preview(lm, PROMPT, replace(CONFIG, metric="log p")).probabilities.isnan().all()


def test_edits_count_and_nothing_stays_on_the_model() -> None:
    lm, config = tiny_model(), replace(CONFIG, metric="log p")
    edit = random_edit(lm)
    free = preview(lm, PROMPT, config, answer=" Paris").indirect_effect

    edited = preview(lm, PROMPT, config, answer=" Paris", edits=[edit]).indirect_effect

    expected = preview(written(lm, edit), PROMPT, config, answer=" Paris").indirect_effect
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-5)
    assert (edited - free).abs().max() > 0.05
    assert torch.equal(preview(lm, PROMPT, config, answer=" Paris").indirect_effect, free)
    assert all(p.grad is None and not p.requires_grad for p in lm.hf.parameters())


def test_agreement_is_spearmans() -> None:
    lm = tiny_model()
    approximate, exact = preview(lm, PROMPT, CONFIG), trace(lm, PROMPT, CONFIG)
    first = exact.subject[0]

    agreement = compare_with_exact(approximate, exact, n=1)

    a, b = approximate.indirect_effect[first:].flatten(), exact.indirect_effect[first:].flatten()
    assert agreement.correlation == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)
    [(token, layer, guess, value)] = agreement.worst
    assert abs(guess - value) == pytest.approx(float((a - b).abs().max()), rel=1e-5)
    assert exact.indirect_effect[token, layer] == pytest.approx(value)


def test_equal_effects_share_their_rank() -> None:
    """As many are: what the last block makes of a token that nothing reads has no effect at all."""
    values = torch.tensor([0.5, 0.0, -1.0, 0.0, 0.5, 0.0, 2.0])
    assert average_ranks(values).tolist() == rankdata(values).tolist()

    exact = trace(tiny_model(), PROMPT, CONFIG)
    coarse = [replace(exact, indirect_effect=(exact.indirect_effect * scale).round()) for scale in (1e3, 4e3)]
    a, b = (heat_map.indirect_effect[exact.subject[0] :].flatten() for heat_map in coarse)
    assert len(a.unique()) < len(a) / 2
    assert compare_with_exact(*coarse).correlation == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
