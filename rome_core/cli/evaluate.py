"""rome-evaluate: edit many facts by several methods and measure every one, resumable, on one core or a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from rome_core.cli import values
from rome_core.cli.terminal import (
    FAILED,
    fact_arguments,
    facts_from,
    loader,
    model_arguments,
    part_asked,
    progress,
    run_guarded,
    say,
    settings_arguments,
    settings_from,
)
from rome_core.editing.methods import METHODS
from rome_core.editing.value import N_SAMPLED
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.generation_measures import load_references
from rome_core.evaluation.runs.execution import carry_out
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.runs.ray_workers import ray_workers
from rome_core.evaluation.runs.request import RunRequest
from rome_core.evaluation.runs.store import NEW_OBJECTS, OWN_SET, Store
from rome_core.evaluation.runs.tables import as_text, columns_for, export, merge_unedited, present_columns, score_lines


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="rome-evaluate", description=__doc__)
    p.add_argument(
        "--out", type=values.folder_to_write, required=True, help="the run's folder; one that is there is gone on with"
    )
    p.add_argument("--show", action="store_true", help="compute nothing: print the folder's table and export it again")
    p.add_argument("--retry-failed", action="store_true", help="do again what failed before")
    p.add_argument("--known-only", action="store_true", help="count only facts that the unedited model knows")
    fact_arguments(p, 100)
    model_arguments(p)
    p.add_argument(
        "--methods", type=values.method_names, default=tuple(METHODS), help="with commas between them (default: all)"
    )
    p.add_argument(
        "--layers",
        type=values.layers,
        default=(),
        help="with commas; each method at each of them (default: the preset's)",
    )
    p.add_argument(
        "--prefixes",
        type=values.whole(1, N_SAMPLED + 1),
        default=None,
        help="prompts a fact: 6 save time (default: each method's)",
    )
    p.add_argument(
        "--group",
        type=values.whole(1),
        default=1,
        help="facts edited together (default: each on the untouched model)",
    )
    settings_arguments(p, MeasureSettings)
    p.add_argument("--references", type=values.file, default=None, help="JSON from objects to texts, for RS")
    p.add_argument(
        "--workers",
        type=values.whole(0),
        default=1,
        help="processes, by Ray; 0 or 1 without --address: this one (default: %(default)s)",
    )
    p.add_argument(
        "--threads",
        type=values.whole(1),
        default=None,
        help="of each worker, or of this process (default: 1, or torch's)",
    )
    p.add_argument("--gpus", type=values.gpus, default=0.0, help="of each worker (default: %(default)s)")
    p.add_argument(
        "--address", type=values.cluster, default=None, help='of a Ray cluster; "auto": the one of this machine'
    )
    return p


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked; a wrong one ends the command with a sentence and exit code 2."""
    p = parser()
    args = p.parse_args(argv)
    if args.address is not None and args.workers == 0:
        p.error("--workers 0 is this process, and --address a cluster: leave one out")
    if args.gpus and not spread(args):
        p.error("--gpus is of workers: add --workers or --address; this process takes the GPU that --device names")
    return args


def spread(args: argparse.Namespace) -> bool:
    """Whether the work goes to other processes."""
    return args.workers > 1 or args.address is not None


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    failed = 0 if args.show else work(args)
    store = Store(args.out)
    rows = store.rows()
    lines = merge_unedited(score_lines(rows, known_only=args.known_only))
    print(as_text(lines, present_columns(lines, columns_for(rows))))
    for path in export(store, known_only=args.known_only):
        print(path)
    return failed


def request_from(args: argparse.Namespace) -> RunRequest:
    """The run that the arguments ask for."""
    facts = facts_from(args, args.methods)
    source = OWN_SET if args.facts is None else args.facts.name
    return RunRequest(
        source=source if args.new_objects is None else f"{source}, {NEW_OBJECTS}{args.new_objects}",
        set_hash=hash_of(facts),
        facts=tuple(facts),
        n=len(facts) if args.records is None else args.records,
        order_seed=args.order_seed,
        test_only=part_asked(args) == "test",
        known_only=args.choose == "known",
        methods=args.methods,
        layers=args.layers,
        prefixes=args.prefixes,
        group=args.group,
        measures=settings_from(args, MeasureSettings),
    )


def work(args: argparse.Namespace) -> int:
    """Do what is missing in the folder; the exit code is that of a failure if nothing of it could be done."""
    request, load = request_from(args), loader(args)
    references = None if args.references is None else load_references(args.references)
    workers = None
    if spread(args):
        threads = args.threads or 1
        workers = ray_workers(args.workers, load, threads=threads, gpus=args.gpus, address=args.address, say=say)
    elif args.threads:
        torch.set_num_threads(args.threads)
    lm = load()
    plan = replace(request.plan(lm, progress), references=references)
    if args.retry_failed and (args.out / "run.json").exists():
        Store(args.out).forget_failures()
    done = failed = 0
    for row in carry_out(lm, plan, args.out, workers=workers, track=progress):
        done, failed = done + 1, failed + bool(row.error)
        if row.error:
            tqdm.write(f"{row.method}, {row.subject}: {row.error}")
    if failed and failed == done:
        say("No fact could be edited: the reasons stand above.")
        return FAILED
    return 0


def kept(argv: Sequence[str] | None) -> str:
    """What the folder has of a run that was stopped."""
    folder = arguments(argv).out
    parts = sum(1 for _ in (folder / "parts").glob("*/*.parquet"))
    if not parts:
        return "Nothing was finished, and nothing is kept."
    return f"Finished parts that are kept in '{folder}': {parts:,}. The same command goes on with the rest."


def command(argv: Sequence[str] | None = None) -> int:
    return run_guarded(main, kept, argv)


if __name__ == "__main__":
    raise SystemExit(command())
