"""rome-train: train a hypernetwork for a model, with progress; the same command goes on after a stop.

rome-train mend
rome-train ke --minutes 20 --seed 1
rome-train mend --model path/to/a/model --steps 8000 --out mine.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tqdm import tqdm

from rome_core.cli import values
from rome_core.cli.terminal import loader, model_arguments, run_guarded, settings_arguments, settings_from
from rome_core.editing.hypernetworks.hypernetwork import checkpoint_path
from rome_core.editing.hypernetworks.training import KINDS, Look, Schedule, state_path, train


def parser() -> argparse.ArgumentParser:
    """The command's arguments; their defaults are the schedule's."""
    made = argparse.ArgumentParser(
        prog="rome-train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("kind", choices=list(KINDS))
    model_arguments(made)
    settings_arguments(made, Schedule)
    made.add_argument(
        "--minutes", type=values.amount, default=float("inf"), help="ends at the first look after so long"
    )
    made.add_argument(
        "--out", type=values.file_to_write, default=None, help="default: the user's cache, where edits find it"
    )
    return made


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked; a wrong one ends the command with a sentence and exit code 2."""
    p = parser()
    args = p.parse_args(argv)
    if args.out is not None and args.out == state_path(args.out):
        p.error(f"--out: '{args.out}' is the name of the training's own state; end it in .safetensors")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    lm = loader(args)()
    path = args.out or checkpoint_path(lm, args.kind)
    done = train(lm, args.kind, path, settings_from(args, Schedule), minutes=args.minutes, track=tqdm, log=say_look)
    tqdm.write(f"The best network, after {done.training['steps']:,} steps, is in {path}.")
    return 0


def say_look(look: Look) -> None:
    """One line a look at the held-back facts."""
    tqdm.write(f"step {look.step:5,d}: NLL {look.nll:.3f}, KL {look.kl:.4f} nats, score {look.score:.4f}")


def kept(argv: Sequence[str] | None) -> str:
    """What a training that was stopped leaves."""
    out = arguments(argv).out
    if out is not None and not state_path(out).exists():
        return "It had not looked at the held-back facts yet, so nothing is kept."
    return "What the last look found is kept: the same command goes on from there."


def command(argv: Sequence[str] | None = None) -> int:
    return run_guarded(main, kept, argv)


if __name__ == "__main__":
    raise SystemExit(command())
