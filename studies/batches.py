"""Many facts in one edit against one after another: `python -m studies.batches --facts 100 --minutes 45`.

MEMIT and EMMET solve all facts into one edit; the key policy edits them one after another, each on top of the former
ones. Facts of the test part, six prefixes. Searches are kept in the user's cache as they finish, so a stopped study
goes on where it was. Writes docs/studies/batches.jsonl, one way a line; `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rome_core import Edit, Fact, LanguageModel, load_model
from rome_core.default_model import cache_dir
from rome_core.diagnostics import size_of
from rome_core.evaluation import Pace, case_of, create_run, edit_in_sequence, open_run, perplexity, plan_sequence
from rome_core.evaluation.scores import Score, summarise
from rome_core.methods import MethodConfig
from rome_core.methods.mass import Wanted
from rome_core.methods.shared import search, update_of
from rome_core.methods.value import prompts_of
from rome_core.moment import moments_for
from rome_core.presets import resolve
from studies.common import RESULTS, append, read
from studies.methods_table import SCORES, configs, drawn
from studies.tables import cell

WORK = cache_dir() / "studies" / "batches"


class Late(Exception):
    """The minutes are over."""


def value_of(lm: LanguageModel, fact: Fact, config: Any) -> tuple[Wanted, float]:
    """What the search of one fact finds, and its seconds: from the cache if it is there."""
    settings = hashlib.blake2b(repr((lm.fingerprint, config)).encode(), digest_size=6).hexdigest()
    path = WORK / settings / f"{fact.id.replace('/', '-')}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        prompts = prompts_of(lm, fact.request, config.prefixes, config.kl_at)
        return Wanted(fact.request, prompts, kept["h"], kept["delta"], ()), kept["seconds"]
    began = time.monotonic()
    found = search(lm, fact.request, config)
    seconds = time.monotonic() - began
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"h": found.h, "delta": found.delta, "seconds": seconds}, path)
    return found, seconds


def batch(lm: LanguageModel, facts: Sequence[Fact], config: Any, ends: float) -> tuple[list[Edit], float]:
    """One edit of all facts, and the seconds that it takes."""
    found, seconds = list[Wanted](), 0.0
    for fact in tqdm(facts, config.name):
        if time.monotonic() > ends:
            raise Late
        value, spent = value_of(lm, fact, config)
        found.append(value)
        seconds += spent
    moments_for(lm, config.layers, None)  # made once a layer, and no part of the time
    began = time.monotonic()
    edit = update_of(lm, found, config)
    return [edit], seconds + time.monotonic() - began


def sequence(lm: LanguageModel, facts: Sequence[Fact], config: MethodConfig, ends: float) -> tuple[list[Edit], float]:
    """The edits of all facts, each on top of the former ones, and the seconds that solving them takes."""
    folder = WORK / f"sequence-{config.name}-{len(facts)}"
    plan = plan_sequence(lm, facts, config, Pace(check_every=len(facts)))
    run = open_run(folder) if folder.exists() else create_run(folder, lm, plan)
    for _ in tqdm(edit_in_sequence(lm, run), config.name):
        if time.monotonic() > ends:
            raise Late
    return run.edits(), sum(record.solve_seconds for record in run.records)


def measure(lm: LanguageModel, facts: Sequence[Fact], edits: Sequence[Edit]) -> dict[str, Any]:
    """Scores of all facts and perplexity under the finished edits."""
    scores = summarise([case_of(lm, replace(fact, neighbours=fact.neighbours[:4]), edits=edits) for fact in facts])
    value = perplexity(lm, edits=edits)
    return {
        "scores": {name: [s.value, s.low, s.high, s.n] for name, s in scores.items()},
        "perplexity": value if math.isfinite(value) else None,
    }


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"| way | facts | {' | '.join(SCORES)} | perplexity | largest ‖Δ‖/‖W‖ | seconds |",
        "| --- | ---: |" + " --- |" * len(SCORES) + " ---: | ---: | ---: |",
    ]
    for r in records:
        cells = " | ".join(cell(Score(*r["scores"][name])) for name in SCORES)
        large = "beyond numbers" if r["perplexity"] is None else f"{r['perplexity']:.1f}"
        size = "" if r["relative_norm"] is None else f"{r['relative_norm']:.3g}"
        lines.append(f"| {r['way']} | {r['facts']} | {cells} | {large} | {size} | {r['seconds']:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of facts")
    parser.add_argument("--batched", nargs="*", default=["memit", "emmet"], help="solved into one edit")
    parser.add_argument("--single", nargs="*", default=["r-rome"], help="solved one after another")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--out", type=Path, default=RESULTS / "batches.jsonl")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    args = parser.parse_args()
    records = read(args.out)
    if args.table:
        print("\n".join(table(records)))
        return
    ends, lm = time.monotonic() + 60 * args.minutes, load_model()
    facts = drawn(args.facts, args.seed)
    done = {(record["way"], record["facts"]) for record in records}
    ways = [("no edit", None), *((f"{name}, one batch", batch) for name in args.batched)]
    ways += [(f"{name}, one after another", sequence) for name in args.single]
    for (way, make), name in zip(ways, ["", *args.batched, *args.single], strict=True):
        if (way, len(facts)) in done:
            continue
        edits, seconds, size = list[Edit](), 0.0, None
        if make is not None:
            (config,) = configs(lm, [name])
            try:
                edits, seconds = make(lm, facts, resolve(lm, config), ends)
            except Late:
                return
            size = size_of(lm, edits[0]).relative_F if len(edits) == 1 else None
        record = {"way": way, "facts": len(facts), "seconds": seconds, "relative_norm": size}
        append(args.out, {**record, **measure(lm, facts, edits)})


if __name__ == "__main__":
    main()
