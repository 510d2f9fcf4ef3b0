"""Where to edit: ES, PS, NS and S by layer for every key policy: `python -m studies.layers --minutes 25`.

For each layer and fact δ is searched once, with six prefixes, and every policy's update is made of it. Writes
docs/studies/layers.jsonl (of another model: name a file), one layer and fact a line, layers in a coarse-to-fine order.
The study ends after its minutes and goes on where it was when it is started again; `--table` prints what there is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from rome_core import DEFAULT_METHOD, DEFAULT_MODEL, METHODS, load_model
from rome_core.evaluation.layer_sweep import UPDATES, as_record, by_layer, from_record, sweep
from studies.common import SCORES, Record, append, arguments, cell, markdown, parse
from studies.edits import chosen


def tables(records: Sequence[Record]) -> Iterator[str]:
    """Markdown for each policy: a row a layer, scores with 95 % intervals."""
    swept = [from_record(record) for record in records]
    for policy in UPDATES:
        by_scores = by_layer(swept, policy).items()
        rows = [[layer, scores["ES"].n, *(cell(scores[name], 2) for name in SCORES)] for layer, scores in by_scores]
        yield from (f"**{policy}**", "", *markdown(["layer:", "facts:", *SCORES], rows), "")


def main() -> None:
    parser = arguments(__doc__, "layers.jsonl", "--seed", "--minutes", "--table", facts=8)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hugging Face id or a folder")
    parser.add_argument("--clamp", type=float, default=None, help="default: the preset's")
    parser.add_argument("--step", type=int, default=2, help="the finest distance between layers")
    parser.add_argument("--layers", type=int, nargs="+", help="only these, in this order")
    args, records = parse(parser, tables)
    began = time.monotonic()
    lm = load_model(args.model)
    facts = chosen(args.facts, args.seed)
    coarse_to_fine = dict.fromkeys(layer for step in (8, 4, args.step) for layer in range(0, lm.n_layers, step))
    order = args.layers or list(coarse_to_fine)
    config: Any = METHODS[DEFAULT_METHOD](clamp=args.clamp)  # type: ignore[call-arg]
    done = {(record["layer"], record["fact"]) for record in records}
    wanted = {(layer, fact.id) for layer in order for fact in facts}
    bar = tqdm(total=len(wanted), initial=len(wanted & done))
    for swept in sweep(lm, facts, config, layers=order, done=done):
        append(args.out, as_record(swept))
        bar.update()
        if time.monotonic() - began > 60 * args.minutes:
            break


if __name__ == "__main__":
    main()
