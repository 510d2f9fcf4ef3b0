"""rome-sequence: edit facts one after another, or in batches, and see what is left; resumable at any moment.

rome-sequence --out runs/r-rome --method r-rome --records 100
rome-sequence --out runs/memit --method memit --batch 10 --records 100
rome-sequence --out runs/r-rome-then-memit --branch-of runs/r-rome --step 40 --method memit --batch 10
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rome_core.cli.terminal import (
    choose_from,
    fact_arguments,
    facts_from,
    loader,
    model_arguments,
    progress,
    run_guarded,
    settings_arguments,
    settings_from,
)
from rome_core.editing.methods import DEFAULT_METHOD, METHODS, MethodConfig
from rome_core.editing.presets import resolve
from rome_core.errors import DataError
from rome_core.evaluation.sequence.curves import COLLAPSED, collapse, earlier_checks, own_checks, records_csv
from rome_core.evaluation.sequence.folder import (
    Pace,
    Record,
    SequencePlan,
    SequenceRun,
    branch_run,
    create_run,
    open_run,
)
from rome_core.evaluation.sequence.steps import edit_in_sequence, plan_sequence
from rome_core.facts.datasets import Fact
from rome_core.model.language_model import LanguageModel


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="rome-sequence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, help="the run's folder; a run that is there is gone on with")
    p.add_argument("--resume", action="store_true", help="go on with the folder's own settings; no others are read")
    p.add_argument("--show", action="store_true", help="compute nothing: print the folder's table and write it again")
    p.add_argument("--branch-of", type=Path, default=None, help="begin with the first steps of the run in this folder")
    p.add_argument("--step", type=int, default=None, help="the last step that is taken over (default: all)")
    fact_arguments(p, 100)
    model_arguments(p)
    p.add_argument("--method", default=DEFAULT_METHOD, choices=list(METHODS), help="(default: %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    settings_arguments(p, Pace)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    run = open_run(args.out) if args.show else work(args)
    records = run.records
    report(records)
    path = run.folder / "table.csv"
    path.write_bytes(records_csv(records).encode())
    print(path)
    return 0


def work(args: argparse.Namespace) -> SequenceRun:
    """Begin the run, or go on with it, to its end."""
    lm = loader(args)()
    run = open_run(args.out) if args.resume else open_or_begin(args, lm)
    for record in edit_in_sequence(lm, run, track=progress):
        if record.texts or record.error:
            tqdm.write(describe_step(record))
    return run


def open_or_begin(args: argparse.Namespace, lm: LanguageModel) -> SequenceRun:
    """The run that the arguments ask for: the folder's own if it was begun as they say, else a new one."""
    config = read_config(args.method, args.set)
    facts = choose_from(facts_from(args), args, lm)
    pace = settings_from(args, Pace)
    if (args.out / "run.json").exists():
        run = open_run(args.out)
        if args.branch_of is not None and set(facts) <= set(run.plan.facts):
            facts = run.plan.facts  # a branch begins with those of its parent
        if plan_as_then(lm, run.plan, facts, config, pace, args.order_seed) != run.plan:
            raise DataError(
                f"The run in '{args.out}' was begun with other settings.", "", "Choose another folder, or add --resume."
            )
        return run
    if args.branch_of is None:
        return create_run(args.out, lm, plan_sequence(lm, facts, config, pace, args.order_seed))
    former = open_run(args.branch_of)
    step = len(former.records) - 1 if args.step is None else args.step
    edited = next((record.edited for record in former.records if record.step == step), 0)
    done = former.plan.facts[:edited]
    rest = [fact for fact in facts if fact not in done]
    plan = plan_sequence(lm, [*done, *rest], config, pace, args.order_seed)
    return branch_run(former, step, args.out, lm, plan)


def plan_as_then(
    lm: LanguageModel, old: SequencePlan, facts: Sequence[Fact], config: MethodConfig, pace: Pace, seed: int
) -> SequencePlan:
    """What the arguments would plan, with the prefixes that were sampled then."""
    config = resolve(lm, config)
    if vars(config).get("prefixes", ()) is None:
        config = replace(config, prefixes=old.config.prefixes_used)  # type: ignore[call-arg]
    return SequencePlan(config, tuple(facts), pace, seed)


def read_config(method: str, settings: Sequence[str]) -> MethodConfig:
    """A method's config with some fields set by NAME=VALUE."""
    values: dict[str, Any] = {}
    names = [field.name for field in fields(METHODS[method])]
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise DataError(f"'{text}' is no setting of {method}.", "", f"Write NAME=VALUE with {', '.join(names)}.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return METHODS[method](**values)


# -------------------------------------------------------------------------------------------------------------- output


def describe_step(record: Record) -> str:
    """One line about a step."""
    if record.error:
        return f"{record.edited} facts: {record.error}"
    checks = earlier_checks(record)
    parts = [f"{record.edited} facts", f"perplexity {record.perplexity:.4g}", f"‖ΔW‖/‖W‖ {record.norm:.3g}"]
    parts += [f"{sum(check.holds for check in own_checks(record))} of {len(record.facts)} new ones hold"]
    parts += [f"{sum(check.holds for check in checks)} of {len(checks)} earlier ones"] if checks else []
    return " · ".join(parts)


def report(records: Sequence[Record]) -> None:
    """The steps at which everything was checked, and the collapse."""
    for record in records:
        if record.step and record.texts:
            print(describe_step(record))
    failed = sum(bool(record.error) for record in records)
    broken = collapse(records)
    if records:
        print(f"unedited: perplexity {records[0].perplexity:.4g}" + (f" · {failed} steps failed" if failed else ""))
        rule = f"perplexity stays at {COLLAPSED:g} times the unedited model's or more"
        print(f"collapsed at {broken.edited} facts ({rule})" if broken else f"no collapse ({rule})")


def command() -> int:
    return run_guarded(main, "What is finished is kept: the same command goes on with the rest.")


if __name__ == "__main__":
    raise SystemExit(command())
