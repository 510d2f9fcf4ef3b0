"""Heat maps, against single restored runs by hooks on the Hugging Face model and against what must hold exactly."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rome_core.model import replay
from rome_core.model.tokens import Prompt, target_ids
from rome_core.tracing import heat_map as tracing
from rome_core.tracing.heat_map import attention, restored_top_tokens, snippet, trace, trace_steps
from rome_core.tracing.runs import TraceConfig, TraceRequest, draw_noise, prepare
from tests.tiny import corrupt, plain_run, plain_states, put, random_edit, tiny_model, tiny_tokenizer, written

PROMPT = Prompt("The {} is located in the city of", "Eiffel Tower")
IDS = tiny_tokenizer()(PROMPT.text)["input_ids"]
FIRST, STOP, N = 1, 3, 9  # "The", " Eiffel", " Tower", …
CONFIG = TraceConfig(site="resid_post", samples=3, noise_from="vocabulary", noise_scale=1.0)
SITES = ("resid_post", "mlp_out", "attn_out")
each_site = pytest.mark.parametrize("site", SITES)


def restored(lm, ids: list[int], noise: Tensor, site: str, layers: range, token: int) -> Tensor:
    """The oracle, one cell: logits [draws tokens vocab] of the run with one token's outputs restored."""
    path = {
        layer: lm.layout.block(layer) if site == "resid_post" else lm.layout.module(site, layer) for layer in layers
    }
    clean = {layer: plain_states(lm, ids, path[layer])[1][token] for layer in layers}

    restore = {path[layer]: put(clean[layer], token) for layer in layers}
    hooks = {lm.layout.embed: corrupt(noise, FIRST), **restore}
    return plain_run(lm, [ids] * len(noise), hooks)


@each_site
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_cell_is_the_restored_minus_the_corrupted_probability(family: str, site: str) -> None:
    lm = tiny_model(family)
    config = replace(CONFIG, site=site, window=2)
    noise, sigma = draw_noise(lm, config, 2)
    token, layer = 2, 1
    layers = range(1, 2) if site == "resid_post" else range(2)
    answer = int(plain_run(lm, [IDS])[0, -1].argmax())

    def p(logits: Tensor) -> np.ndarray:
        return logits[:, -1].double().softmax(-1)[:, answer].numpy()

    clean, corrupted = p(plain_run(lm, [IDS])), p(restored(lm, IDS, noise, site, range(0), 0))
    cell = p(restored(lm, IDS, noise, site, layers, token))

    found = trace(lm, PROMPT, config)

    assert found.clean == pytest.approx(clean.mean(), rel=1e-4)
    assert found.corrupted == pytest.approx(corrupted.mean(), rel=1e-4)
    assert found.total_effect == pytest.approx(clean.mean() - corrupted.mean(), abs=1e-5)
    assert float(found.probabilities[token, layer]) == pytest.approx(cell.mean(), rel=1e-4)
    assert float(found.spread[token, layer]) == pytest.approx(cell.std(), rel=1e-3)
    assert float(found.indirect_effect[token, layer]) == pytest.approx(cell.mean() - corrupted.mean(), abs=1e-5)
    assert found.sigma == sigma and found.answer == tracing.labels(lm.tokenizer, (answer,))[0]


@each_site
def test_rows_before_the_subject_are_exactly_zero_and_the_others_are_there(site: str) -> None:
    found = trace(tiny_model(), PROMPT, replace(CONFIG, site=site))

    assert found.indirect_effect.shape == found.probabilities.shape == found.spread.shape == (N, 4)
    assert found.subject == (FIRST, STOP) and found.labels[1:3] == (" Eiffel", " Tower")
    assert torch.equal(found.indirect_effect[:FIRST], torch.zeros(FIRST, 4))
    assert torch.equal(found.probabilities[:FIRST], torch.full((FIRST, 4), found.corrupted))
    assert (found.indirect_effect[FIRST:STOP, :-1].abs() > 0).all()  # above the last block no token reads another
    assert found.complete


def test_restoring_everything_gives_the_clean_run() -> None:
    """The last block's state at the last token is all that the answer is read from."""
    found = trace(tiny_model(), PROMPT, CONFIG)

    assert float(found.probabilities[-1, -1]) == pytest.approx(found.clean, abs=1e-6)
    assert float(found.indirect_effect[-1, -1]) == pytest.approx(found.total_effect, abs=1e-6)
    assert float(found.spread[-1, -1]) == pytest.approx(0, abs=1e-6)
    # And what the last block makes of other tokens is not read at all.
    torch.testing.assert_close(found.indirect_effect[:-1, -1], torch.zeros(N - 1), rtol=0, atol=1e-6)


@each_site
def test_without_noise_every_run_is_the_clean_one(site: str) -> None:
    found = trace(tiny_model(), PROMPT, replace(CONFIG, site=site), noise=torch.zeros(2, 2, 16))

    assert found.corrupted == pytest.approx(found.clean, abs=1e-6)
    torch.testing.assert_close(found.indirect_effect, torch.zeros(N, 4), rtol=0, atol=1e-6)


def test_a_window_of_one_token_that_is_the_whole_prompt() -> None:
    """Subject first, last and all at once: the corrupted embedding stays, the modules' outputs come back."""
    lm = tiny_model()
    found = trace(lm, Prompt("{}", "Paris"), replace(CONFIG, site="mlp_out", window=9))

    assert found.labels == ("Paris",) and found.subject == (0, 1)
    assert found.complete
    torch.testing.assert_close(found.indirect_effect[0], found.indirect_effect[0, 2].expand(4), rtol=0, atol=1e-6)


def test_the_draw_is_seeded_and_a_ready_made_one_gives_the_same() -> None:
    lm = tiny_model()
    one = trace(lm, PROMPT, CONFIG)

    assert torch.equal(trace(lm, PROMPT, CONFIG).indirect_effect, one.indirect_effect)
    assert not torch.allclose(trace(lm, PROMPT, replace(CONFIG, seed=2)).indirect_effect, one.indirect_effect)
    given = trace(lm, PROMPT, CONFIG, noise=draw_noise(lm, CONFIG, 2)[0])
    assert torch.equal(given.indirect_effect, one.indirect_effect)
    assert math.isnan(given.sigma)


@each_site
@pytest.mark.parametrize("metric", ["p", "log p"])
def test_a_longer_answer_is_followed_by_its_joint_probability(site: str, metric: str) -> None:
    lm = tiny_model()
    config = replace(CONFIG, site=site, window=1, metric=metric)
    noise, _ = draw_noise(lm, config, 2)
    answer = lm.tokenizer(PROMPT.text + " Paris, the capital")["input_ids"][N:]
    assert len(answer) == 4
    ids = [*IDS, *answer[:-1]]

    def score(logits: Tensor) -> float:
        log_probs = logits.double().log_softmax(-1)
        log_p = sum(log_probs[:, N - 1 + t, token] for t, token in enumerate(answer))
        return float((log_p if metric == "log p" else log_p.exp()).mean())

    clean, corrupted = score(plain_run(lm, [ids])), score(restored(lm, ids, noise, site, range(0), 0))

    found = trace(lm, PROMPT, config, answer=" Paris, the capital")

    assert found.clean_score == pytest.approx(clean, rel=1e-4)
    assert found.corrupted_score == pytest.approx(corrupted, rel=1e-4)
    assert found.answer == " Paris, the capital" and len(found.labels) == N
    for token, layer in ((1, 0), (2, 2), (8, 3)):
        cell = score(restored(lm, ids, noise, site, range(layer, layer + 1), token))
        assert float(found.indirect_effect[token, layer]) == pytest.approx(
            cell - corrupted, rel=1e-3, abs=1e-4 * abs(cell)
        )


def test_the_metrics_differ_in_the_effect_and_agree_on_the_probability() -> None:
    lm = tiny_model()
    noise, _ = draw_noise(lm, CONFIG, 2)
    paris, rome = (target_ids(lm.tokenizer, PROMPT.text, a)[0] for a in (" Paris", " Rome"))
    scores = {
        "p": lambda logits: logits.softmax(-1)[:, paris],
        "log p": lambda logits: logits.log_softmax(-1)[:, paris],
        "logit difference": lambda logits: logits[:, paris] - logits[:, rome],
    }
    corrupted = restored(lm, IDS, noise, "resid_post", range(0), 0)[:, -1].double()
    cell = restored(lm, IDS, noise, "resid_post", range(1, 2), 2)[:, -1].double()

    for metric, score in scores.items():
        found = trace(lm, PROMPT, replace(CONFIG, metric=metric), answer=" Paris", foil=" Rome")

        expected = float(score(cell).mean() - score(corrupted).mean())
        assert float(found.indirect_effect[2, 1]) == pytest.approx(expected, rel=1e-3), metric
        assert found.corrupted_score == pytest.approx(float(score(corrupted).mean()), rel=1e-4)
        assert found.corrupted == pytest.approx(float(scores["p"](corrupted).mean()), rel=1e-4)
        assert float(found.probabilities[2, 1]) == pytest.approx(float(scores["p"](cell).mean()), rel=1e-4)
        assert (found.indirect_effect[:FIRST] == 0).all()


@each_site
@pytest.mark.parametrize("budget", [1, 2**31])
def test_the_map_fills_and_ends_as_the_whole(site: str, budget: int) -> None:
    lm = tiny_model()
    config = replace(CONFIG, site=site, window=2)
    seen: list[tuple[str, int]] = []

    def track(items, label, total, /):
        items = list(items)
        seen.append((label, total - len(items)))
        return items

    steps = list(trace_steps(lm, PROMPT, config, budget=budget, track=track))

    first, last = steps[0], steps[-1]
    assert not first.complete and first.indirect_effect[FIRST:].isnan().all()
    assert (first.clean, first.corrupted) == (last.clean, last.corrupted)
    for before, after in itertools.pairwise(steps):
        known = ~before.indirect_effect.isnan()
        assert torch.equal(before.indirect_effect[known], after.indirect_effect[known])  # a finished cell stays
    whole = trace(lm, PROMPT, config)
    assert last.complete
    torch.testing.assert_close(last.indirect_effect, whole.indirect_effect, rtol=0, atol=1e-6)
    torch.testing.assert_close(last.spread, whole.spread, rtol=0, atol=1e-6)
    assert len(steps) > 2 and len({label for label, _ in seen}) == 1
    assert seen[0][1] == 0  # as many steps as were announced


def test_stopping_in_between_keeps_the_finished_cells() -> None:
    steps = trace_steps(tiny_model(), PROMPT, CONFIG, budget=1)
    found = next(steps)
    while not (~found.indirect_effect[FIRST:].isnan()).any():
        found = next(steps)
    steps.close()

    whole = trace(tiny_model(), PROMPT, CONFIG)
    known = ~found.indirect_effect.isnan()
    assert not known.all()
    torch.testing.assert_close(found.indirect_effect[known], whole.indirect_effect[known], rtol=0, atol=1e-6)


def test_where_replay_is_wrong_plain_hooks_give_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {site: trace(tiny_model(), PROMPT, replace(CONFIG, site=site)) for site in SITES}
    run_block = replay.run_block
    monkeypatch.setattr(replay, "run_block", lambda *args, **kwargs: run_block(*args, **kwargs) + 0.1)
    lm = tiny_model()

    for site, expected in right.items():
        found = trace(lm, PROMPT, replace(CONFIG, site=site))

        assert (expected.engine, expected.note) == ("replay", "")
        assert found.engine == "plain" and "Replay differs" in found.note
        torch.testing.assert_close(found.indirect_effect, expected.indirect_effect, rtol=0, atol=1e-5)


def test_edits_are_traced_and_named() -> None:
    lm, config = tiny_model(), replace(CONFIG, metric="log p")
    edit = random_edit(lm)
    found = trace(lm, PROMPT, config, answer=" Paris", edits=[edit])
    free = trace(lm, PROMPT, config, answer=" Paris")
    expected = trace(written(lm, edit), PROMPT, config, answer=" Paris")

    assert found.edits == (edit.id,) and free.edits == ()
    torch.testing.assert_close(found.indirect_effect, expected.indirect_effect, rtol=0, atol=1e-5)
    assert (found.indirect_effect - free.indirect_effect).abs().max() > 0.1


def test_top_tokens_of_the_three_runs() -> None:
    lm = tiny_model()
    noise, _ = draw_noise(lm, CONFIG, 2)
    expected = {
        "clean": plain_run(lm, [IDS]),
        "corrupted": restored(lm, IDS, noise, "resid_post", range(0), 0),
        "restored": restored(lm, IDS, noise, "resid_post", range(1, 2), 2),
    }

    runs = prepare(lm, TraceRequest(PROMPT, CONFIG))

    found = restored_top_tokens(lm, runs, "resid_post", token=2, layer=1, k=3)

    for name, logits in expected.items():
        p = logits[:, -1].softmax(-1).mean(0)
        top = p.argsort(descending=True)[:3]
        assert [label for label, _ in found[name]] == tracing.labels(lm.tokenizer, tuple(top.tolist()))
        assert [value for _, value in found[name]] == pytest.approx(p[top].tolist(), rel=1e-4)
    before = restored_top_tokens(lm, runs, "resid_post", token=0, layer=1)
    assert before["restored"] == before["corrupted"]


def test_attention_comes_with_the_tokens() -> None:
    lm = tiny_model()

    names, pattern = attention(lm, PROMPT, 2)

    assert names[1:3] == (" Eiffel", " Tower") and pattern.shape == (4, N, N)
    torch.testing.assert_close(pattern, lm.hf(torch.tensor([IDS]), output_attentions=True).attentions[2][0])


@pytest.mark.parametrize("options", [{}, {"answer": " Paris, the capital"}, {"answer": " Paris", "foil": " Rome"}])
@pytest.mark.parametrize("seed", range(3))
def test_the_snippet_makes_the_same_numbers_again(monkeypatch: pytest.MonkeyPatch, options: dict, seed: int) -> None:
    lm = tiny_model(seed=seed)
    config = replace(CONFIG, metric="logit difference" if "foil" in options else "log p")
    found = trace(lm, PROMPT, config, **options)
    monkeypatch.setattr("rome_core.load_model", lambda name: lm)
    names: dict = {"print": lambda *values: None}

    exec(snippet(found), names)

    assert torch.equal(names["t"].indirect_effect, found.indirect_effect)
    assert f"# fingerprint {lm.fingerprint}" in snippet(found)
    assert "edits=" in snippet(replace(found, edits=("abc",)))
