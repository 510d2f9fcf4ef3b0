"""The figure and the table of docs/sequential.md from the runs' folders: `python -m studies.sequence_figure`.

The figure needs the extra `export`. The runs are made by rome-sequence (docs/sequential.md has the commands).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import median

from pages.parts.sequence.figures import curves_figure
from pages.shared.style import LIGHT
from rome_core.evaluation.sequence.curves import COLLAPSED, collapse, own_checks, score_held
from rome_core.evaluation.sequence.folder import SequenceRun, runs_in
from studies.common import RESULTS, cell, markdown
from studies.figures import IMAGES


def words(runs: list[SequenceRun]) -> str:
    """What all runs share, in one line."""
    plan = runs[0].plan
    return (
        f"{runs[0].model} · the same {len(plan.facts)} facts in the same order (seed {plan.order_seed}) · perplexity "
        f"on {plan.pace.passages} passages · dotted: {COLLAPSED:g} times the unedited model's · bars: 95 % bootstrap"
    )


def table(runs: list[SequenceRun]) -> list[str]:
    """A row a run, once all facts have had their turn: what holds at the end, of all facts, and what it took."""
    rows = []
    for run in runs:
        first, last, broken = run.records[0], run.records[-1], collapse(run.records)
        own = score_held([check for record in run.records for check in own_checks(record)])
        seconds = median(r.solve_seconds / len(r.facts) for r in run.records if r.facts)  # a run may have been paused
        large = f"{last.perplexity:.3g}" if math.isfinite(last.perplexity) else "beyond numbers"
        held = [cell(own), cell(score_held(last.checks))]
        grown = [f"{first.perplexity:.1f}", large, f"{broken.edited} edits" if broken else "no"]
        rows.append([run.folder.name, last.edited, *held, *grown, f"{last.norm:.3g}", f"{seconds:.1f}"])
    columns = ("run", "facts:", "edits hold right after theirs", "hold at the end", "perplexity before:", "at the end:")
    return markdown([*columns, "collapsed after:", "‖ΔW‖/‖W‖:", "seconds a fact, median:"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RESULTS / "sequence", help="folder of the runs' folders")
    parser.add_argument("--out", type=Path, default=IMAGES / "sequence.png")
    args = parser.parse_args()
    runs = [run for run in runs_in(args.runs) if run.records]
    if not runs:
        raise SystemExit(f"There is no run in {args.runs}.")
    print("\n".join(table(runs)))
    figure = curves_figure({run.folder.name: run.records for run in runs}, words(runs), LIGHT)
    figure.update_layout(template="plotly_white", width=1000, paper_bgcolor="white")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.write_image(args.out, scale=2)
    print(args.out)


if __name__ == "__main__":
    main()
