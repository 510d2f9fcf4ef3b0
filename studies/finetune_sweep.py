"""Defaults of fine-tuning, measured: `python -m studies.finetune_sweep --minutes 10`.

Learning rate, layer, box and weight decay, on a few facts of the validation part. Writes
docs/studies/finetune_sweep.jsonl, one fact and variant a line, fact by fact; `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rome_core import load_model, solve
from rome_core.diagnosis.verdict import size_of
from rome_core.editing.methods.finetune import FineTune, FineTuneL, FineTuneM
from rome_core.evaluation import ask, general_texts, perplexity, questions_about
from rome_core.facts.datasets import facts_of
from studies.common import RESULTS, append, read
from studies.methods_table import record_of, table

VARIANTS = (
    *(FineTune(lr=lr) for lr in (1e-4, 2e-4, 5e-4, 1e-3)),
    *(FineTuneM(lr=lr) for lr in (2e-4, 5e-4)),
    *(FineTuneM(layer=layer) for layer in (2, 10, 20)),
    FineTuneM(weight_decay=1e-3),
    *(FineTuneL(epsilon=epsilon) for epsilon in (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
)


def name_of(config: FineTune) -> str:
    """The method and what differs from its defaults, or what this study varies."""
    layer = "" if config.layer is None else f", layer {config.layer}"
    decay = f", weight decay {config.weight_decay:g}" if config.weight_decay else ""
    box = f", ε {config.bound:g}" if config.bound else f", lr {config.lr:g}"
    return f"{config.name}{box}{layer}{decay}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of facts")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--out", type=Path, default=RESULTS / "finetune_sweep.jsonl")
    parser.add_argument("--table", action="store_true", help="print the results and end")
    args = parser.parse_args()
    records = read(args.out)
    if args.table:
        print("\n".join(table(records)))
        return
    began, lm = time.monotonic(), load_model()
    facts, passages = facts_of("validation"), general_texts()[:2]
    random.Random(args.seed).shuffle(facts)
    done = {(record["fact"], record["method"]) for record in records}
    without = perplexity(lm, passages)
    todo = [(fact, config) for fact in facts[: args.facts] for config in VARIANTS]
    for fact, config in tqdm([(fact, config) for fact, config in todo if (fact.id, name_of(config)) not in done]):
        if time.monotonic() - began > 60 * args.minutes:
            break
        fact = replace(fact, neighbours=fact.neighbours[:5])
        start = time.monotonic()
        edit = solve(lm, [fact.request], config)
        seconds = time.monotonic() - start
        append(
            args.out,
            {
                "fact": fact.id,
                "method": name_of(config),
                **record_of(
                    ask(lm, questions_about(fact), edits=[edit]), perplexity(lm, passages, edits=[edit]) / without
                ),
                "relative_norm": size_of(lm, edit).relative_F,
                "seconds": seconds,
                "steps": len(edit.history),
                "nll": edit.history[-1].nll,
            },
        )


if __name__ == "__main__":
    main()
