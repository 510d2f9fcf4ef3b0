"""The preview: its gradients against derivatives taken by hand, its measured cells against the exact map, and what it
makes of them for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import load_model
from rome_core.model.tokens import Prompt
from rome_core.tracing import heat_map, restoration
from rome_core.tracing.heat_map import empty_trace, trace
from rome_core.tracing.preview import (
    N_STEPS,
    average_ranks,
    compare_with_exact,
    first_draws,
    gradient_maps,
    join_measured,
    likely_peaks,
    plateau,
    preview,
    preview_steps,
)
from rome_core.tracing.runs import SITES, TraceConfig, TraceRequest, prepare
from studies import preview as study
from tests.tiny import corrupt, plain_run, plain_states, random_edit, tiny_model, tiny_tokenizer, written

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
IDS = tiny_tokenizer()(PROMPT.text)["input_ids"]
CONFIG = TraceConfig(site="resid_post", samples=2, window=1, noise_from="vocabulary", noise_scale=1.0)
NOISE = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
METRICS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "p": lambda logits, answer, foil: logits.softmax(-1)[:, answer],
    "log p": lambda logits, answer, foil: logits.log_softmax(-1)[:, answer],
    "logit difference": lambda logits, answer, foil: logits[:, answer] - logits[:, foil],
}


# ---------------------------------------------------------------------------------------------------------- gradients


def by_hand(lm: LanguageModel, site: str, token: int, layer: int, score: Callable[[Tensor], Tensor]) -> float:
    """(h_clean − h_corrupted)·g averaged over the draws, g being the mean of the gradients at the two runs: a variable
    is added to the state, draw by draw, and differentiated at zero."""
    path = lm.layout.block(layer) if site == "resid_post" else lm.layout.module(site, layer)
    clean = plain_states(lm, IDS, path)[1][token]

    def state_and_gradient(noise: Tensor) -> tuple[Tensor, Tensor]:
        more, states = torch.zeros(16, requires_grad=True), list[Tensor]()

        def add(out: Tensor) -> Tensor:
            states.append(out[0, token].detach())
            return torch.cat([out[:, :token], (out[:, token] + more)[:, None], out[:, token + 1 :]], 1)

        logits = plain_run(lm, [IDS], {lm.layout.embed: corrupt(noise), path: add})[:, -1]
        return states[0], torch.autograd.grad(score(logits).sum(), more)[0]

    _, at_clean = state_and_gradient(torch.zeros(1, 2, 16))
    estimates = []
    for draw in NOISE:
        state, at_corrupted = state_and_gradient(draw[None])
        estimates.append(float((clean - state) @ (at_clean + at_corrupted)) / 2)
    return sum(estimates) / len(estimates)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma3_text"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_kind_is_the_difference_times_the_gradients_of_both_ends(family: str, metric: str) -> None:
    lm = tiny_model(family)
    paris, rome = (lm.tokenizer(PROMPT.text + a)["input_ids"][-1] for a in (" Paris", " Rome"))
    request = TraceRequest(PROMPT, replace(CONFIG, metric=metric), " Paris", " Rome")

    maps = gradient_maps(lm, prepare(lm, request, noise=NOISE), SITES)

    assert tuple(maps) == SITES
    for site, found in maps.items():
        assert found.config.site == site
        for token, layer in ((2, 0), (5, 2)):
            expected = by_hand(lm, site, token, layer, lambda logits: METRICS[metric](logits, paris, rome))
            assert float(found.indirect_effect[token, layer]) == pytest.approx(expected, rel=1e-3, abs=1e-8), site
        assert (found.indirect_effect[0] == 0).all()  # before the subject
        assert not found.exact.any()
        assert likely_peaks(found) == [], "nothing has been measured"


@pytest.mark.parametrize("site", SITES)
def test_for_little_noise_the_gradient_approaches_the_exact_map(site: str) -> None:
    """A tenth of the noise leaves about a tenth of the relative error."""
    lm = tiny_model("gpt2", dtype=torch.float64)  # whose norms keep the precision
    config = replace(CONFIG, site=site, metric="log p")
    errors = []
    for size in (1e-2, 1e-3):
        noise = size * NOISE.double()
        exact = trace(lm, PROMPT, config, noise=noise, answer=" Paris").indirect_effect
        runs = prepare(lm, TraceRequest(PROMPT, config, " Paris"), noise=noise)
        guess = gradient_maps(lm, runs, [site])[site].indirect_effect
        errors.append(float((guess - exact).norm() / exact.norm()))

    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0]


def test_a_window_adds_its_layers_up() -> None:
    lm = tiny_model()
    single, wide = (
        gradient_maps(lm, prepare(lm, TraceRequest(PROMPT, replace(CONFIG, window=w))), ["mlp_out"])["mlp_out"]
        for w in (1, 3)
    )

    layers = [single.indirect_effect[:, max(0, layer - 1) : layer + 2].sum(1) for layer in range(4)]
    torch.testing.assert_close(wide.indirect_effect, torch.stack(layers, 1))


# ------------------------------------------------------------------------------------------------------ measured cells


@pytest.fixture(scope="module")
def deep() -> LanguageModel:
    return tiny_model("llama", layers=24)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("site", SITES)
def test_exact_cells_are_those_of_the_heat_map_and_few(deep: LanguageModel, site: str, metric: str) -> None:
    config = TraceConfig(site=site, samples=5, window=4, metric=metric)
    guess, exact = (f(deep, PROMPT, config, answer=" Paris", foil=" Rome") for f in (preview, trace))

    here = guess.exact
    assert 10 < int(here.sum()) < 20
    for name in ("indirect_effect", "probabilities", "spread"):
        torch.testing.assert_close(getattr(guess, name)[here], getattr(exact, name)[here], rtol=1e-4, atol=1e-6)
    assert guess.spread[1:][~here[1:]].isnan().all()
    assert not guess.indirect_effect.isnan().any()
    assert here[-1].any(), "the prompt's last token"
    assert not guess.complete and exact.complete
    assert guess.engine == "preview" and guess.note
    assert (guess.clean, guess.corrupted, guess.answer) == (exact.clean, exact.corrupted, exact.answer)


def test_rows_measured_with_as_many_draws_as_there_are_hold_exact_values() -> None:
    """Four layers and two draws: the coarse runs are all that an exact row is made of."""
    lm = tiny_model()
    guess, exact = preview(lm, PROMPT, CONFIG), trace(lm, PROMPT, CONFIG)

    for token in (2, len(IDS) - 1):
        torch.testing.assert_close(guess.indirect_effect[token], exact.indirect_effect[token], rtol=1e-3, atol=1e-6)


def test_what_was_measured_is_interpolated_and_scales_the_rest() -> None:
    """Row 1: few draws say 1, 2, 3 and the exact middle is 4, so the others are doubled. Row 2: in row 1 the gradient
    said four times what was measured, so it is divided by that."""
    nan = float("nan")
    guess = torch.tensor([[0.0] * 5, [8.0, 12.0, 16.0, 20.0, 24.0], [4.0, 8.0, 0.0, 0.0, -4.0]])
    coarse = torch.tensor([[0.0] * 5, [1.0, nan, 2.0, nan, 3.0], [nan] * 5])
    exact = torch.tensor([[0.0] * 5, [nan, nan, 4.0, nan, nan], [nan] * 5])

    joined = join_measured([guess, coarse, exact], first=1)

    expected = [[0.0] * 5, [2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 0.0, 0.0, -1.0]]
    torch.testing.assert_close(joined, torch.tensor(expected))


def test_a_cell_is_named_only_if_it_is_exact_and_with_its_rivals() -> None:
    lm = tiny_model()
    frame = empty_trace(lm, prepare(lm, TraceRequest(PROMPT, CONFIG)), "mlp_out")
    effect, spread = torch.zeros_like(frame.spread), torch.full_like(frame.spread, torch.nan)
    effect[2, 1], effect[5, 3], spread[2, 1] = 0.5, 0.3, 0.1

    def named(at_5: float, site: str = "mlp_out") -> list[tuple[int, int]]:
        effects = effect.clone()
        effects[5, 3] = at_5
        config = replace(CONFIG, site=site)
        return likely_peaks(replace(frame, indirect_effect=effects, spread=spread, config=config))

    assert named(0.3) == [(2, 1)]
    assert named(0.45) == [(2, 1), (5, 3)], "too close to tell"
    assert named(0.6) == [], "an estimate is above it"
    assert named(0.6, "resid_post") == [(2, 1)], "in the residual stream nothing behind the subject counts"


def test_layers_on_one_level_with_a_peak_stand_together() -> None:
    lm = tiny_model("llama", layers=8)
    frame = empty_trace(lm, prepare(lm, TraceRequest(PROMPT, CONFIG)), "mlp_out")
    effect = torch.zeros_like(frame.spread)
    effect[2] = torch.tensor([0.97, 0.5, 0.96, 1.0, 0.95, 0.97, 0.94, 0.99])
    heat_map = replace(frame, indirect_effect=effect)

    assert plateau(heat_map, (2, 3)) == (2, 5)
    assert plateau(heat_map, (2, 1)) == (0, 7)
    assert plateau(heat_map, (2, 7)) == (7, 7)


def test_it_gets_better_in_so_many_steps(deep: LanguageModel) -> None:
    runs = prepare(deep, TraceRequest(PROMPT, TraceConfig(samples=3, window=4)))

    steps = list(preview_steps(deep, runs))

    assert len(steps) == N_STEPS
    assert all(set(maps) == set(SITES) for maps in steps)
    counts = [[int(maps[site].exact.sum()) for maps in steps] for site in ("mlp_out", "attn_out", "resid_post")]
    assert all(count == sorted(count) and count[0] == 0 < count[-1] for count in counts)
    assert counts[0][5] == counts[0][-1] and counts[2][5] == 0, "MLP and attention first"


@pytest.mark.slow
def test_the_pages_first_example_is_named_as_the_exact_maps_name_it() -> None:
    lm = load_model()
    runs = prepare(lm, TraceRequest(Prompt("The {} is located in the city of", "Colosseum")))

    *_, maps = preview_steps(lm, runs)

    assert likely_peaks(maps["mlp_out"]) == [(3, 4)]
    assert likely_peaks(maps["attn_out"]) == [(9, 20)]
    assert maps["mlp_out"].indirect_effect[3, 4] == pytest.approx(0.434, abs=0.005)


def test_fewer_draws_are_the_first_ones(deep: LanguageModel) -> None:
    config = TraceConfig(site="mlp_out", samples=5)
    runs, two = (prepare(deep, TraceRequest(PROMPT, replace(config, samples=n), " Paris")) for n in (5, 2))

    few = first_draws(runs, 2)

    for ours, theirs in zip(few.corrupted.states, two.corrupted.states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    _, change = few.corruption
    embedded = torch.randn(1, len(IDS), 16).expand(2, -1, -1)
    torch.testing.assert_close(change(embedded), two.corruption[1](embedded))
    assert first_draws(runs, 5) is runs and first_draws(runs, 9) is runs


def test_without_replay_the_cells_are_the_same(deep: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TraceConfig(site="attn_out", samples=3, window=4)
    by_replay = preview(deep, PROMPT, config, answer=" Paris")
    for module in (restoration, heat_map):
        monkeypatch.setattr(module, "replay_note", lambda lm: "Not on this model.")

    plain = preview(deep, PROMPT, config, answer=" Paris")

    assert torch.equal(plain.exact, by_replay.exact)
    torch.testing.assert_close(plain.indirect_effect, by_replay.indirect_effect, rtol=1e-3, atol=1e-6)


def test_answers_of_several_tokens_are_followed_together(deep: LanguageModel) -> None:
    config = TraceConfig(site="mlp_out", samples=3, window=4)
    guess, exact = (f(deep, PROMPT, config, answer=" Paris is") for f in (preview, trace))

    assert guess.indirect_effect.shape == exact.indirect_effect.shape
    here = guess.exact
    torch.testing.assert_close(guess.probabilities[here], exact.probabilities[here], rtol=1e-4, atol=1e-9)


def test_edits_count_and_nothing_stays_on_the_model() -> None:
    lm, config = tiny_model(), replace(CONFIG, metric="log p")
    edit = random_edit(lm)
    free = preview(lm, PROMPT, config, answer=" Paris").indirect_effect

    edited = preview(lm, PROMPT, config, answer=" Paris", edits=[edit]).indirect_effect

    expected = preview(written(lm, edit), PROMPT, config, answer=" Paris").indirect_effect
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-4)
    assert (edited - free).abs().max() > 0.05
    assert torch.equal(preview(lm, PROMPT, config, answer=" Paris").indirect_effect, free)
    assert all(p.grad is None and not p.requires_grad for p in lm.hf.parameters())


# -------------------------------------------------------------------------------------------- how good it turned out


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


def test_the_studys_gradient_at_both_ends_is_the_previews() -> None:
    lm = tiny_model("llama")
    runs = prepare(lm, TraceRequest(PROMPT, TraceConfig(samples=3, window=2)))
    expected = gradient_maps(lm, runs, ["mlp_out", "attn_out"])

    found = dict(study.by_gradients(lm, runs))["gradient of p, both ends"]

    for site, grid in found.items():
        torch.testing.assert_close(grid, expected[site].indirect_effect, rtol=1e-3, atol=1e-7)


def test_the_study_counts_tokens_layers_and_sizes() -> None:
    exact = {"named": [[3, 4]], "top": [0.8, 0.4, 0.2]}
    guesses = {
        "right": {"named": [[3, 6], [5, 20]], "top": [0.41, 0.4, 0.5]},
        "layers off": {"named": [[3, 7]], "top": [1.5, 0.1, -0.2]},
        "another token": {"named": [[5, 4]], "top": [0.8, 0.4, 0.2]},
        "open": {"named": [], "top": [0.0, 0.0, 0.0]},
    }
    record = {"mlp_out": {"exact": exact, **guesses}}

    found = {method: study.hits(record, "mlp_out", method) for method in guesses}

    assert found["right"] == (True, True, 2)
    assert found["layers off"] == (True, False, 1)
    assert found["another token"] == (False, False, 3)
    assert found["open"] == (False, False, 0)


def test_the_docs_have_the_studys_table() -> None:
    lines = list(study.table(study.read(study.RESULTS / "preview.jsonl")))

    docs = (study.RESULTS.parent / "tracing.md").read_text(encoding="utf-8")
    assert all(line in docs for line in lines if line.startswith("|"))
    assert sum(line.startswith("|") for line in lines) == 2 + len(study.GRADIENTS) + 1
