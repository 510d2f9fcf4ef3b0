"""Defaults of the methods over several layers, measured: `python -m studies.methods_sweep --minutes 20`.

MEMIT's λ, number of layers and clamp, and AlphaEdit's energy, on facts of the validation part. A value depends on the
clamp alone, so it is searched once a fact and clamp, with six prefixes. Writes docs/studies/methods_sweep.jsonl, one
fact and variant a line; `--table` prints what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import median

from rome_core import load_model
from rome_core.diagnosis.verdict import size_of
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation import ask, pairs_of, questions_about
from studies.common import (
    SCORES,
    Record,
    append,
    arguments,
    by_variant,
    draw_facts,
    markdown,
    parse,
    score_cells,
    solve_missing,
)
from studies.methods_table import configs

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


def table(records: Sequence[Record]) -> list[str]:
    return markdown(
        ["variant", "facts:", *SCORES, "‖Δ‖/‖W‖, median:"],
        [
            [name, len(some), *score_cells(some), f"{median(r['relative_norm'] for r in some):.3g}"]
            for name, some in by_variant(records, "variant").items()
        ],
    )


def main() -> None:
    args, records = parse(arguments(__doc__, "methods_sweep.jsonl", "--seed", "--minutes", "--table", facts=8), table)
    lm, done = load_model(), {(record["fact"], record["variant"]) for record in records}
    base, facts = configs(lm, ("memit", "alphaedit")), draw_facts("validation", args.facts, args.seed)
    groups = [variants(base, clamp) for clamp in CLAMPS]
    for fact, name, solved in solve_missing(lm, facts, groups, name_of, done, args.minutes):
        about = {"fact": fact.id, "variant": name}
        if solved.edit is None:
            append(args.out, {**about, "error": solved.error})
            continue
        case = pairs_of(ask(lm, questions_about(fact), edits=[solved.edit]))
        append(args.out, {**about, "case": case, "relative_norm": size_of(lm, solved.edit).relative_F})


if __name__ == "__main__":
    main()
