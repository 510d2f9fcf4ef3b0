"""What the studies share: arguments, facts and the edits still missing, results as one JSON record a line, tables.

A stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rome_core import Fact, LanguageModel
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation import Score, choose_facts, score_pairs, summarise
from rome_core.evaluation.runs.folder import append_line, cut_off, read_lines
from rome_core.evaluation.solving import Solved, solve_by_each
from rome_core.facts.datasets import Part, facts_of
from rome_core.files import STUDIES

Record = dict[str, Any]
RESULTS = STUDIES
SCORES = ("ES", "PS", "NS", "S")
ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "--seed": {"type": int, "default": 0, "help": "of the choice of facts"},
    "--minutes": {"type": float, "default": math.inf, "help": "end after so many"},
    "--table": {"action": "store_true", "help": "print the results and end"},
}


def arguments(doc: str | None, file: str, *names: str, **numbers: int | None) -> argparse.ArgumentParser:
    """The parser of a study that writes `file`: some of ARGUMENTS by name, and whole numbers by their defaults."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, default=RESULTS / file)
    for name in names:
        parser.add_argument(name, **ARGUMENTS[name])
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default or 'the preset’s'})")
    return parser


def parse(
    parser: argparse.ArgumentParser, table: Callable[[list[Record]], Iterable[str]]
) -> tuple[argparse.Namespace, list[Record]]:
    """The arguments and the records so far; --table prints these and ends the study."""
    args = parser.parse_args()
    records = read(args.out)
    if args.table:
        print("\n".join(table(records)))
        raise SystemExit
    return args, records


def draw_facts(part: Part, n: int, seed: int, neighbours: int = 5) -> list[Fact]:
    """n facts of a part in a seeded order, with so many of their ten neighbours, to save time."""
    facts = choose_facts(facts_of(part), n, seed)
    return [replace(fact, neighbours=fact.neighbours[:neighbours]) for fact in facts]


def solve_missing(
    lm: LanguageModel,
    facts: Sequence[Fact],
    groups: Sequence[Sequence[MethodConfig]],
    name_of: Callable[[MethodConfig], str],
    done: set[tuple[str, str]],
    minutes: float,
) -> Iterator[tuple[Fact, str, Solved]]:
    """Each fact by the methods of each group, which share their searches, until the minutes are over. done: fact and
    name of what is passed over."""
    began = time.monotonic()
    for fact, group in tqdm(list(product(facts, groups))):
        if time.monotonic() - began > 60 * minutes:
            return
        todo = {name_of(config): config for config in group if (fact.id, name_of(config)) not in done}
        for name, solved in zip(todo, solve_by_each(lm, fact.request, list(todo.values())), strict=True):
            yield fact, name, solved


def read(path: Path) -> list[Record]:
    """All records of a results file; a last line that was cut off by a kill is passed over."""
    return list(read_lines(path))


def append(path: Path, record: Record) -> None:
    """Add a record; a line that a kill cut off makes way for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off(path)
    append_line(path, record)


# -------------------------------------------------------------------------------------------------------------- tables


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table. A column whose name ends in a colon holds numbers, which stand on the right."""
    names = [column.removesuffix(":") for column in columns]
    rules = ["---:" if column.endswith(":") else "---" for column in columns]
    return [f"| {' | '.join(map(str, row))} |" for row in (names, rules, *rows)]


def cell(score: Score | None, decimals: int = 3) -> str:
    """A score with its 95 % interval; empty where there is none."""
    if score is None:
        return ""
    return f"{score.value:.{decimals}f} ({score.low:.{decimals}f} to {score.high:.{decimals}f})"


def by_variant(records: Sequence[Record], key: str) -> dict[str, list[Record]]:
    """The records of what could be edited, by the name that stands under a key."""
    good = [record for record in records if not record.get("error")]
    return {name: [r for r in good if r[key] == name] for name in dict.fromkeys(record[key] for record in good)}


def score_cells(records: Sequence[Record]) -> list[str]:
    scores = summarise([score_pairs(record["case"]) for record in records])
    return [cell(scores.get(name)) for name in SCORES]
