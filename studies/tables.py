"""The tables of docs/editing.md, with intervals, from the results of studies/edits.py: `python -m studies.tables`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from rome_core.evaluation.scores import Score, mean_score
from studies.common import RESULTS, read

Record = dict[str, Any]
SCORES = ("ES", "PS", "NS", "EM", "PM", "NM")
POOLS: dict[str, Callable[[Record], bool]] = {
    "all": lambda record: True,
    "subject first": lambda record: record["first"],
    "others": lambda record: not record["first"],
}


def cell(score: Score) -> str:
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def line(
    name: str,
    cases: list[dict[str, float]],
    alike: Iterable[float | None],
    ratios: Iterable[float],
    norms: Iterable[float],
) -> str:
    """One variant on one pool: mean scores with intervals, median ‖Δ‖/‖W‖, and the worst growth of perplexity.

    alike: p(new) on namesakes, None for a fact without.
    """
    cells = [cell(mean_score([case[score] for case in cases if score in case])) for score in SCORES[:3]]
    said = [value for value in alike if value is not None]
    cells.append(cell(mean_score(said)) if said else "")
    grown = list(ratios)
    broken = sum(ratio > 2 for ratio in grown)
    return f"| {name} | {len(cases)} | {' | '.join(cells)} | {median(norms):.3f} | {max(grown):.2f} | {broken} |"


def table(records: list[Record]) -> list[str]:
    lines = [
        "| policy, C | facts | ES | PS | NS | p(new), namesakes | ‖Δ‖/‖W‖, median | perplexity ×, worst "
        "| more than 2× |",
        "| --- | ---: | --- | --- | --- | --- | ---: | ---: | ---: |",
        line(
            "before",
            [record["before"] for record in records],
            [record["namesakes_before"] for record in records],
            [1.0] * len(records),
            [0.0] * len(records),
        ),
    ]
    for policy, C in dict.fromkeys((v["policy"], v["C"]) for record in records for v in record["variants"]):
        some = [
            (variant, record["perplexity_before"])
            for record in records
            for variant in record["variants"]
            if (variant["policy"], variant["C"]) == (policy, C)
        ]
        ratios = [variant["perplexity"] / before for variant, before in some]
        norms = [variant["relative_norm"] for variant, _ in some]
        alike = [variant["namesakes"] for variant, _ in some]
        lines.append(line(f"{policy}, {C}", [variant["case"] for variant, _ in some], alike, ratios, norms))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=RESULTS / "edits.jsonl")
    args = parser.parse_args()
    records = read(args.file)
    for name, belongs in POOLS.items():
        some = [record for record in records if belongs(record)]
        print(f"**{name}**, layers {', '.join(map(str, sorted({record['layer'] for record in some})))}\n")
        print("\n".join(table(some)) + "\n")


if __name__ == "__main__":
    main()
