"""Where to edit: ES, PS, NS and S by layer, beside the tracing effect by layer: `python studies/layers.py --facts 20`.

Each layer edits the same facts with r-rome, each fact by itself. Writes docs/studies/layers.jsonl, one (layer, fact) a
line, layers in a coarse-to-fine order, so that a stopped study covers the whole depth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from rome_core import METHODS, load_model
from rome_core.errors import RomeError
from rome_core.evaluation import case_of
from rome_core.methods import solve
from studies.common import RESULTS, append, read
from studies.edits import chosen


def coarse_to_fine(n: int) -> list[int]:
    """0 … n−1, every eighth first, then what is between."""
    order: list[int] = []
    for step in (8, 4, 2, 1):
        order += [layer for layer in range(0, n, step) if layer not in order]
    return order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of facts")
    parser.add_argument("--method", default="r-rome")
    parser.add_argument("--clamp", type=float, default=None, help="default: the preset's")
    parser.add_argument("--out", type=Path, default=RESULTS / "layers.jsonl")
    args = parser.parse_args()
    lm = load_model()
    facts = chosen(args.facts, args.seed)
    done = {(record["layer"], record["fact"]) for record in read(args.out)}
    todo = [(layer, fact) for layer in coarse_to_fine(lm.n_layers) for fact in facts if (layer, fact.id) not in done]
    for layer, fact in tqdm(todo):
        config = METHODS[args.method](layer=layer, clamp=args.clamp)  # type: ignore[call-arg]
        try:
            edit = solve(lm, [fact.request], config)
        except RomeError as error:
            append(args.out, {"layer": layer, "fact": fact.id, "error": str(error)})
            continue
        append(
            args.out,
            {
                "layer": layer,
                "fact": fact.id,
                "method": args.method,
                "clamp": edit.config.clamp,
                "first": fact.prompt.span[0] == 0,
                "case": case_of(lm, fact, edits=[edit]).values(),
                "loss": edit.history[-1].loss,
                "relative_norm": edit.delta_norm / float(lm.weight(layer).norm()),
            },
        )


if __name__ == "__main__":
    main()
