"""Four edits by ROME as published, judged before they are applied, and what then becomes of the model.

`python -m studies.disabling` writes docs/studies/disabling.jsonl, one edit a line, a table beside it; a stopped study
goes on where it was. `--table` prints what is there. For each edit δ is found once with the authors' clamp, the update
of every key policy is diagnosed, and then the perplexity on the project's passages is measured with it.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from rome_core import METHODS, EditRequest, Prompt, load_model, solve
from rome_core.diagnosis.verdict import diagnose
from rome_core.editing.shared_search import repolicy
from rome_core.evaluation import perplexity
from rome_core.evaluation.layer_sweep import UPDATES
from studies.calibration import finite, known_before
from studies.common import append, arguments, markdown, read

EDITS = (
    (EditRequest(Prompt("{} is the capital of", "Paris"), "Italy", "France"), 7),
    (EditRequest(Prompt("{} is the capital of", "Paris"), "Italy", "France"), 13),
    (EditRequest(Prompt("{} is a company founded by", "Microsoft"), "Einstein", "Bill Gates"), 7),
    (EditRequest(Prompt("{} plays the sport of", "LeBron James"), "golf", "basketball"), 5),
)
CLAMP = 4.0  # the authors' in their GPT-2 settings


def report(path: Path) -> None:
    """Every edit by every policy, ROME as published first, as a file and on the screen."""
    rows = []
    for record in read(path):
        about = f"{record['prompt']} → {record['target']}"
        for edit in record["edits"]:
            keys = f"{edit['k0_kstar']:,.3g}", f"{edit['kstar_kstar']:,.4g}", f"{edit['relative_F']:.3g}"
            grown = f"{record['perplexity_before']:.1f} → {float(edit['perplexity']):,.1f}"
            rows.append([about, record["layer"], edit["policy"], *keys, edit["verdict"], grown])
    columns = ["edit", "layer:", "policy", "k₀ᵀC⁻¹k*:", "k*ᵀC⁻¹k*:", "‖Δ‖/‖W‖:", "verdict before", "perplexity:"]
    text = "\n".join(markdown(columns, rows))
    path.with_suffix(".md").write_text(f"# Four edits, judged before they are applied\n\n{text}\n", encoding="utf-8")
    print(text)


def main() -> None:
    args = arguments(__doc__, "disabling.jsonl", "--seed", "--table").parse_args()
    if args.table:
        report(args.out)
        return
    lm = load_model()
    before = perplexity(lm)
    done = {(record["prompt"], record["layer"]) for record in read(args.out)}
    for request, layer in tqdm([pair for pair in EDITS if (pair[0].prompt.text, pair[1]) not in done]):
        edit = solve(lm, [request], METHODS["rome"](layer=layer, clamp=CLAMP, seed=args.seed))  # type: ignore[call-arg]
        results = []
        for policy in UPDATES:
            variant = repolicy(lm, edit, policy)
            diagnosis = diagnose(lm, variant)
            after = perplexity(lm, edits=[variant])
            judged = {"policy": policy, "verdict": diagnosis.verdict, "calibrated": diagnosis.calibrated}
            results.append({**judged, **known_before(diagnosis), "perplexity": finite(after)})
        about = {"prompt": request.prompt.text, "target": request.target_new, "layer": layer, "clamp": CLAMP}
        about |= {"seed": args.seed, "model": lm.name, "perplexity_before": before}
        append(args.out, {**about, "edits": results})
    report(args.out)


if __name__ == "__main__":
    main()
