"""The three heat maps of one prompt, against single traces; and that their runs are prepared once."""

from __future__ import annotations

from dataclasses import replace

import torch

from rome_core.model.tokens import Prompt
from rome_core.tracing.heat_map import trace
from rome_core.tracing.kinds import TraceRun, trace_kinds
from rome_core.tracing.preview import N_STEPS, preview
from rome_core.tracing.runs import SITES, TraceConfig, TraceRequest
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is located in the city of", "Colosseum")
QUICK = TraceConfig(samples=2, window=2)


def test_previews_come_first_and_the_last_is_exact() -> None:
    lm = tiny_model("llama")
    steps = list(trace_kinds(lm, TraceRequest(PROMPT, QUICK)))

    previews, then = steps[:N_STEPS], steps[N_STEPS:]
    assert all(set(step.preview) == set(SITES) and not step.exact for step in previews)
    assert previews[0].first is previews[0].preview["resid_post"]
    assert all(step.exact and step.preview == previews[-1].preview for step in then)
    assert [step.complete for step in steps[-2:]] == [False, True]
    for site in SITES:
        config = replace(QUICK, site=site)
        assert torch.equal(steps[-1].exact[site].indirect_effect, trace(lm, PROMPT, config).indirect_effect)
        found = steps[-1].preview[site].indirect_effect
        torch.testing.assert_close(found, preview(lm, PROMPT, config).indirect_effect, rtol=1e-3, atol=1e-7)
        assert steps[-1].best(site) is steps[-1].exact[site]


def test_exact_cells_take_the_place_of_the_previews() -> None:
    lm = tiny_model("llama", layers=12)
    steps = list(trace_kinds(lm, TraceRequest(PROMPT, replace(QUICK, samples=3))))
    guess, whole = steps[-1].preview["mlp_out"], steps[-1].exact["mlp_out"]
    half = whole.indirect_effect.clone()
    half[3:] = torch.nan

    run = replace(steps[-1], exact={"mlp_out": replace(whole, indirect_effect=half)})
    mixed = run.best("mlp_out")

    assert mixed is not None and not mixed.complete
    assert torch.equal(mixed.indirect_effect[:3], whole.indirect_effect[:3])
    assert torch.equal(mixed.indirect_effect[3:], guess.indirect_effect[3:])
    assert mixed.exact[1:3].all() and torch.equal(mixed.exact[3:], guess.exact[3:])
    assert not run.finished and not run.complete
    measured = int(mixed.exact.sum()) + sum(int(run.preview[site].exact.sum()) for site in ("attn_out", "resid_post"))
    assert run.n_exact == (measured, 3 * (len(whole.labels) - 1) * 12)


def test_only_what_is_exact_throughout_is_finished() -> None:
    steps = list(trace_kinds(tiny_model("llama"), TraceRequest(PROMPT, QUICK)))

    assert not steps[N_STEPS - 1].finished
    assert steps[-1].finished == steps[-1].exact
    assert steps[-1].n_exact[0] == steps[-1].n_exact[1] == 3 * 4 * (len(steps[-1].exact["mlp_out"].labels) - 1)
    counts = [len(step.finished) for step in steps]
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}


def test_one_kind_follows_the_other_and_in_each_the_rows_that_promise_most_come_first() -> None:
    lm = tiny_model("llama")
    steps = list(trace_kinds(lm, TraceRequest(PROMPT, QUICK)))
    effects = {site: heat_map.indirect_effect.amax(1) for site, heat_map in steps[N_STEPS - 1].preview.items()}

    reached: list[tuple[str, int]] = []
    for step in steps[N_STEPS:]:
        for site, heat_map in step.exact.items():
            rows = [row for row in range(1, len(heat_map.labels)) if heat_map.exact[row].any()]
            reached += [(site, row) for row in rows if (site, row) not in reached]

    assert len(reached) == 3 * (len(steps[-1].exact["mlp_out"].labels) - 1)
    assert list(dict.fromkeys(site for site, _ in reached)) == list(SITES)
    for kind in SITES:
        promised = [float(effects[site][row]) for site, row in reached if site == kind]
        assert promised == sorted(promised, reverse=True)


def test_a_run_that_has_not_begun_has_no_heat_map() -> None:
    run = TraceRun(TraceRequest(PROMPT))

    assert run.first is None and run.best("mlp_out") is None and not run.complete
    assert run.n_exact == (0, 0)


def test_the_runs_are_prepared_once_for_all_kinds(recorded: list[int]) -> None:
    *_, run = trace_kinds(tiny_model("llama"), TraceRequest(PROMPT, QUICK))

    assert run.complete
    assert recorded == [1, QUICK.samples]  # the clean and the corrupted run
