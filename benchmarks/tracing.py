"""Heat maps of the default model, fast (`rome_core.trace`: replay) against plain (one whole forward pass a cell).

    python -m benchmarks.tracing --out build/tracing.json

Both run in this one process, with the machine's own matrix-multiply rate measured beside them. The plain method is
measured on evenly spread cells and scaled to all that an existing tool would run, every token × every layer; --full
runs them all. docs/benchmarks.md explains the columns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    MEGABYTE,
    Row,
    heading,
    machine,
    matmul_rate,
    parse,
    parser_of,
    spread,
    table,
    timed,
    with_memory,
    write,
)
from rome_core import LanguageModel, Prompt, Trace, TraceConfig, load_model, trace
from rome_core.model.replay import Cell, batches, plain_cell, replay_note
from rome_core.tracing.heat_map import cells_of
from rome_core.tracing.runs import Runs, TracedSite, TraceRequest, prepare

PROMPTS = {  # by number of tokens; the subject is tokens 1 to 3
    6: Prompt("The {} is in", "Eiffel Tower"),
    10: Prompt("The {} is located in the city of", "Eiffel Tower"),
    20: Prompt("The {} is visited by millions of people every year and it is located in the city of", "Eiffel Tower"),
}
NAMES: dict[TracedSite, str] = {"resid_post": "residual", "mlp_out": "MLP", "attn_out": "attention"}
COLUMNS = {
    "tokens": ("tokens", ""),
    "kind": ("kind", ""),
    "plain_cells": ("cells", "d"),
    "plain_run": ("measured", "d"),
    "plain_seconds": ("plain s", ".2f"),
    "seconds": ("fast s", ".2f"),
    "ratio": ("ratio", ".1f"),
    "difference": ("largest Δp", ".1e"),
    "gflop": ("GFLOP", ".1f"),
    "counted": ("counted", ".1f"),
    "reached": ("GFLOP/s", ".0f"),
    "rate": ("matmul GFLOP/s", ".0f"),
    "share": ("share", ".0%"),
    "peak_mb": ("peak MB", ".0f"),
    "grown_mb": ("grown MB", ".0f"),
}
GROWTH = {
    "tokens": ("tokens", ""),
    "kind": ("kind", ""),
    "units": ("units", ",.0f"),
    "seconds": ("fast s", ".2f"),
    "formula_seconds": ("c · units, s", ".2f"),
    "off": ("off", "+.0%"),
}


@dataclass(frozen=True)
class Cost:
    """What the fast path computes by the formula, and the token rows of its largest batch.

    units: block·token·row, as in `rome_core.model.replay.sweep`; a part of a block counts by its entries.
    """

    units: float
    flop: int
    rows: int


def cost_of(lm: LanguageModel, runs: Runs, cells: Sequence[Cell]) -> Cost:
    """Of one heat map by replay: the clean and the corrupted run, the restored ones, and the head where it is read.

    A matrix entry takes 2 FLOP for each token that it is multiplied with; the attention 4·d_attention for each key of
    each token (scores and weighted sum). Norms and other element-wise work are not counted.
    """
    block, mlp = entries(lm.blocks[0]), entries(lm.module(f"{lm.layout.block(0)}.{lm.layout.mlp_out.split('.')[0]}"))
    head = entries(lm.hf.get_output_embeddings())
    config = lm.hf.config.get_text_config()
    d_attention = config.num_attention_heads * (
        getattr(config, "head_dim", None) or lm.d_model // config.num_attention_heads
    )
    samples, width, _ = runs.corrupted.states[0].shape
    tail, last = len(runs.answer), lm.n_layers - 1
    # The answer is read off a run of its own, then come the clean and the corrupted one.
    tokens = lm.n_layers * width * (samples + 2)
    multiplied, keys, largest = tokens * block, tokens * width, 0
    for group in batches(lm, runs.corrupted, cells, runs.request.budget):
        token = group[0].token
        for layer in range(lm.n_layers):
            if own := samples * n_runs([c for c in group if c.entry == layer and c.resid is None], layer):
                multiplied += own * block
                keys += own * (token + 1)
            resumed = samples * n_runs([c for c in group if c.entry < layer], layer)
            skipped = max(0, width - token - tail) * mlp if layer == last else 0
            multiplied += resumed * ((width - token) * block - skipped)
            keys += resumed * (width - token) * width
            largest = max(largest, resumed * (width - token))
    read = 1 + tail * (1 + samples + samples * len(cells))
    return Cost(multiplied / block, 2 * multiplied + 4 * d_attention * keys + 2 * head * read, largest)


def entries(module: nn.Module | None) -> int:
    """Of the module's matrices."""
    assert module is not None
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def n_runs(cells: Sequence[Cell], layer: int) -> int:
    """How many different runs cells of one token are in a layer: as many as differ in what was restored up to it."""
    return len({(c.resid, *((w.site, w.start, min(w.stop, layer + 1)) for w in c.windows)) for c in cells})


@torch.no_grad()
def plain_p(lm: LanguageModel, runs: Runs, cell: Cell) -> float:
    """p(answer) of one restored run by one whole forward pass; the head is applied where the answer is read only."""
    hidden = plain_cell(lm, runs.clean, runs.corrupted.batch, cell, corruption=[runs.corruption])
    return float(runs.log_p_of_logits(lm.unembed(hidden[:, -len(runs.answer) :])).exp().mean())


def every_cell(lm: LanguageModel, runs: Runs, site: TracedSite) -> list[Cell]:
    """What a tool without a look at causality runs: the tokens before the subject, too."""
    return cells_of(lm, replace(runs, subject=(0, runs.subject[1])), site)


def measure(lm: LanguageModel, prompt: Prompt, config: TraceConfig, n_plain: int | None) -> Row:
    """One heat map: fast, plain and fast again, between two measurements of the machine's rate."""
    runs, prepared = timed(lambda: prepare(lm, TraceRequest(prompt, config)))
    cells, grid = cells_of(lm, runs, config.site), every_cell(lm, runs, config.site)
    cost = cost_of(lm, runs, cells)
    rates = [matmul_rate(lm, cost.rows)]
    result, first, peak, grown = with_memory(lambda: trace(lm, prompt, config))
    sample = grid if n_plain is None else spread(grid, n_plain)
    plain, plain_taken = timed(lambda: [plain_p(lm, runs, cell) for cell in sample])
    again, second = timed(lambda: trace(lm, prompt, config))
    rates.append(matmul_rate(lm, cost.rows))
    seconds, rate = mean((first, second)), mean(rates)
    return {
        "tokens": len(runs.labels),
        "kind": NAMES[config.site],
        "fast_cells": len(cells),
        "plain_cells": len(grid),
        "plain_run": len(sample),
        "plain_seconds": prepared + plain_taken * len(grid) / len(sample),
        "seconds": seconds,
        "seconds_each": [first, second],
        "difference": max(difference(t, sample, plain) for t in (result, again)),
        "units": cost.units,
        "gflop": cost.flop / 1e9,
        "matmul_rows": cost.rows,
        "rate": rate / 1e9,
        "rates_each": [r / 1e9 for r in rates],
        "peak_mb": None if peak is None else peak / MEGABYTE,
        "grown_mb": None if grown is None else grown / MEGABYTE,
    }


def difference(result: Trace, cells: Sequence[Cell], p: Sequence[float]) -> float:
    """Largest difference of p between the heat map and cells that were run plainly."""
    return max(abs(float(result.probabilities[c.token, c.layer]) - q) for c, q in zip(cells, p, strict=True))


def together(rows: Sequence[Row]) -> Row:
    """The three kinds of one prompt as one job."""
    total = {key: sum(row[key] for row in rows) for key in ("plain_cells", "plain_run", "units", "gflop")}
    return {
        "tokens": rows[0]["tokens"],
        "kind": "all",
        **total,
        "plain_seconds": sum(row["plain_seconds"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "difference": max(row["difference"] for row in rows),
        # The rate at which multiplying alone would have taken as long as the parts by themselves.
        "rate": total["gflop"] / sum(row["gflop"] / row["rate"] for row in rows),
        "peak_mb": max((row["peak_mb"] for row in rows if row["peak_mb"] is not None), default=None),
        "grown_mb": max((row["grown_mb"] for row in rows if row["grown_mb"] is not None), default=None),
    }


def with_ratios(row: Row) -> Row:
    """The row with what follows from its measurements."""
    reached = row["gflop"] / row["seconds"]
    return {**row, "ratio": row["plain_seconds"] / row["seconds"], "reached": reached, "share": reached / row["rate"]}


def growth(rows: Sequence[Row]) -> list[Row]:
    """Seconds that one constant times the formula's units gives, the constant fitted to the relative errors."""
    constant = sum(r["units"] / r["seconds"] for r in rows) / sum((r["units"] / r["seconds"]) ** 2 for r in rows)
    predicted = [constant * row["units"] for row in rows]
    return [
        {**row, "formula_seconds": seconds, "off": row["seconds"] / seconds - 1}
        for row, seconds in zip(rows, predicted, strict=True)
    ]


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--lengths", type=int, nargs="+", choices=PROMPTS, default=list(PROMPTS), help="of the prompts")
    parser.add_argument("--samples", type=int, default=10, help="noise draws")
    parser.add_argument("--window", type=int, default=10, help="layers restored together (MLP and attention)")
    parser.add_argument("--cells", type=int, default=24, help="how many cells of each heat map are run plainly")
    parser.add_argument("--full", action="store_true", help="run every cell plainly: minutes a heat map")
    parser.add_argument("--count", action="store_true", help="let torch count the multiplications, too: one more run")
    options = parse(parser)
    lm = load_model()
    if note := replay_note(lm):
        sys.exit(note)
    trace(lm, PROMPTS[6], TraceConfig(samples=1))  # the first passes of a process are slow
    rows: list[Row] = []
    for length in options.lengths:
        for site in NAMES:
            config = TraceConfig(site=site, window=options.window, samples=options.samples)
            row = measure(lm, PROMPTS[length], config, None if options.full else options.cells)
            if options.count:
                with FlopCounterMode(display=False) as counter:  # what torch itself counts, as a check of `cost_of`
                    trace(lm, PROMPTS[length], config)
                row["counted"] = counter.get_total_flops() / 1e9
            rows.append(row)
            print(f"{length} tokens, {NAMES[site]}: {row['seconds']:.2f} s", file=sys.stderr)
    rows = growth([with_ratios(row) for row in rows])
    per_prompt = [[row for row in rows if row["tokens"] == length] for length in options.lengths]
    totals = [with_ratios(together(group)) for group in per_prompt]
    about = machine(lm)
    shown = [row for group, total in zip(per_prompt, totals, strict=True) for row in (*group, total)]
    print(heading(about), table(COLUMNS, shown), table(GROWTH, rows), sep="\n\n")
    write(options.out, machine=about, options={k: str(v) for k, v in vars(options).items()}, maps=rows, totals=totals)


if __name__ == "__main__":
    main()
