"""Fit the verdict's thresholds to the edits of studies/calibration.py: `python -m studies.calibrate`.

Half of the subjects are held back (by a hash of their names). The quantity that ranks the other half best is chosen
among those known before an edit is applied; "disabling" begins at the lowest cut with at most 5 % false alarms. Writes
assets/calibration/<fingerprint>.json, and its tables to docs/studies/calibration.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rome_core.diagnosis.calibration import BROKEN, HURT, QUANTITIES, Calibration, Measured, Rate, calibrate
from studies.common import RESULTS, Record, markdown, read


def measured(records: list[Record]) -> list[Measured]:
    """A line for each edit, that is each policy of each δ."""
    return [
        Measured(
            record["subject"],
            record["pool"],
            {name: value_of(edit, name) for name in QUANTITIES},
            float(edit["perplexity"]) / record["perplexity_before"],
        )
        for record in records
        for edit in record.get("edits", ())
    ]


def value_of(edit: Record, name: str) -> float:
    if name == "inverse_denominator":
        return 1 / edit["denominator"] if edit["denominator"] > 0 else float("inf")
    return float(edit[name])


def share(rate: Rate) -> str:
    if not rate.n:
        return "none"
    low, high = rate.interval
    return f"{rate.k} of {rate.n}, {rate.value:.1%} ({low:.1%} to {high:.1%})"


def tables(found: Calibration, edits: list[Measured]) -> list[str]:
    """The fit as Markdown: every quantity, then the errors of the chosen one on the edits held back."""
    broken, hurt = sum(e.broken for e in edits), sum(e.hurt for e in edits)
    lines = [
        f"{len(edits)} edits, {broken} with more than {BROKEN:g} times the perplexity, {hurt} with more than {HURT:g} "
        f"times; fitted on {found.n_fit}, held back {found.n_held}. Chosen: {found.quantity}.",
        "",
    ]
    fits = [
        [name, f"{t.caution:.3g}", f"{t.disabling:.3g}", f"{t.auc_fit:.4f}", f"{t.auc_held:.4f}"]
        for name, t in found.thresholds.items()
    ]
    lines += markdown(["quantity", "caution from:", "disabling from:", "AUC, fitted:", "AUC, held back:"], fits)
    rates = (found.caught, found.warned, found.false_alarms)
    held = [[pool, *(share(rate[pool]) for rate in rates)] for pool in found.caught]
    columns = ["edits held back", "broken, called disabling", "broken, at least caution", "false alarms"]
    return [*lines, "", *markdown(columns, held)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=RESULTS / "calibration.jsonl")
    args = parser.parse_args()
    records = read(args.file)
    (fingerprint, model) = next(iter({(record["fingerprint"], record["model"]) for record in records}))
    own = [record for record in records if record["fingerprint"] == fingerprint]
    edits = measured(own)
    seeds = ", ".join(sorted({str(record["seed"]) for record in own}))
    source = f"docs/studies/{args.file.name}, {len(own)} values δ, seed {seeds}"
    found = calibrate(edits, fingerprint, model, source)
    found.write()
    text = "\n".join([*tables(found, edits), "", f"Source: {source}."])
    args.file.with_suffix(".md").write_text(f"# Calibration of verdicts\n\n{model}. {text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
