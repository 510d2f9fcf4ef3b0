"""Defaults of fine-tuning, measured: `python -m studies.finetune_sweep --minutes 10`.

Learning rate, layer, box and weight decay, on a few facts of the validation part. Writes
docs/studies/finetune_sweep.jsonl, one fact and variant a line, fact by fact; `--table` prints what there is.
"""

from __future__ import annotations

from rome_core import load_model
from rome_core.editing.methods import MethodConfig
from rome_core.editing.methods.finetune import FineTune, FineTuneL, FineTuneM
from rome_core.evaluation import general_texts
from studies.common import append, arguments, draw_facts, parse, solve_missing
from studies.methods_table import Measure, table

VARIANTS = (
    *(FineTune(lr=lr) for lr in (1e-4, 2e-4, 5e-4, 1e-3)),
    *(FineTuneM(lr=lr) for lr in (2e-4, 5e-4)),
    *(FineTuneM(layer=layer) for layer in (2, 10, 20)),
    FineTuneM(weight_decay=1e-3),
    *(FineTuneL(epsilon=epsilon) for epsilon in (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
)


def name_of(config: MethodConfig) -> str:
    """The method and what differs from its defaults, or what this study varies."""
    assert isinstance(config, FineTune)
    layer = "" if config.layer is None else f", layer {config.layer}"
    decay = f", weight decay {config.weight_decay:g}" if config.weight_decay else ""
    box = f", ε {config.bound:g}" if config.bound else f", lr {config.lr:g}"
    return f"{config.name}{box}{layer}{decay}"


def main() -> None:
    args, records = parse(arguments(__doc__, "finetune_sweep.jsonl", "--seed", "--minutes", "--table", facts=6), table)
    lm, done = load_model(), {(record["fact"], record["method"]) for record in records}
    measure = Measure(lm, general_texts()[:2])
    facts, groups = draw_facts("validation", args.facts, args.seed), [[config] for config in VARIANTS]
    for fact, name, solved in solve_missing(lm, facts, groups, name_of, done, args.minutes):
        record = {"fact": fact.id, "method": name, **measure(fact, solved)}
        if solved.edit is not None:
            record |= {"seconds": solved.seconds, "steps": len(solved.edit.history), "nll": solved.edit.history[-1].nll}
        append(args.out, record)


if __name__ == "__main__":
    main()
