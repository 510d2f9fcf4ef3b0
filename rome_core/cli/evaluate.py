"""rome-evaluate: edit many facts by several methods and measure every one, resumable, on one core or a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rome_core.cli.terminal import (
    fact_arguments,
    facts_from,
    loader,
    method_names,
    model_arguments,
    progress,
    run_guarded,
    settings_arguments,
    settings_from,
)
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.generation_measures import load_references
from rome_core.evaluation.runs.execution import carry_out
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.runs.ray_workers import ray_workers
from rome_core.evaluation.runs.request import RunRequest
from rome_core.evaluation.runs.store import OWN_SET, Store
from rome_core.evaluation.runs.tables import as_text, columns_for, export, merge_unedited, present_columns, score_lines


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="rome-evaluate", description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="the run's folder; a folder that is there is gone on with")
    p.add_argument("--show", action="store_true", help="compute nothing: print the folder's table and export it again")
    p.add_argument("--retry-failed", action="store_true", help="do again what failed before")
    p.add_argument("--known-only", action="store_true", help="count only facts that the unedited model knows")
    fact_arguments(p, 100)
    model_arguments(p)
    p.add_argument("--methods", default="all", help="with commas between them (default: all)")
    p.add_argument("--layers", default="", help="with commas; each method at each of them (default: the preset's)")
    p.add_argument("--prefixes", type=int, default=None, help="prompts a fact: 6 save time (default: each method's)")
    p.add_argument("--group", type=int, default=1, help="facts edited together (default: each on the untouched model)")
    settings_arguments(p, MeasureSettings)
    p.add_argument("--references", type=Path, default=None, help="JSON from objects to texts, for RS")
    p.add_argument("--workers", type=int, default=1, help="processes, by Ray (default: this one)")
    p.add_argument("--threads", type=int, default=1, help="of each worker (default: %(default)s)")
    p.add_argument("--gpus", type=float, default=0.0, help="of each worker (default: %(default)s)")
    p.add_argument("--address", default=None, help='of a Ray cluster; "auto": the one of this machine')
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not args.show:
        work(args)
    store = Store(args.out)
    rows = store.rows()
    lines = merge_unedited(score_lines(rows, known_only=args.known_only))
    print(as_text(lines, present_columns(lines, columns_for(rows))))
    for path in export(store, known_only=args.known_only):
        print(path)
    return 0


def request_from(args: argparse.Namespace) -> RunRequest:
    """The run that the arguments ask for."""
    facts = facts_from(args)
    return RunRequest(
        source=OWN_SET if args.facts is None else args.facts.name,
        set_hash=hash_of(facts),
        facts=tuple(facts),
        n=args.records,
        order_seed=args.order_seed,
        test_only=args.part == "test",
        known_only=args.choose == "known",
        methods=tuple(method_names(args.methods)),
        layers=tuple(int(layer) for layer in args.layers.split(",") if layer),
        prefixes=args.prefixes,
        group=max(1, args.group),
        measures=settings_from(args, MeasureSettings),
    )


def work(args: argparse.Namespace) -> None:
    """Do what is missing in the folder."""
    if args.retry_failed and args.out.exists():
        Store(args.out).forget_failures()
    load = loader(args)
    lm = load()
    plan = request_from(args).plan(lm, progress)
    if args.references is not None:
        plan = replace(plan, references=load_references(args.references))
    spread = args.workers > 1 or args.address
    workers = (
        ray_workers(args.workers, load, threads=args.threads, gpus=args.gpus, address=args.address) if spread else None
    )
    for row in carry_out(lm, plan, args.out, workers=workers, track=progress):
        if row.error:
            tqdm.write(f"{row.method}, {row.subject}: {row.error}")


def command() -> int:
    return run_guarded(main, "What is finished is kept: the same command goes on with the rest.")


if __name__ == "__main__":
    raise SystemExit(command())
