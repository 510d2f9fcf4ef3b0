"""What the console commands share: arguments that several take, progress with an estimate, errors as one sentence."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from rome_core.cli import values
from rome_core.editing.methods import METHODS
from rome_core.errors import DataError, RomeError
from rome_core.evaluation.runs.execution import choose_facts, choose_known
from rome_core.facts.datasets import Fact, facts_of, load_facts, part_of
from rome_core.facts.new_objects import lacks_new_object, with_new_objects
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import load_model
from rome_core.progress import Track
from rome_core.settings import about

S = TypeVar("S")
FAILED, USAGE, STOPPED = 1, 2, 130  # exit codes; argparse leaves with the second one by itself
SHOWN = 5  # records that are named one by one
progress: Track = tqdm  # it counts, and estimates the rest from what was measured so far


def say(text: str) -> None:
    """A line beside the results."""
    tqdm.write(text, file=sys.stderr)


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a Hugging Face id or a folder (default: %(default)s)")
    parser.add_argument("--revision", default=None, help="of a model from the hub")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.add_argument(
        "--device",
        type=values.device,
        default=None,
        help='"cpu", "cuda", or "auto" to spread a large model over all devices (accelerate); default: the GPU, if any',
    )


def loader(args: argparse.Namespace) -> Callable[[], LanguageModel]:
    """Loads the model that the arguments name."""
    return partial(load_model, args.model, revision=args.revision, dtype=getattr(torch, args.dtype), device=args.device)


def fact_arguments(parser: argparse.ArgumentParser, records: int) -> None:
    parser.add_argument("--facts", type=values.file, default=None, help="a file of facts (default: the project's own)")
    parser.add_argument("--encoding", type=values.encoding, default=None, help="of that file, where it cannot be told")
    parser.add_argument(
        "--records",
        type=values.records,
        default=records,
        help="how many of the facts; -1: all of them (default: %(default)s)",
    )
    parser.add_argument(
        "--part",
        default=None,
        choices=("test", "all"),
        help="test leaves out the subjects that hypernetworks are trained on (default: test of the project's own "
        "facts, all of a file)",
    )
    parser.add_argument(
        "--choose",
        default="all",
        choices=("all", "known"),
        help="known takes only facts that the unedited model knows, which is asked first (default: %(default)s)",
    )
    parser.add_argument(
        "--new-objects",
        default=None,
        choices=("same-relation", "leave-out"),
        help="of facts without a new object: same-relation takes another object of the relation, chosen by "
        "--order-seed; leave-out leaves them out (default: they are refused)",
    )
    parser.add_argument(
        "--order-seed",
        type=values.whole(0, 2**31 - 1),
        default=0,
        help="of the order of the facts and the choice of new objects (default: %(default)s)",
    )


def part_asked(args: argparse.Namespace) -> str:
    """A user's own file is taken whole unless a part is asked for; of the project's facts the test part counts."""
    return str(args.part or ("test" if args.facts is None else "all"))


def facts_from(args: argparse.Namespace, methods: Sequence[str] = ()) -> list[Fact]:
    """The facts that the arguments name, in the file's order. What is left out of them is said, with its reason.

    methods: what they are for. Facts that one of them was trained on are counted.
    """
    name = "the project's own set" if args.facts is None else f"'{args.facts.name}'"
    read = load_facts(args.facts, encoding=args.encoding)
    left_out(read.problems)
    for note in read.notes:
        say(note)
    facts = list(read)
    if args.new_objects == "same-relation":
        lacking = sum(map(lacks_new_object, facts))
        chosen = with_new_objects(facts, args.order_seed)
        left_out(chosen.problems)
        facts, given = list(chosen), lacking - len(chosen.problems)
        say(f"Facts with another object of their relation as the new one, by seed {args.order_seed}: {given:,}.")
    if part_asked(args) == "test":
        found = facts_of("test", facts)
        if facts and not found:
            raise DataError(f"None of the {len(facts):,} facts of {name} is in the test part.", "", "Add --part all.")
        if args.facts is not None and len(found) < len(facts):
            say(f"Left out by --part test: {len(facts) - len(found):,} of {len(facts):,} facts.")
        facts = found
    facts = with_objects_only(facts, args.new_objects)
    if not facts:
        raise DataError(f"There is no fact in {name} that can be edited.", "", "Choose another file.")
    if args.records is not None and args.records > len(facts):
        say(f"All facts are taken: {len(facts):,}, fewer than --records {args.records}.")
    if part_asked(args) == "all":
        say_trained(facts, [name for name in methods if METHODS[name].trained])
    return facts


def left_out(problems: Sequence[object]) -> None:
    """Name the first records that are left out, and count the others."""
    for problem in problems[:SHOWN]:
        say(f"Left out: {problem}")
    if more := len(problems[SHOWN:]):
        say(f"And {more:,} more such records: {len(problems):,} in all.")


def with_objects_only(facts: list[Fact], new_objects: str | None) -> list[Fact]:
    """The facts that have a new object. Raises DataError if some have none and nobody said what to do with them."""
    scored = [fact for fact in facts if fact.target_true]
    if len(scored) < len(facts):
        say(f"Left out: {len(facts) - len(scored):,} of {len(facts):,} facts, which have no true object to score by.")
    facts = scored
    good = [fact for fact in facts if not lacks_new_object(fact)]
    if lacking := len(facts) - len(good):
        if new_objects is None:
            raise DataError(
                f"{lacking:,} of {len(facts):,} facts have no new object to edit to.",
                "None is given, or it is the true one.",
                "Add --new-objects same-relation to take another object of the relation, or --new-objects leave-out; "
                "tracing needs none.",
            )
        say(f"Left out: {lacking:,} of {len(facts):,} facts, which have no new object.")
    return good


def say_trained(facts: Sequence[Fact], trained: Sequence[str]) -> None:
    """Count the facts about subjects that some methods were trained on."""
    seen = {fact.prompt.subject.casefold() for fact in load_facts() if part_of(fact) != "test"} if trained else set()
    if n := sum(fact.prompt.subject.strip().casefold() in seen for fact in facts):
        say(
            f"{n:,} of {len(facts):,} facts are about subjects that {', '.join(trained)} may have been trained on; "
            "--part test leaves them out."
        )


def choose_from(facts: Sequence[Fact], args: argparse.Namespace, lm: LanguageModel) -> tuple[Fact, ...]:
    """As many of the facts as the arguments ask for, in their order."""
    if args.choose == "known":
        return choose_known(lm, facts, args.records, args.order_seed, progress)
    return choose_facts(facts, args.records, args.order_seed)


def settings_arguments(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """An option for each field of a class of settings that a form has, too."""
    for name, field in about(settings).items():
        default = getattr(settings(), name)
        help = f"{field.help} (default: {default})".replace("%", "%%")
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=values.of_field(settings, name), default=default, help=help
        )


def settings_from(args: argparse.Namespace, settings: type[S]) -> S:
    """The settings that the arguments name."""
    return settings(**{name: getattr(args, name) for name in about(settings)})


# ------------------------------------------------------------------------------------------------------ how it may end


def run_guarded(
    main: Callable[[Sequence[str] | None], int],
    kept: Callable[[Sequence[str] | None], str],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command to its exit code: 0 done, 1 failed, 130 stopped; argparse leaves with 2. Whatever goes wrong is one
    sentence. kept: what Ctrl+C leaves and how to go on."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print(f"\nStopped. {kept(argv)}", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # whoever reads the output has had enough; nothing more is written into it
        close_output()
        return FAILED
    except Exception as error:
        print(f"Error: {explain(error)}", file=sys.stderr)
        return FAILED


def close_output() -> None:
    """Let what is still to be written go nowhere, so that Python has nothing to complain of when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: Exception) -> str:
    """One sentence, whatever went wrong. Of what nobody foresaw the traceback is kept in a file, to be reported."""
    if isinstance(error, RomeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = (
            f"'{error.filename}' cannot be read or written" if error.filename else "A file cannot be read or written"
        )
        return f"{where}: {error.strerror}. What was finished before is kept."
    if isinstance(error, OSError | SafetensorError):
        return f"A file cannot be read or written: {error}. What was finished before is kept."
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "The memory is not enough. What was finished before is kept; take a smaller model or --dtype bfloat16."
    first = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return f"Something unforeseen happened ({first}).{keep_traceback(error)}"


def keep_traceback(error: Exception) -> str:
    """Write the traceback into a file of its own and say where; where there is no room for one, nothing."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="rome-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:
        return ""
    return f" Please report it with its traceback, which is in {Path(file.name)}."
