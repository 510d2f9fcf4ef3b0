"""Four edits by ROME as published, judged before they are applied, and what then becomes of the model.

`python -m studies.disabling` writes docs/studies/disabling.jsonl, one edit a line, a table beside it; a stopped study
goes on where it was. `--table` prints what is there. For each edit δ is found once with the authors' clamp, the update
of every key policy is diagnosed, and then the perplexity on the project's passages is measured with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rome_core import METHODS, EditRequest, Prompt, load_model, solve
from rome_core.diagnosis.verdict import diagnose
from rome_core.editing.shared_search import policies, repolicy
from rome_core.evaluation import perplexity
from studies.calibration import finite, known_before
from studies.common import RESULTS, append, read

EDITS = (
    (EditRequest(Prompt("{} is the capital of", "Paris"), "Italy", "France"), 7),
    (EditRequest(Prompt("{} is the capital of", "Paris"), "Italy", "France"), 13),
    (EditRequest(Prompt("{} is a company founded by", "Microsoft"), "Einstein", "Bill Gates"), 7),
    (EditRequest(Prompt("{} plays the sport of", "LeBron James"), "golf", "basketball"), 5),
)
CLAMP = 4.0  # the authors' in their GPT-2 settings


def row(edit: dict[str, Any], before: float) -> str:
    size = f"{edit['k0_kstar']:,.3g} | {edit['kstar_kstar']:,.4g} | {edit['relative_F']:.3g}"
    return f"{edit['policy']} | {size} | {edit['verdict']} | {before:.1f} → {float(edit['perplexity']):,.1f}"


def table(records: list[dict[str, Any]]) -> list[str]:
    """Every edit by every policy, ROME as published first."""
    lines = [
        "| edit | layer | policy | k₀ᵀC⁻¹k* | k*ᵀC⁻¹k* | ‖Δ‖/‖W‖ | verdict before | perplexity |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for record in records:
        about = f"| {record['prompt']} → {record['target']} | {record['layer']}"
        lines += [f"{about} | {row(edit, record['perplexity_before'])} |" for edit in record["edits"]]
    return lines


def report(path: Path) -> None:
    text = "\n".join(table(read(path)))
    path.with_suffix(".md").write_text(f"# Four edits, judged before they are applied\n\n{text}\n", encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the prefixes")
    parser.add_argument("--out", type=Path, default=RESULTS / "disabling.jsonl")
    parser.add_argument("--table", action="store_true", help="print what is there and measure nothing")
    args = parser.parse_args()
    if args.table:
        report(args.out)
        return
    lm = load_model()
    before = perplexity(lm)
    done = {(record["prompt"], record["layer"]) for record in read(args.out)}
    for request, layer in tqdm([one for one in EDITS if (one[0].prompt.text, one[1]) not in done]):
        edit = solve(lm, [request], METHODS["rome"](layer=layer, clamp=CLAMP, seed=args.seed))  # type: ignore[call-arg]
        results = []
        for policy in policies().values():
            if policy.name == "c-rome":  # the same update as r-rome
                continue
            variant = repolicy(lm, edit, policy.name)
            found = diagnose(lm, variant)
            after = perplexity(lm, edits=[variant])
            judged = {"policy": policy.name, "verdict": found.verdict, "calibrated": found.calibrated}
            results.append({**judged, **known_before(found), "perplexity": finite(after)})
        about = {"prompt": request.prompt.text, "target": request.target_new, "layer": layer, "clamp": CLAMP}
        about |= {"seed": args.seed, "model": lm.name, "perplexity_before": before}
        append(args.out, {**about, "edits": results})
    report(args.out)


if __name__ == "__main__":
    main()
