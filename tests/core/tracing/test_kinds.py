"""The three heat maps of one prompt, against single traces; and that their runs are prepared once."""

from __future__ import annotations

from dataclasses import replace

import torch

from rome_core.model.tokens import Prompt
from rome_core.tracing.attribution import preview
from rome_core.tracing.heat_map import trace
from rome_core.tracing.kinds import TraceRun, trace_kinds
from rome_core.tracing.runs import SITES, TraceConfig, TraceRequest
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is located in the city of", "Colosseum")
QUICK = TraceConfig(samples=2, window=2)


def test_previews_come_first_and_the_last_is_exact() -> None:
    lm = tiny_model("llama")
    steps = list(trace_kinds(lm, TraceRequest(PROMPT, QUICK)))

    assert tuple(steps[0].preview) == SITES and not steps[0].exact
    assert steps[0].first is steps[0].preview["resid_post"] and steps[0].best("mlp_out") is steps[0].preview["mlp_out"]
    assert [step.complete for step in steps[-2:]] == [False, True]
    for site in SITES:
        config = replace(QUICK, site=site)
        assert torch.equal(steps[-1].exact[site].indirect_effect, trace(lm, PROMPT, config).indirect_effect)
        assert torch.equal(steps[-1].preview[site].indirect_effect, preview(lm, PROMPT, config).indirect_effect)
        assert steps[-1].best(site) is steps[-1].exact[site]


def test_a_run_that_has_not_begun_has_no_heat_map() -> None:
    run = TraceRun(TraceRequest(PROMPT))

    assert run.first is None and run.best("mlp_out") is None and not run.complete


def test_the_runs_are_prepared_once_for_all_kinds(recorded: list[int]) -> None:
    *_, run = trace_kinds(tiny_model("llama"), TraceRequest(PROMPT, QUICK))

    assert run.complete
    assert recorded == [1, QUICK.samples]  # the clean and the corrupted run
