"""The residual heat map of one prompt with rome_core, pyvene and TransformerLens, on the same weights.

    pip install -e ".[bench]"
    python -m benchmarks.against_others --out build/against_others.json

Every tool runs the same cells with the same noise, in turn, so that what else the machine does meets all of them;
their times are scaled to the whole heat map. A tool that is not installed is left out. docs/benchmarks.md says how each
is used.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, heading, machine, parse, parser_of, spread, table, timed, write
from benchmarks.tracing import PROMPTS, every_cell, plain_p
from rome_core import LanguageModel, TraceConfig, load_model, trace
from rome_core.model.replay import Cell, replay_note
from rome_core.tracing.runs import Runs, TraceRequest, draw_noise, prepare

Run = Callable[[Cell], float]
COLUMNS = {
    "tool": ("tool", ""),
    "cells": ("cells run", "d"),
    "cell_seconds": ("s a cell", ".3f"),
    "map_seconds": ("s a heat map", ".1f"),
    "ratio": ("times rome_core", ".1f"),
    "difference": ("largest Δp", ".1e"),
}


def p_of(runs: Runs, logits: Tensor) -> float:
    """p(answer), averaged over the draws: read off everybody's logits [draws tokens vocabulary] in one way."""
    return float(runs.log_p_of_logits(logits[:, -len(runs.answer) :]).exp().mean())


def pyvene(lm: LanguageModel, runs: Runs, noise: Tensor) -> dict[str, Run]:
    """Noise as an intervention on the embeddings, the clean state as a constant source: one pass a cell.

    On the model without its head, which is then applied to the last token only.
    """
    import pyvene as pv

    ids, (first, stop) = runs.corrupted.batch.ids, runs.subject
    samples = len(ids)

    @torch.no_grad()
    def run(cell: Cell) -> float:
        source = runs.clean.states[cell.layer + 1][:, cell.token : cell.token + 1].expand(samples, -1, -1)
        restore = pv.VanillaIntervention(embed_dim=lm.d_model, source_representation=source)
        model = pv.IntervenableModel(
            [
                {
                    "component": "embed_tokens.output",
                    "max_number_of_units": stop - first,
                    "intervention": lambda base, source: base + noise,
                },
                {"layer": cell.layer, "component": "block_output", "intervention": restore},
            ],
            lm.hf.base_model,
        )
        where = {"sources->base": (None, [[list(range(first, stop))] * samples, [[cell.token]] * samples])}
        _, output = model({"input_ids": ids}, unit_locations=where, use_cache=False)
        return p_of(runs, lm.unembed(output.last_hidden_state[:, -len(runs.answer) :]))

    return {"pyvene": run}


def transformer_lens(lm: LanguageModel, runs: Runs, noise: Tensor) -> dict[str, Run]:
    """Its own activation patching, one pass a cell; and the most that its user can save, starting at the cell's layer.

    On a copy of the model, whose modules it replaces by its own.
    """
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    patching.tqdm = iter  # a progress bar a cell would neither be read nor be fair to time
    ids, (first, stop) = runs.corrupted.batch.ids, runs.subject
    bridge = TransformerBridge.boot_transformers(
        lm.name, hf_model=copy.deepcopy(lm.hf), tokenizer=lm.tokenizer, device=str(lm.device), dtype=lm.dtype
    )

    def corrupt(state: Tensor, hook: Any) -> Tensor:
        state = state.clone()
        state[:, first:stop] += noise
        return state

    with torch.no_grad():
        _, clean = bridge.run_with_cache(runs.clean.batch.ids)
        bridge.add_hook("hook_embed", corrupt)
        _, corrupted = bridge.run_with_cache(ids)

    @torch.no_grad()
    def patched(cell: Cell) -> float:
        result = patching.generic_activation_patch(
            bridge,
            ids,
            clean,
            lambda logits: torch.tensor(p_of(runs, logits)),
            patching.layer_pos_patch_setter,
            "resid_post",
            index_df=pd.DataFrame([(cell.layer, cell.token)], columns=["layer", "pos"]),
        )
        return float(result[0])

    @torch.no_grad()
    def started(cell: Cell) -> float:
        if cell.layer + 1 == lm.n_layers:  # there is no later layer to start at
            return patched(cell)
        state = corrupted["resid_post", cell.layer].clone()
        state[:, cell.token] = clean["resid_post", cell.layer][:, cell.token]
        return p_of(runs, bridge.run_with_hooks(state, start_at_layer=cell.layer + 1))

    return {"TransformerLens": patched, "TransformerLens, start_at_layer": started}


OTHERS: dict[str, Callable[[LanguageModel, Runs, Tensor], dict[str, Run]]] = {
    "pyvene": pyvene,
    "transformer-lens": transformer_lens,
}


def others(lm: LanguageModel, runs: Runs, noise: Tensor) -> dict[str, Run]:
    """The tools that are installed; what keeps one from running is said and not hidden."""
    found: dict[str, Run] = {}
    for name, make in OTHERS.items():
        try:
            found |= make(lm, runs, noise)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def compare(lm: LanguageModel, config: TraceConfig, length: int, n_cells: int) -> list[Row]:
    """One row a tool. The heat map of rome_core is timed whole, before and after the others' cells."""
    prompt = PROMPTS[length]
    runs = prepare(lm, TraceRequest(prompt, config))
    first, stop = runs.subject
    noise, _ = draw_noise(lm, config, stop - first)
    tools: dict[str, Run] = {"plain hooks (rome_core)": lambda cell: plain_p(lm, runs, cell), **others(lm, runs, noise)}
    grid = every_cell(lm, runs, config.site)
    cells = spread(grid, n_cells)
    for run in tools.values():
        run(cells[0])  # the first call of each is slow
    ours, before = timed(lambda: trace(lm, prompt, config))
    taken: dict[str, list[float]] = {name: [] for name in tools}
    p: dict[str, list[float]] = {name: [] for name in tools}
    for cell in cells:
        for name, run in tools.items():
            value, seconds = timed(partial(run, cell))
            taken[name].append(seconds)
            p[name].append(value)
    _, after = timed(lambda: trace(lm, prompt, config))
    fast = mean((before, after))
    rows: list[Row] = [
        {"tool": "rome_core", "cells": len(grid), "cell_seconds": fast / len(grid), "map_seconds": fast, "ratio": 1.0}
    ]
    expected = [float(ours.probabilities[cell.token, cell.layer]) for cell in cells]
    for name in tools:
        rows.append(row_of(name, taken[name], p[name], expected, len(grid), fast))
    return rows


def row_of(name: str, taken: list[float], p: list[float], expected: list[float], n_grid: int, fast: float) -> Row:
    """A tool that runs one pass a cell, scaled to the whole heat map."""
    return {
        "tool": name,
        "cells": len(taken),
        "cell_seconds": mean(taken),
        "map_seconds": mean(taken) * n_grid,
        "ratio": mean(taken) * n_grid / fast,
        "difference": max(abs(a - b) for a, b in zip(p, expected, strict=True)),
        "seconds_each": taken,
    }


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--length", type=int, choices=PROMPTS, default=10, help="tokens of the prompt")
    parser.add_argument("--samples", type=int, default=10, help="noise draws")
    parser.add_argument("--cells", type=int, default=24, help="how many cells each of the other tools runs")
    options = parse(parser)
    lm = load_model()
    if note := replay_note(lm):
        sys.exit(note)
    config = TraceConfig(site="resid_post", samples=options.samples)
    rows = compare(lm, config, options.length, options.cells)
    about = {**machine(lm, "pyvene", "transformer-lens"), "tokens": options.length, "samples": options.samples}
    print(heading(about), table(COLUMNS, rows), sep="\n\n")
    write(options.out, machine=about, tools=rows)


if __name__ == "__main__":
    main()
