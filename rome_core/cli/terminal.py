"""What the console commands share: arguments that several take, progress with an estimate, errors as one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from rome_core.editing.methods import METHODS
from rome_core.errors import DataError, RomeError
from rome_core.evaluation.runs.execution import choose_facts, choose_known
from rome_core.facts.datasets import Fact, facts_of, load_facts
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import load_model
from rome_core.progress import Track
from rome_core.settings import about

S = TypeVar("S")
progress: Track = tqdm  # it counts, and estimates the rest from what was measured so far


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hugging Face id or a folder (default: %(default)s)")
    parser.add_argument("--revision", default=None, help="of a model from the hub")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.add_argument(
        "--device", default=None, help='"cpu", "cuda", or "auto" to spread a large model over all devices (accelerate)'
    )


def loader(args: argparse.Namespace) -> Callable[[], LanguageModel]:
    """Loads the model that the arguments name."""
    return partial(load_model, args.model, revision=args.revision, dtype=getattr(torch, args.dtype), device=args.device)


def fact_arguments(parser: argparse.ArgumentParser, records: int) -> None:
    parser.add_argument("--facts", type=Path, default=None, help="JSON in one of four formats (default: the own set)")
    parser.add_argument("--records", type=int, default=records, help="how many of them (default: %(default)s)")
    parser.add_argument(
        "--part",
        default="test",
        choices=("test", "all"),
        help="test leaves out the subjects that hypernetworks are trained on (default: %(default)s)",
    )
    parser.add_argument(
        "--choose",
        default="all",
        choices=("all", "known"),
        help="known takes only facts that the unedited model knows, which is asked first (default: %(default)s)",
    )
    parser.add_argument("--order-seed", type=int, default=0, help="of the order of the facts (default: %(default)s)")


def facts_from(args: argparse.Namespace) -> list[Fact]:
    """The facts that the arguments name, in the file's order. Records that cannot be read are named."""
    facts = load_facts(args.facts)
    for problem in facts.problems[:5]:
        print(f"Left out: {problem}", file=sys.stderr)
    if more := len(facts.problems[5:]):
        print(f"And {more} more such records.", file=sys.stderr)
    return facts_of("test", facts) if args.part == "test" else list(facts)


def choose_from(facts: Sequence[Fact], args: argparse.Namespace, lm: LanguageModel) -> tuple[Fact, ...]:
    """As many of the facts as the arguments ask for, in their order."""
    if args.choose == "known":
        return choose_known(lm, facts, args.records, args.order_seed, progress)
    return choose_facts(facts, args.records, args.order_seed)


def settings_arguments(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """An option for each field of a class of settings that a form has, too."""
    for name, field in about(settings).items():
        option, default = f"--{name.replace('_', '-')}", getattr(settings(), name)
        help = f"{field.help} (default: {default})"
        parser.add_argument(option, type=int, default=default, choices=field.choices or None, help=help)


def settings_from(args: argparse.Namespace, settings: type[S]) -> S:
    """The settings that the arguments name."""
    return settings(**{name: getattr(args, name) for name in about(settings)})


def method_names(text: str) -> list[str]:
    """Names of methods from a list with commas; "all" is every one of them."""
    names = list(METHODS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METHODS]:
        raise DataError(f"There is no method '{unknown[0]}'.", "", f"Choose of {', '.join(METHODS)}.")
    return names


def run_guarded(main: Callable[[Sequence[str] | None], int], again: str) -> int:
    """Run a command: what goes wrong is one sentence, Ctrl+C keeps what is finished. again: how to go on."""
    try:
        return main(None)
    except RomeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. {again}", file=sys.stderr)
        return 130
