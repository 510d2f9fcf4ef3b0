"""The preview: its measured cells against the exact map, and what it makes of them for the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import rankdata, spearmanr

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
    join_measured,
    likely_peaks,
    plateau,
    preview,
    preview_steps,
)
from rome_core.tracing.runs import SITES, TraceConfig, TraceRequest, prepare
from studies import preview as study
from tests.tiny import random_edit, tiny_model, tiny_tokenizer, written

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
IDS = tiny_tokenizer()(PROMPT.text)["input_ids"]
CONFIG = TraceConfig(site="resid_post", samples=2, window=1, noise_from="vocabulary", noise_scale=1.0)
NOISE = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
METRICS = ("p", "log p", "logit difference")


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
    assert 10 < int(here.sum()) < 25
    for name in ("indirect_effect", "probabilities", "spread"):
        torch.testing.assert_close(getattr(guess, name)[here], getattr(exact, name)[here], rtol=1e-4, atol=1e-6)
    assert guess.spread[1:][~here[1:]].isnan().all()
    assert not guess.indirect_effect.isnan().any()
    assert here[-1].any(), "the prompt's last token"
    assert not guess.complete and exact.complete
    assert guess.engine == "preview" and guess.note
    assert (guess.clean, guess.corrupted, guess.answer) == (exact.clean, exact.corrupted, exact.answer)


@pytest.mark.parametrize("site", SITES)
def test_rows_measured_with_all_draws_at_every_layer_are_the_heat_maps(site: str) -> None:
    """Two layers and two draws: the coarse runs are all that a row is made of."""
    lm = tiny_model("llama", layers=2)
    config = replace(CONFIG, site=site, metric="log p")

    guess, exact = preview(lm, PROMPT, config), trace(lm, PROMPT, config)

    torch.testing.assert_close(guess.indirect_effect, exact.indirect_effect, rtol=1e-3, atol=1e-6)


def test_what_was_measured_is_interpolated() -> None:
    """Row 1: few draws say 1, 2, 3 and the exact middle is 4, so the others are doubled; behind the last layer nothing
    is left, as row 2 shows, of which only the first layer was seen. Row 3, the last token, need not end at nothing."""
    nan = float("nan")
    coarse = torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, nan], [4.0, nan, nan, nan], [nan] * 4])
    exact = torch.tensor([[0.0] * 4, [nan, 4.0, nan, nan], [nan] * 4, [1.0, nan, nan, 4.0]])

    joined = join_measured(coarse, exact, first=1)

    expected = [[0.0] * 4, [2.0, 4.0, 6.0, 3.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]]
    torch.testing.assert_close(joined, torch.tensor(expected))
    assert join_measured(coarse, torch.full_like(exact, nan), first=1)[3].isnan().all(), "nothing is known of it yet"


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
    counts = {site: [int(maps[site].exact.sum()) for maps in steps] for site in SITES}
    assert all(count == sorted(count) and count[0] == 0 < count[-1] for count in counts.values())
    first, stop = runs.subject
    for site, open_rows in (("mlp_out", range(len(IDS) - 1, len(IDS))), ("resid_post", range(stop, len(IDS)))):
        unknown = [row for row in range(first, len(IDS)) if steps[0][site].indirect_effect[row].isnan().all()]
        assert unknown == list(open_rows), "what can be the strongest comes first"
        assert likely_peaks(steps[0][site]) == [], "nothing is named before it is measured"
    assert not any(heat_map.indirect_effect.isnan().any() for heat_map in steps[-1].values())


@pytest.mark.slow
def test_the_pages_first_example_is_named_as_the_exact_maps_name_it() -> None:
    lm = load_model()
    runs = prepare(lm, TraceRequest(Prompt("The {} is located in the city of", "Colosseum")))

    *_, maps = preview_steps(lm, runs)

    assert likely_peaks(maps["mlp_out"]) == [(3, 4)]
    assert likely_peaks(maps["attn_out"]) == [(9, 20)]
    assert maps["mlp_out"].indirect_effect[3, 4] == pytest.approx(0.434, abs=0.005)
    assert maps["mlp_out"].exact[3, 4]


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


def test_the_studys_gradient_is_the_derivative_of_what_is_restored() -> None:
    """With the noise nearly gone, a restored state moves p(answer) by the difference times the gradient."""
    lm = tiny_model("gpt2", dtype=torch.float64)  # whose norms keep the precision
    errors = []
    for size in (1e-2, 1e-3):
        runs = prepare(lm, TraceRequest(PROMPT, CONFIG, " Paris"), noise=size * NOISE.double())
        grids = dict(study.by_gradients(lm, runs))["gradient of p, both ends"]
        for site in study.SITES:
            *_, exact = heat_map.heat_map_steps(lm, runs, site)
            errors.append(float((grids[site] - exact.indirect_effect).norm() / exact.indirect_effect.norm()))

    assert max(errors[:2]) < 0.1
    assert max(errors[2:]) < 0.2 * max(errors[:2])


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
