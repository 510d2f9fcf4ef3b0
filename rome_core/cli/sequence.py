"""rome-sequence: edit facts one after another, or in batches, and see what is left; resumable at any moment.

rome-sequence --out runs/r-rome --method r-rome --records 100
rome-sequence --out runs/memit --method memit --batch 10 --records 100
rome-sequence --out runs/r-rome-then-memit --branch-of runs/r-rome --step 40 --method memit --batch 10
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from tqdm import tqdm

from rome_core.cli import values
from rome_core.cli.terminal import (
    FAILED,
    choose_from,
    fact_arguments,
    facts_from,
    loader,
    model_arguments,
    progress,
    run_guarded,
    say,
    settings_arguments,
    settings_from,
)
from rome_core.editing.methods import DEFAULT_METHOD, METHODS, MethodConfig
from rome_core.editing.presets import resolve
from rome_core.errors import DataError, RomeError
from rome_core.evaluation.sequence.curves import COLLAPSED, collapse, earlier_checks, own_checks, records_csv
from rome_core.evaluation.sequence.folder import (
    Pace,
    Record,
    SequencePlan,
    SequenceRun,
    branch_run,
    create_run,
    discard_run,
    open_run,
)
from rome_core.evaluation.sequence.start import without
from rome_core.evaluation.sequence.steps import edit_in_sequence, plan_sequence
from rome_core.facts.datasets import Fact
from rome_core.model.language_model import LanguageModel
from rome_core.settings import read_value


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="rome-sequence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--out",
        type=values.folder_to_write,
        required=True,
        help="the run's folder; a run that is there is gone on with",
    )
    p.add_argument("--resume", action="store_true", help="go on with the folder's own settings; no others are read")
    p.add_argument("--show", action="store_true", help="compute nothing: print the folder's table and write it again")
    p.add_argument(
        "--branch-of", type=values.folder, default=None, help="begin with the first steps of the run in this folder"
    )
    p.add_argument(
        "--step", type=values.whole(0), default=None, help="the last step of it that is taken over (default: all)"
    )
    fact_arguments(p, 100)
    model_arguments(p)
    p.add_argument("--method", default=DEFAULT_METHOD, choices=list(METHODS), help="(default: %(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    settings_arguments(p, Pace)
    return p


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked; a wrong one ends the command with a sentence and exit code 2. `config`: the method's."""
    p = parser()
    args = p.parse_args(argv)
    try:
        args.config = read_config(args.method, args.set)
    except RomeError as error:
        p.error(str(error))
    if args.batch > 1 and not args.config.batches:
        p.error(
            f"{args.method} edits one fact at a time, not {args.batch}: leave --batch out, or choose another method"
        )
    if args.step is not None and args.branch_of is None:
        p.error("--step is of another run: name its folder with --branch-of")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    run = open_run(args.out) if args.show else work(args)
    records = run.records
    report(records)
    path = run.folder / "table.csv"
    path.write_bytes(records_csv(records).encode())
    print(path)
    steps = [] if args.show else records[1:]
    if steps and all(record.error for record in steps):
        say("No fact could be edited: the reasons stand above.")
        return FAILED
    return 0


def work(args: argparse.Namespace) -> SequenceRun:
    """Begin the run, or go on with it, to its end. One that ends before its first record leaves no folder behind."""
    run, began = open_run(args.out) if args.resume else None, not (args.out / "run.json").exists()
    facts = [] if args.resume else facts_from(args, [args.method])
    former = None if args.resume or args.branch_of is None else open_run(args.branch_of)
    lm = loader(args)()
    run = run or open_or_begin(args, lm, choose_from(facts, args, lm), former)
    try:
        for record in edit_in_sequence(lm, run, track=progress):
            if record.texts or record.error:
                tqdm.write(describe_step(record))
    except BaseException:
        if began and not run.records:
            discard_run(run)
        raise
    return run


def open_or_begin(
    args: argparse.Namespace, lm: LanguageModel, facts: tuple[Fact, ...], former: SequenceRun | None
) -> SequenceRun:
    """The run that the arguments ask for: the folder's own if it was begun as they say, else a new one. former: the run
    that it branches off."""
    pace = settings_from(args, Pace)
    if (args.out / "run.json").exists():
        run, wanted = open_run(args.out), facts
        if former is not None and set(facts) <= set(run.plan.facts):
            wanted = run.plan.facts  # a branch begins with those of its parent
        if plan_as_then(lm, run.plan, wanted, args.config, pace, args.order_seed) == run.plan:
            return run
        if run.records:
            raise DataError(
                f"The run in '{args.out}' was begun with other settings.", "", "Choose another folder, or add --resume."
            )
        discard_run(run)  # a start that was killed before its first record
    if former is None:
        return create_run(args.out, lm, plan_sequence(lm, facts, args.config, pace, args.order_seed))
    step = max(0, len(former.records) - 1) if args.step is None else args.step
    edited = next((record.edited for record in former.records if record.step == step), 0)
    done = former.plan.facts[:edited]
    plan = plan_sequence(lm, [*done, *without(facts, done)], args.config, pace, args.order_seed)
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
    """A method's config with some fields set by NAME=VALUE, each of its field's type and within its range."""
    chosen: dict[str, Any] = {}
    names = [field.name for field in fields(METHODS[method])]
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in names:
            raise DataError(f"'{text}' is no setting of {method}.", "", f"Write NAME=VALUE with {', '.join(names)}.")
        try:
            chosen[name] = read_value(METHODS[method], name, value)
        except ValueError as error:
            raise DataError(f"'{text}' is no setting of {method}: {error}") from None
    return METHODS[method](**chosen)


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


def kept(argv: Sequence[str] | None) -> str:
    """What the folder has of a run that was stopped."""
    folder = arguments(argv).out
    if not (folder / "run.json").exists() or not (records := open_run(folder).records):
        return "Nothing was finished, and nothing is kept."
    return f"Facts that are kept in '{folder}': {records[-1].edited:,}. The same command goes on with the rest."


def command(argv: Sequence[str] | None = None) -> int:
    return run_guarded(main, kept, argv)


if __name__ == "__main__":
    raise SystemExit(command())
