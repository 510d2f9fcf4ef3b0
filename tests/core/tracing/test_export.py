"""Heat maps as files, read back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.model.tokens import Prompt
from rome_core.tracing.export import heat_maps_csv, heat_maps_npz
from rome_core.tracing.heat_map import trace
from rome_core.tracing.runs import SITES, TraceConfig
from tests.tiny import tiny_model

PROMPT = Prompt("The {} is located in the city of", "Colosseum")
QUICK = TraceConfig(samples=2, window=2)


def test_the_files_hold_every_finished_cell() -> None:
    lm = tiny_model("llama")
    maps = {site: trace(lm, PROMPT, replace(QUICK, site=site)) for site in SITES}
    rows = list(csv.DictReader(io.StringIO(heat_maps_csv(maps))))
    arrays = np.load(io.BytesIO(heat_maps_npz(maps)))
    about = json.loads(str(arrays["about"]))
    mlp = maps["mlp_out"]

    assert len(rows) == 3 * mlp.indirect_effect.numel()
    row = next(r for r in rows if r["kind"] == "mlp_out" and r["position"] == "3" and r["layer"] == "2")
    assert float(row["p"]) == pytest.approx(float(mlp.probabilities[3, 2]))
    assert (row["first_restored"], row["last_restored"]) == ("1", "2")
    assert torch.equal(torch.from_numpy(arrays["mlp_out.indirect_effect"]), mlp.indirect_effect)
    assert about["subject"] == "Colosseum"
    assert about["config"]["seed"] == 1 and about["config"]["site"] == list(SITES)


def test_cells_that_are_not_there_yet_are_left_out() -> None:
    whole = trace(tiny_model("llama"), PROMPT, QUICK)
    effects = whole.indirect_effect.clone()
    effects[3:] = torch.nan

    rows = list(csv.DictReader(io.StringIO(heat_maps_csv({"mlp_out": replace(whole, indirect_effect=effects)}))))

    assert len(rows) == 3 * effects.shape[1]
    assert {row["position"] for row in rows} == {"0", "1", "2"}
