"""How right a preview is, against exact maps of the MLP and the attention: `python -m studies.preview --facts 50`.

The facts are those of the average study, in its order, with the page's defaults: window of 10, 10 draws of 3 σ, seed 1.
Writes docs/studies/preview_exact.jsonl (the exact maps, the slow part) and docs/studies/preview.jsonl (which cell each
method names, and what it says of the ten strongest; to be deleted when a method has changed), one fact a line. A
stopped study goes on where it was. `--table` prints the results, `python -m studies.figures` draws them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from rome_core import LanguageModel, TraceConfig, load_facts, load_model
from rome_core.model.hooks import Patch, Point, forward, hooked
from rome_core.model.replay import Module
from rome_core.model.tokens import as_target
from rome_core.tracing.heat_map import heat_map_steps
from rome_core.tracing.preview import first_draws, likely_peaks, preview_steps
from rome_core.tracing.restoration import window_of
from rome_core.tracing.runs import KINDS, Metric, Runs, TraceRequest, prepare
from studies.common import RESULTS, Record, append, arguments, markdown, parse, read

SITES: tuple[Module, ...] = ("mlp_out", "attn_out")
DRAWS = 3  # of the gradients: as many as take the time of a preview's coarse runs
TOP = 10  # strongest exact cells, whose sizes are compared
LAYERS, FACTOR = 2, 2.0  # what counts as near: layers of a cell, factor of a size
PREVIEW, BEFORE = "preview", "gradient of p, corrupted run"
EXACT = RESULTS / "preview_exact.jsonl"
GRADIENTS: Mapping[str, tuple[Metric, tuple[float, ...]]] = {  # of what, and where on the way to the clean embeddings
    BEFORE: ("p", (0.0,)),
    "gradient of p, clean run": ("p", (1.0,)),
    "gradient of p, both ends": ("p", (0.0, 1.0)),
    "integrated gradient of p, 5 steps": ("p", (0.0, 0.25, 0.5, 0.75, 1.0)),
    "gradient of log p, corrupted run": ("log p", (0.0,)),
    "gradient of log p, both ends": ("log p", (0.0, 1.0)),
    "integrated gradient of log p, 5 steps": ("log p", (0.0, 0.25, 0.5, 0.75, 1.0)),
}
Grid = Float[Tensor, "pos layer"]


# ------------------------------------------------------------------------------------------------------------- exact


def exact_maps(lm: LanguageModel, runs: Runs) -> Record:
    """p(answer) of every cell from the subject on, and the processor's seconds that it took."""
    began = time.process_time()
    record: Record = {"labels": runs.labels, "subject": runs.subject}
    for site in SITES:
        *_, found = heat_map_steps(lm, runs, site)
        record |= {"clean": found.clean, "corrupted": found.corrupted}
        record[site] = [[float(f"{p:.4g}") for p in row] for row in found.probabilities[runs.subject[0] :].tolist()]
    return record | {"seconds": round(time.process_time() - began, 1)}


def effects_of(exact: Record, site: str) -> Grid:
    """Exact indirect effects, zero before the subject."""
    first, rows = exact["subject"][0], torch.tensor(exact[site])
    return torch.cat([torch.zeros(first, rows.shape[1]), rows - exact["corrupted"]])


# ---------------------------------------------------------------------------------------------------------- candidates


def by_gradients(lm: LanguageModel, runs: Runs) -> Iterator[tuple[str, dict[str, Grid]]]:
    """Indirect effects as each of GRADIENTS has them, by kind. For log p the estimate is put on top of each draw's own
    log p, up to the clean run's."""
    steps = {(metric, step) for metric, of_metric in GRADIENTS.values() for step in of_metric}
    changes = {(metric, step): changes_at(lm, runs, metric, step) for metric, step in steps}
    corrupted, clean = (runs.log_p_of_logits(runs.logits(lm, run)) for run in (runs.corrupted, runs.clean))
    low, high = corrupted[:, None, None], torch.maximum(clean, corrupted)[:, None, None]
    for name, (metric, of_metric) in GRADIENTS.items():
        weights = trapezoid(len(of_metric))
        maps: dict[str, Grid] = {}
        for site in SITES:
            weighted = [w * changes[metric, step][site] for w, step in zip(weights, of_metric, strict=True)]
            effect = torch.stack(weighted).sum(0)
            if metric == "log p":
                effect = torch.minimum(low + effect, high).exp() - low.exp()
            effect[:, : runs.subject[0]] = 0.0
            maps[site] = effect.mean(0)
        yield name, maps


def changes_at(
    lm: LanguageModel, runs: Runs, metric: Metric, step: float
) -> dict[str, Float[Tensor, "samples pos layer"]]:
    """(h_clean − h_corrupted)·g summed over windows, with the gradients of a pass whose embeddings are a share `step`
    of the way from the corrupted to the clean ones."""
    points = [Point(site, layer) for site in SITES for layer in range(lm.n_layers)]
    kept: dict[Point, Tensor] = {}
    at_embed, corrupt = runs.corruption
    on_the_way: Patch = lambda state: torch.lerp(corrupt(state), state, step).requires_grad_()  # noqa: E731
    with torch.enable_grad():
        with hooked(lm, (), [(at_embed, on_the_way)], kept.__setitem__, points):
            final = forward(lm, runs.corrupted.batch)
        scores = runs.scores(metric, lm.unembed(final[:, -len(runs.answer) :]))
        gradients = dict(zip(points, torch.autograd.grad(scores.sum(), [kept[p] for p in points]), strict=True))
    windows = [window_of(layer, runs.request.config.window, lm.n_layers) for layer in range(lm.n_layers)]
    changes: dict[str, Tensor] = {}
    for site in SITES:
        pairs = zip(runs.clean.outputs[site], runs.corrupted.outputs[site], strict=True)
        differences = [clean - corrupted for clean, corrupted in pairs]
        single = [(d * gradients[Point(site, layer)]).sum(-1) for layer, d in enumerate(differences)]
        of_layers = torch.stack(single, -1)[:, : len(runs.labels)]
        changes[site] = torch.stack([of_layers[..., start:stop].sum(-1) for start, stop in windows], -1)
    return changes


def trapezoid(n: int) -> list[float]:
    """Weights of n evenly spaced steps."""
    return [1.0] if n == 1 else [(0.5 if at in (0, n - 1) else 1.0) / (n - 1) for at in range(n)]


def compare(lm: LanguageModel, request: TraceRequest, exact: Record) -> Record:
    """By kind: the ten strongest effects and the strongest cell, exactly and by each method.

    seconds: the processor's, of the exact maps, and of a preview from the question until both kinds are measured.
    """
    record: Record = {}
    truth = {site: effects_of(exact, site) for site in SITES}
    top = {site: truth[site].flatten().argsort(descending=True)[:TOP] for site in SITES}
    for site in SITES:
        record[site] = {"exact": {"top": _rounded(truth[site], top[site]), "named": [_peak(truth[site])]}}

    began = time.process_time()
    runs = prepare(lm, request)
    *_, maps = preview_steps(lm, runs, SITES)
    record["seconds"] = {"exact": exact["seconds"], PREVIEW: round(time.process_time() - began, 2)}
    for site in SITES:
        grid, named = maps[site].indirect_effect, [list(place) for place in likely_peaks(maps[site])]
        record[site][PREVIEW] = {"top": _rounded(grid, top[site]), "named": named}

    for name, grids in by_gradients(lm, first_draws(runs, DRAWS)):
        for site in SITES:
            record[site][name] = {"top": _rounded(grids[site], top[site]), "named": [_peak(grids[site])]}
    return record


def _peak(grid: Grid) -> list[int]:
    return list(divmod(int(grid.argmax()), grid.shape[1]))


def _rounded(grid: Grid, places: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in grid.flatten()[places].tolist()]


# --------------------------------------------------------------------------------------------------------------- table


def hits(record: Record, site: str, method: str) -> tuple[bool, bool, int]:
    """Whether the cell that is named first has the strongest one's token, whether it is within two layers of it as
    well, and how many of the ten strongest have half to twice their exact size."""
    exact, found = record[site]["exact"], record[site][method]
    [(token, layer)] = exact["named"]
    right = found["named"][:1] and found["named"][0][0] == token
    ratios = [guess / value for guess, value in zip(found["top"], exact["top"], strict=True)]
    near = right and abs(found["named"][0][1] - layer) <= LAYERS
    return bool(right), bool(near), sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios)


def table(records: list[Record]) -> Iterator[str]:
    """How often each method is right, over the facts so far."""
    if not records:
        return
    n = len(records)
    columns = [f"{KINDS[site]}: {what}:" for site in SITES for what in ("token", f"within {LAYERS} layers", "size")]
    rows = []
    for method in (*GRADIENTS, PREVIEW):
        row = [method]
        for site in SITES:
            tokens, layers, sizes = map(sum, zip(*(hits(record, site, method) for record in records), strict=True))
            row += [f"{tokens / n:.0%}", f"{layers / n:.0%}", f"{sizes / n / TOP:.0%}"]
        rows.append(row)
    yield from markdown(["", *columns], rows)
    for site in SITES:
        alone = [record for record in records if len(record[site][PREVIEW]["named"]) == 1]
        right = sum(hits(record, site, PREVIEW)[0] for record in alone)
        yield f"{KINDS[site]}: the preview names one token alone in {len(alone)} of {n} facts, {right} times rightly"
    exact, quick = (sum(record["seconds"][name] for record in records) / n for name in ("exact", PREVIEW))
    yield f"{n} facts; on one core the exact maps of both kinds take {exact:.0f} s, the preview {quick:.1f} s"


def main() -> None:
    parser = arguments(__doc__, "preview.jsonl")
    parser.add_argument("--facts", type=int, default=50, help="of those that the average study found known")
    parser.add_argument("--exact", type=Path, default=EXACT, help="where the exact maps are")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    args, records = parse(parser, table)
    known = [row["fact"] for row in read(RESULTS / "average_effects.jsonl") if not row["dropped"]]
    facts = {fact.id: fact for fact in load_facts()}
    exact = {record["fact"]: record for record in read(args.exact)}
    done = {record["fact"] for record in records}
    lm = load_model()
    for name in tqdm(known[: args.facts]):
        prompt = facts[name].prompt
        request = TraceRequest(prompt, TraceConfig(), as_target(facts[name].target_true, prompt.text))
        if name not in exact:
            exact[name] = {"fact": name, **exact_maps(lm, prepare(lm, request))}
            append(args.exact, exact[name])
        if name not in done:
            append(args.out, {"fact": name, **compare(lm, request, exact[name])})


if __name__ == "__main__":
    main()
