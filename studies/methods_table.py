"""Every method on the same facts, each by itself: `python -m studies.methods_table --facts 50 --minutes 45`.

Facts of the test part, which no hypernetwork was trained on. Methods that look for the same δ share one search;
C-ROME is left out, as its update is r-ROME's. Writes docs/studies/methods.jsonl, one fact and method a
line, fact by fact, so that a stopped study has the same facts for all methods; `--table` prints what there is, as it
stands in docs/methods_measured.md.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from rome_core import METHODS, Fact, LanguageModel, load_model
from rome_core.diagnosis.verdict import size_of
from rome_core.editing.methods import MethodConfig
from rome_core.editing.methods.rome import CRome
from rome_core.editing.presets import resolve
from rome_core.evaluation import (
    Answer,
    ask,
    general_texts,
    pairs_of,
    perplexity,
    questions_about,
    score_pairs,
    summarise,
)
from rome_core.evaluation.solving import solve_by_each
from rome_core.facts.datasets import facts_of
from studies.common import RESULTS, append, read
from studies.tables import cell

BEFORE = "no edit"
SCORES = ("ES", "PS", "NS", "S")


def configs(lm: LanguageModel, methods: Sequence[str]) -> list[MethodConfig]:
    """Defaults of every method, with the prefixes that it samples, which are the same for equal seeds."""
    found = [resolve(lm, METHODS[name]()) for name in methods]
    return [config.with_prefixes(lm) for config in found]


def drawn(n: int, seed: int) -> list[Fact]:
    facts = facts_of("test")
    random.Random(seed).shuffle(facts)
    return facts[:n]


def record_of(answers: Sequence[Answer], perplexity_ratio: float | None) -> dict[str, Any]:
    return {"case": pairs_of(answers), "perplexity_ratio": perplexity_ratio}


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, a row a method: scores with 95 % intervals over facts, medians of the rest."""
    names = list(dict.fromkeys(record["method"] for record in records))
    lines = [
        f"| method | facts | failed | {' | '.join(SCORES)} | perplexity × (worst) | ‖Δ‖/‖W‖ | seconds |",
        "| --- | ---: | ---: |" + " --- |" * len(SCORES) + " ---: | ---: | ---: |",
    ]
    for name in names:
        some = [record for record in records if record["method"] == name and not record.get("error")]
        failed = sum(record["method"] == name for record in records) - len(some)
        if not some:
            continue
        scores = summarise([score_pairs(record["case"]) for record in some])
        ratios = [math.inf if r["perplexity_ratio"] is None else r["perplexity_ratio"] for r in some]
        norms, seconds = (
            f"{median(r[key] for r in some):.3g}" if name != BEFORE else "" for key in ("relative_norm", "seconds")
        )
        cells = " | ".join(cell(scores[score]) if score in scores else "" for score in SCORES)
        grown = f"{median(ratios):.3f} ({max(ratios):.3g})"
        lines.append(f"| {name} | {len(some)} | {failed} | {cells} | {grown} | {norms} | {seconds} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of facts")
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != CRome.name])
    parser.add_argument("--neighbours", type=int, default=5, help="of a fact's ten, to save time")
    parser.add_argument("--passages", type=int, default=2, help="of the project's general texts, for the perplexity")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.jsonl")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    args = parser.parse_args()
    records = read(args.out)
    if args.table:
        print("\n".join(table(records)))
        return
    began, lm = time.monotonic(), load_model()
    chosen, passages = configs(lm, args.methods), general_texts()[: args.passages]
    done = {(record["fact"], record["method"]) for record in records}
    without = perplexity(lm, passages)
    for fact in tqdm(drawn(args.facts, args.seed)):
        if time.monotonic() - began > 60 * args.minutes:
            break
        fact = replace(fact, neighbours=fact.neighbours[: args.neighbours])
        if (fact.id, BEFORE) not in done:
            append(args.out, {"fact": fact.id, "method": BEFORE, **record_of(ask(lm, questions_about(fact)), 1.0)})
        todo = [config for config in chosen if (fact.id, config.name) not in done]
        searches: dict[str, float] = {}
        for solved in solve_by_each(lm, fact.request, todo):
            about = {"fact": fact.id, "method": solved.config.name, "first": fact.prompt.span[0] == 0}
            if solved.edit is None:
                append(args.out, {**about, "error": solved.error})
                continue
            searches[solved.config.name] = solved.seconds
            ratio = perplexity(lm, passages, edits=[solved.edit]) / without
            append(
                args.out,
                {
                    **about,
                    **record_of(
                        ask(lm, questions_about(fact), edits=[solved.edit]), ratio if math.isfinite(ratio) else None
                    ),
                    "relative_norm": size_of(lm, solved.edit).relative_F,
                    "seconds": solved.seconds + searches.get(solved.shared, 0.0),
                },
            )


if __name__ == "__main__":
    main()
