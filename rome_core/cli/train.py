"""rome-train: train a hypernetwork for a model, with progress; the same command goes on after a stop.

rome-train mend
rome-train ke --minutes 20 --seed 1
rome-train mend --model path/to/a/model --steps 8000 --out mine.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from rome_core.editing.hypernetworks.hypernetwork import checkpoint_path
from rome_core.editing.hypernetworks.training import KINDS, Look, Schedule, train
from rome_core.errors import RomeError
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.loading import load_model


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 where it ends with a sentence of what is wrong."""
    args = parser().parse_args(arguments)
    schedule = Schedule(steps=args.steps, lr=args.lr, seed=args.seed, every=args.every, patience=args.patience)
    try:
        lm = load_model(args.model)
        path = args.out or checkpoint_path(lm, args.kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        done = train(lm, args.kind, path, schedule, minutes=args.minutes, track=tqdm, log=say)
    except RomeError as error:
        tqdm.write(str(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        tqdm.write("Stopped. The same command goes on from the last look.", file=sys.stderr)
        return 130
    tqdm.write(f"The best network, after {done.training['steps']:,} steps, is in {path}.")
    return 0


def say(look: Look) -> None:
    """One line a look at the held-back facts."""
    tqdm.write(f"step {look.step:5,d}: NLL {look.nll:.3f}, KL {look.kl:.4f} nats, score {look.score:.4f}")


def parser() -> argparse.ArgumentParser:
    """The command's arguments; their defaults are the schedule's."""
    usual = Schedule()
    made = argparse.ArgumentParser(
        prog="rome-train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("kind", choices=list(KINDS))
    made.add_argument("--model", default=DEFAULT_MODEL, help="a name or a folder, as for load_model")
    made.add_argument("--steps", type=int, default=usual.steps)
    made.add_argument("--lr", type=float, default=None, help="of Adam; default: the network's own")
    made.add_argument("--seed", type=int, default=usual.seed)
    made.add_argument("--every", type=int, default=usual.every, help="steps between two looks at held-back facts")
    made.add_argument("--patience", type=int, default=usual.patience, help="looks without a better score until the end")
    made.add_argument("--minutes", type=float, default=float("inf"), help="ends at the first look after so long")
    made.add_argument("--out", type=Path, default=None, help="default: the user's cache, where edits find it")
    return made


if __name__ == "__main__":
    sys.exit(main())
