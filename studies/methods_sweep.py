"""Defaults of the methods over several layers, measured: `python -m studies.methods_sweep --minutes 20`.

MEMIT's λ, number of layers and clamp, and AlphaEdit's energy, on facts of the validation part. A value depends on the
clamp alone, so it is searched once a fact and clamp, with six prefixes. Writes docs/studies/methods_sweep.jsonl, one
fact and variant a line; `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from rome_core import load_model
from rome_core.diagnosis.verdict import size_of
from rome_core.editing.methods import MethodConfig
from rome_core.editing.presets import resolve
from rome_core.evaluation import ask, pairs_of, questions_about, score_pairs, summarise
from rome_core.evaluation.solving import solve_by_each
from rome_core.facts.datasets import facts_of
from studies.common import RESULTS, append, read
from studies.methods_table import SCORES, configs
from studies.tables import cell

CLAMPS = (0.75, 1.5)
MEMIT: dict[str, tuple[float, ...]] = {"span": (1, 3, 5), "weight": (2.0, 20.0, 200.0)}
ALPHAEDIT: dict[str, tuple[float, ...]] = {"energy": (0.02, 0.1, 0.3), "weight": (0.01, 0.3)}


def variants(base: Sequence[MethodConfig], clamp: float) -> list[MethodConfig]:
    """Every combination of both grids, the other settings as they are by default."""
    found = []
    for config, grid in zip(base, (MEMIT, ALPHAEDIT), strict=True):
        for values in product(*grid.values()):
            found.append(replace(config, clamp=clamp, **dict(zip(grid, values, strict=True))))  # type: ignore[call-arg]
    return found


def name_of(config: MethodConfig) -> str:
    grid = MEMIT if config.name == "memit" else ALPHAEDIT
    return ", ".join([config.name, *(f"{name} {getattr(config, name):g}" for name in ("clamp", *grid))])


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"| variant | facts | {' | '.join(SCORES)} | ‖Δ‖/‖W‖, median |",
        "| --- | ---: |" + " --- |" * len(SCORES) + " ---: |",
    ]
    for name in dict.fromkeys(record["variant"] for record in records):
        some = [record for record in records if record["variant"] == name and not record.get("error")]
        if some:
            scores = summarise([score_pairs(record["case"]) for record in some])
            cells = " | ".join(cell(scores[score]) for score in SCORES)
            lines.append(f"| {name} | {len(some)} | {cells} | {median(r['relative_norm'] for r in some):.3g} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of facts")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods_sweep.jsonl")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    args = parser.parse_args()
    records = read(args.out)
    if args.table:
        print("\n".join(table(records)))
        return
    began, lm = time.monotonic(), load_model()
    base = [resolve(lm, config) for config in configs(lm, ("memit", "alphaedit"))]
    done = {(record["fact"], record["variant"]) for record in records}
    facts = facts_of("validation")
    random.Random(args.seed).shuffle(facts)
    for fact, clamp in tqdm(list(product(facts[: args.facts], CLAMPS))):
        if time.monotonic() - began > 60 * args.minutes:
            break
        fact = replace(fact, neighbours=fact.neighbours[:5])
        todo = [config for config in variants(base, clamp) if (fact.id, name_of(config)) not in done]
        for solved in solve_by_each(lm, fact.request, todo):
            about = {"fact": fact.id, "variant": name_of(solved.config)}
            if solved.edit is None:
                append(args.out, {**about, "error": solved.error})
                continue
            case = pairs_of(ask(lm, questions_about(fact), edits=[solved.edit]))
            append(args.out, {**about, "case": case, "relative_norm": size_of(lm, solved.edit).relative_F})


if __name__ == "__main__":
    main()
