"""Edits of subjects that are the prompt's first and only token before the relation: `python -m studies.first_tokens`.

Their bare key is the attention sink's, where the key policies part. For each request δ is optimised once, every policy
is made from it, and the new object's probability is read on the bare prompt, behind a sentence that no prefix was, and
on the bare prompts of other such subjects, with the perplexity on three passages. One JSON line a request in
docs/studies/first_tokens.jsonl; a stopped study goes on where it was; `--table` prints what there is. `--layer 5` shows
what the usual layer would do; without it the model's preset for such subjects is used.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median

from tqdm import tqdm

from rome_core import (
    DEFAULT_METHOD,
    METHODS,
    Edit,
    EditRequest,
    LanguageModel,
    continuation_probabilities,
    load_model,
    solve,
)
from rome_core.editing.shared_search import repolicy
from rome_core.evaluation import general_texts, perplexity
from rome_core.evaluation.layer_sweep import UPDATES
from rome_core.evaluation.scores import mean_score
from rome_core.model.tokens import as_target
from studies.calibration import FIRST, requests_of
from studies.common import Record, append, arguments, cell, markdown, parse

BEHIND = "Here is something that many people do not know. "


def table(records: list[Record]) -> list[str]:
    names = {"bare": "p(new), bare prompt", "behind": "p(new) behind a sentence", "others": "p(new), other subjects"}
    names = {
        name: words for name, words in names.items() if all(name in row for row in records[0]["policies"].values())
    }
    lines = []
    for policy in records[0]["policies"]:
        rows = [record["policies"][policy] for record in records]
        grown = [row["perplexity"] for row in rows]
        cells = [cell(mean_score([row[name] for row in rows]), 2) for name in names]
        size, broken = median(row["relative_norm"] for row in rows), sum(not ratio < 2 for ratio in grown)
        lines.append([policy, len(rows), *cells, f"{size:.3f}", f"{max(grown):.2f}", broken])
    last = ("‖Δ‖/‖W‖, median:", "perplexity ×, worst:", "more than 2×:")
    return markdown(["policy", "subjects:", *names.values(), *last], lines)


def beside(request: EditRequest) -> list[str]:
    """The same question about all subjects that the study asks it about."""
    (subjects,) = [subjects for template, _, subjects in FIRST if template == request.prompt.template]
    return [replace(request.prompt, subject=subject).text for subject in subjects.split()]


def said(lm: LanguageModel, request: EditRequest, *edits: Edit) -> dict[str, float]:
    """The new object's probability on the bare prompt, behind a sentence, and on average for the other subjects."""
    text, target = request.prompt.text, [as_target(request.target_new, request.prompt.text)]
    asked = [text, BEHIND + text, *(other for other in beside(request) if other != text)]
    bare, behind, *others = (float(continuation_probabilities(lm, one, target, edits=edits)[0]) for one in asked)
    return {"bare": bare, "behind": behind, "others": fmean(others)}


def main() -> None:
    parser = arguments(__doc__, "first_tokens.jsonl", "--table", requests=24, layer=None, steps=None)
    parser.add_argument("--clamp", type=float, default=None, help="default: the preset's")
    args, records = parse(parser, table)
    lm = load_model()
    requests = [request for pool, request, *_ in requests_of(lm, 10_000, 0) if pool == "first"][: args.requests]
    passages = general_texts()[:3]
    before = perplexity(lm, passages)
    done = {record["prompt"] for record in records}
    config = METHODS[DEFAULT_METHOD](layer=args.layer, clamp=args.clamp, steps=args.steps)  # type: ignore[call-arg]
    for request in tqdm([request for request in requests if request.prompt.text not in done]):
        edit = solve(lm, [request], config)
        found = {"before": {**said(lm, request), "relative_norm": 0.0, "perplexity": 1.0}}
        for policy in UPDATES:
            variant = repolicy(lm, edit, policy)
            found[policy] = {
                **said(lm, request, variant),
                "relative_norm": variant.delta_norm / float(lm.weight(edit.config.layers[-1]).norm()),
                "perplexity": perplexity(lm, passages, edits=[variant]) / before,
            }
        about = {"prompt": request.prompt.text, "target": request.target_new, "layer": edit.config.layers[-1]}
        append(args.out, {**about, "policies": found})


if __name__ == "__main__":
    main()
