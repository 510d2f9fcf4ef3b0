"""A run's rows as tables: scores by method and stage with their intervals, and the same as CSV, LaTeX, Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rome_core.evaluation.measures import COUNTERFACT, MEASURES, ZSRE
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.scores import Score, summarise
from rome_core.files import csv_text, write_whole

NO_EDIT = "no edit"
STAGES = ("before", "after", "end")


@dataclass(frozen=True)
class Line:
    """One method at one stage. n: facts that were edited; failed: facts that could not be; known: facts of the n whose
    true object the unedited model says."""

    method: str
    stage: str
    n: int
    failed: int
    known: int
    scores: Mapping[str, Score]


def score_lines(rows: Sequence[Row], *, known_only: bool = False, seed: int = 0) -> list[Line]:
    """Methods in the order of their first row, each before its edits, after each, and at the end of each group.

    All are of the same facts (see `in_common`), but for those that a method could not edit, which count as failed.
    known_only: of those facts, the ones that the model knew.
    """
    lines, rows = [], common_rows(rows)
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [row for row in rows if row.method == method]
        failed = {row.position for row in of_method if row.error}
        good = [row for row in of_method if row.position not in failed and (row.known or not known_only)]
        for stage in STAGES:
            at_stage = [row for row in good if row.stage == stage]
            if at_stage:
                scores = summarise([row.values for row in at_stage], seed=seed)
                lines.append(
                    Line(method, stage, len(at_stage), len(failed), sum(bool(row.known) for row in at_stage), scores)
                )
        if not good and failed:
            lines.append(Line(method, "after", 0, len(failed), 0, {}))
    return lines


def common_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the facts that every method has had its turn with, so that a run under way compares methods on equal
    facts; before there is one, all rows."""
    methods = {row.method for row in rows}
    had: dict[int, set[str]] = {}
    for row in rows:
        had.setdefault(row.position, set()).add(row.method)
    return [row for row in rows if had[row.position] == methods] or list(rows)


def merge_unedited(lines: Sequence[Line]) -> list[Line]:
    """The same lines with one "no edit" for all methods that print the same of the unedited model; C-ROME, which stands
    behind a prefix, keeps its own."""
    printed = [_printed(line) for line in lines if line.stage == "before"]
    if not printed:
        return list(lines)
    usual = max(printed, key=printed.count)
    first = next(line for line in lines if line.stage == "before" and _printed(line) == usual)
    rest = [line for line in lines if line.stage != "before" or _printed(line) != usual]
    return [replace(first, method=NO_EDIT, failed=0), *rest]


def _printed(line: Line) -> tuple[object, ...]:
    return line.n, line.known, *((name, with_interval(name, score)) for name, score in sorted(line.scores.items()))


def present_columns(lines: Iterable[Line], columns: Sequence[str] = COUNTERFACT) -> list[str]:
    """Those of the columns that there is anything in."""
    there = {name for line in lines for name in line.scores}
    return [name for name in columns if name in there]


def with_interval(name: str, score: Score) -> str:
    value, low, high = map(MEASURES[name].print, (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]"


HEADER = ("method", "stage", "n", "failed", "known")


def scores_csv(lines: Sequence[Line]) -> str:
    """One row a method, stage and measure, unrounded, in the units of the measures themselves (shares, bits, nats)."""
    rows = [
        [line.method, line.stage, line.n, line.failed, line.known, name, score.value, score.low, score.high, score.n]
        for line in lines
        for name, score in line.scores.items()
    ]
    return csv_text([*HEADER, "measure", "value", "low", "high", "count"], rows)


def as_text(lines: Sequence[Line], names: Sequence[str]) -> str:
    """For a terminal: columns of equal width."""
    cells = [[*HEADER, *names], *(_cells(line, names) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def as_markdown(lines: Sequence[Line], names: Sequence[str]) -> str:
    rows = [[*HEADER, *names], ["---"] * (len(HEADER) + len(names)), *(_cells(line, names, True) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_latex(lines: Sequence[Line], names: Sequence[str]) -> str:
    """A booktabs table with half-widths of the intervals in small print, as the papers set them."""
    body = []
    for line in lines:
        cells = [line.method, line.stage, str(line.n)]
        for name in names:
            score = line.scores.get(name)
            half = 0.0 if score is None else (score.high - score.low) / 2
            cells.append(
                "--"
                if score is None
                else f"{MEASURES[name].print(score.value)} \\tiny{{({MEASURES[name].print(half)})}}"
            )
        body.append(" & ".join(cell.replace("_", r"\_").replace("%", r"\%") for cell in cells) + r" \\")
    head = " & ".join(["Method", "Stage", "$n$", *names]) + r" \\"
    spec = "ll" + "r" * (1 + len(names))
    return "\n".join(
        [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )


def _cells(line: Line, names: Sequence[str], intervals: bool = False) -> list[str]:
    cells = [line.method, line.stage, str(line.n), str(line.failed), str(line.known)]
    for name in names:
        score = line.scores.get(name)
        cells.append(
            "" if score is None else with_interval(name, score) if intervals else MEASURES[name].print(score.value)
        )
    return cells


def columns_for(rows: Sequence[Row]) -> tuple[str, ...]:
    """CounterFact's columns, or zsRE's for questions: where no prompt states a fact but all ask for one."""
    prompts = [answer["text"] for row in rows for answer in row.answers if answer["kind"] == "edit"]
    return ZSRE if prompts and all(prompt.rstrip().endswith("?") for prompt in prompts) else COUNTERFACT


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def as_parquet(lines: Sequence[Line], about: Mapping[str, object], path: Path) -> None:
    """The rows of the CSV as Parquet, with what the run says of itself in the file's metadata."""
    table = [
        {**{name: getattr(line, name) for name in HEADER}, "measure": name}
        | {"value": score.value, "low": score.low, "high": score.high, "count": score.n}
        for line in lines
        for name, score in line.scores.items()
    ]
    described = pa.Table.from_pylist(table).replace_schema_metadata({"run": json.dumps(about)})
    pq.write_table(described, path)


def export(store: Store, *, known_only: bool = False) -> list[Path]:
    """Write the run's tables into its folder: scores as CSV, Parquet, LaTeX and Markdown."""
    rows = store.rows()
    lines = score_lines(rows, known_only=known_only)
    names = present_columns(lines, columns_for(rows))
    stem = store.folder / ("scores-known" if known_only else "scores")
    short = merge_unedited(lines)
    texts = {".csv": scores_csv(lines), ".tex": as_latex(short, names), ".md": as_markdown(short, names) + "\n"}
    for suffix, text in texts.items():
        write_whole(stem.with_suffix(suffix), partial(_write_text, text))
    as_parquet(lines, store.about, stem.with_suffix(".parquet"))
    return [stem.with_suffix(suffix) for suffix in (*texts, ".parquet")]
