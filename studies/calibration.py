"""Edits that break the model and edits that do not, and verdict thresholds from them: `python -m studies.calibration`.

Half of the requests have a subject that is the first token of the prompt, half do not; they alternate, layer by layer
and clamp by clamp, so that a stopped study is balanced, too. For each, δ is optimised once with six prefixes, every key
policy is made from it, everything that is known before application is recorded (`diagnose`), and then the perplexity on
six passages. One JSON line a δ to docs/studies/calibration.jsonl; a stopped study goes on where it was.

`--fit` fits the thresholds. Half of the subjects are held back (by a hash of their names). The quantity that ranks the
other half best is chosen among those known before an edit is applied; "disabling" begins at the lowest cut with at most
5 % false alarms. Writes assets/calibration/<fingerprint>.json, and its tables to docs/studies/calibration.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rome_core import METHODS, EditRequest, LanguageModel, Prompt, load_facts, load_model, solve
from rome_core.diagnosis.calibration import BROKEN, HURT, QUANTITIES, Calibration, Measured, Rate, calibrate
from rome_core.diagnosis.verdict import Diagnosis, diagnose
from rome_core.editing.presets import preset
from rome_core.editing.second_moment import moments_for
from rome_core.editing.shared_search import repolicy
from rome_core.editing.value import sampled_prefixes
from rome_core.errors import RomeError
from rome_core.evaluation import general_texts, perplexity
from rome_core.evaluation.layer_sweep import UPDATES
from rome_core.model.tokens import encode
from studies.common import Record, append, arguments, markdown, read

LAYERS = (5, 14, 3, 20, 8, 17, 11, 24)
CLAMPS = (None, 4.0)  # the preset's, and the authors' in their GPT-2 settings
PASSAGES = 6

# Subjects of one token, by what is asked about them; each target is wrong for every subject of its row.
FIRST: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("{} is a city in the country of", ("Japan", "Brazil", "Egypt"), "Paris London Rome Boston Chicago"),
    (
        "{} is a country on the continent of",
        ("Antarctica", "Oceania"),
        "France Germany Italy Spain Japan China India Russia Brazil Canada Mexico Egypt Australia Israel Iran Hungary",
    ),
    ("{} is a company founded by", ("Einstein", "Napoleon"), "Apple Microsoft Google Amazon Facebook"),
    ("{} worked mainly in the field of", ("music", "cooking"), "Newton Darwin Lincoln Washington Marx"),
    ("{} is a kind of", ("animal", "language"), "Gold Silver Iron Water"),
    ("{} was developed in the country of", ("Spain", "Chile"), "Python Java Linux Windows"),
    ("{} is a state in the country of", ("France", "China"), "Texas California Florida Virginia"),
    ("{} is a university in the city of", ("Moscow", "Tokyo"), "Harvard Oxford Cambridge"),
)
# Not known of the edit, but said about it by the thresholds that are to be fitted.
UNRECORDED = {
    *("verdict", "explanation", "calibrated", "quantity", "score", "caution_at", "disabling_at"),
    *("caution_below", "disabling_below", "reference", "method", "layer"),
}


def requests_of(
    lm: LanguageModel, n: int, seed: int, layers: Sequence[int] = LAYERS
) -> Iterator[tuple[str, EditRequest, int, float | None]]:
    """n times pool, request, layer and clamp, the two pools in turn."""
    first = [
        EditRequest(Prompt(template, subject), targets[i % len(targets)])
        for template, targets, subjects in FIRST
        for i, subject in enumerate(subjects.split())
    ]
    later = [fact.request for fact in load_facts()]
    pools: dict[str, list[EditRequest]] = {"first": [], "later": []}
    for request in [*first, *later]:
        pools["first" if encode(lm.tokenizer, request.prompt).last_subject == 0 else "later"].append(request)
    for pool in pools.values():
        random.Random(seed).shuffle(pool)
    layers = [layer for layer in layers if layer < lm.n_layers]
    pairs = [
        (name, request)
        for pair in zip(*pools.values(), strict=False)
        for name, request in zip(pools, pair, strict=True)
    ]
    for index, (name, request) in enumerate(pairs[:n]):
        turn = index // 2
        yield name, request, layers[turn % len(layers)], CLAMPS[turn // len(layers) % len(CLAMPS)]


def known_before(diagnosis: Diagnosis) -> dict[str, Any]:
    names = [field.name for field in fields(Diagnosis) if field.name not in UNRECORDED]
    return {name: getattr(diagnosis, name) for name in names}


def finite(value: float) -> float | str:
    """JSON has no inf and no nan."""
    return value if math.isfinite(value) else str(value)


# ---------------------------------------------------------------------------------------------------------- thresholds


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


def fit(path: Path) -> None:
    """Fit the thresholds to the edits measured so far, keep them, and write and print their tables."""
    records = read(path)
    (fingerprint, model) = next(iter({(record["fingerprint"], record["model"]) for record in records}))
    own = [record for record in records if record["fingerprint"] == fingerprint]
    edits = measured(own)
    seeds = ", ".join(sorted({str(record["seed"]) for record in own}))
    source = f"docs/studies/{path.name}, {len(own)} values δ, seed {seeds}"
    found = calibrate(edits, fingerprint, model, source)
    found.write()
    text = "\n".join([*tables(found, edits), "", f"Source: {source}."])
    path.with_suffix(".md").write_text(f"# Calibration of verdicts\n\n{model}. {text}\n", encoding="utf-8")
    print(text)


# ---------------------------------------------------------------------------------------------------------- measuring


def main() -> None:
    parser = arguments(__doc__, "calibration.jsonl", "--seed")
    parser.add_argument("--values", type=int, default=96, help="how many δ; every policy is an edit of each")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, help="in turn")
    parser.add_argument("--fit", action="store_true", help="fit the thresholds and end")
    args = parser.parse_args()
    if args.fit:
        fit(args.out)
        return
    lm = load_model()
    todo = list(requests_of(lm, args.values, args.seed, args.layers))
    moments = moments_for(lm, sorted({layer for *_, layer, _ in todo}), None, tqdm)
    sampled = sampled_prefixes(lm, args.seed)
    prefixes = (sampled[0], *sampled[1::4])
    passages = general_texts()[:PASSAGES]
    before = perplexity(lm, passages)
    done = {(record["prompt"], record["layer"]) for record in read(args.out)}
    for pool, request, layer, clamp in tqdm(todo):
        if (request.prompt.text, layer) in done:
            continue
        config: Any = METHODS["r-rome"](
            layer=layer,
            clamp=clamp or preset(lm).clamp,
            prefixes=prefixes,
            seed=args.seed,  # type: ignore[call-arg]
        )
        record = {
            "pool": pool,
            "prompt": request.prompt.text,
            "subject": request.prompt.subject,
            "target": request.target_new,
            "layer": layer,
            "clamp": config.clamp,
            "seed": args.seed,
            "model": lm.name,
            "fingerprint": lm.fingerprint,
            "perplexity_before": before,
        }
        try:
            edit = solve(lm, [request], config, moments=moments)
            variants = [repolicy(lm, edit, name, moments) for name in UPDATES]
            record["loss"] = edit.history[-1].loss
            record["edits"] = [
                {
                    "policy": variant.method,
                    **known_before(diagnose(lm, variant, moments)),
                    "perplexity": finite(perplexity(lm, passages, edits=[variant])),
                }
                for variant in variants
            ]
        except RomeError as error:
            record["error"] = str(error)
        append(args.out, record)


if __name__ == "__main__":
    main()
