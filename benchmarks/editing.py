"""Solving an edit (r-rome, default model): v* by replay against the same optimisation with whole forward passes.

    python -m benchmarks.editing --out build/editing.json

Both optimise the same δ for the same number of steps in this one process, in turn. Then whole `solve` calls with
default settings: the first one of the process, a second one on another fact, and that again with replay switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean

from torch import Tensor

from benchmarks.common import Row, heading, machine, parse, parser_of, table, timed, write
from rome_core import Edit, EditRequest, LanguageModel, Prompt, Step, load_model, solve
from rome_core.editing.methods.rome import RRome
from rome_core.editing.presets import resolve
from rome_core.editing.value import (
    Final,
    Prompts,
    final_by_hooks,
    final_by_replay,
    keys_of,
    optimise_delta,
    prompts_of,
    sampled_prefixes,
)
from rome_core.model.replay import REPLAY, replay_note

REQUEST = EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome", "Paris")
OTHER = EditRequest(Prompt("The {} is located in the city of", "Colosseum"), "Berlin", "Rome")
OPTIMISATION = {
    "steps": ("steps", "d"),
    "rows": ("rows", "d"),
    "tokens": ("tokens", "d"),
    "plain_seconds": ("plain s", ".2f"),
    "seconds": ("fast s", ".2f"),
    "recording": ("of that recording", ".2f"),
    "ratio": ("ratio", ".1f"),
    "difference": ("‖δ−δ'‖/‖δ'‖", ".1e"),
}
SOLVES = {
    "what": ("solve", ""),
    "seconds": ("s", ".2f"),
    "steps": ("steps", "d"),
    "p_target": ("p(target)", ".3f"),
}
Engine = Callable[[LanguageModel, Prompts, int, list[Edit]], Final]


def optimisation(lm: LanguageModel, config: RRome, repeats: int) -> Row:
    """Seconds of the optimisation with each engine, recording included, in turn; and how far the two δ are apart."""
    assert config.layer is not None
    layer = config.layer
    prompts = prompts_of(lm, REQUEST, sampled_prefixes(lm, config.seed), config.kl_at)
    keys = keys_of(lm, prompts, layer, [])
    engines: dict[str, Engine] = {"fast": final_by_replay, "plain": final_by_hooks}
    deltas: dict[str, Tensor] = {}
    taken: dict[str, list[float]] = {name: [] for name in engines}
    preparing: dict[str, float] = {}

    def optimise(engine: Engine) -> tuple[Tensor, tuple[Step, ...], float]:
        final, recording = timed(lambda: engine(lm, prompts, layer, []))
        return *optimise_delta(lm, prompts, keys.v_0 + keys.bias, final, config), recording

    for _ in range(repeats):
        for name, engine in engines.items():
            (deltas[name], history, preparing[name]), seconds = timed(partial(optimise, engine))
            assert len(history) == config.steps, "a step was left out, so the times do not compare"
            taken[name].append(seconds)
    return {
        "layer": layer,
        "steps": config.steps,
        "rows": len(prompts.batch.ids),
        "tokens": prompts.batch.ids.shape[1],
        "resumed_at_token": prompts.column,
        "plain_seconds": mean(taken["plain"]),
        "seconds": mean(taken["fast"]),
        "recording": preparing["fast"],
        "seconds_each": taken,
        "ratio": mean(taken["plain"]) / mean(taken["fast"]),
        "difference": float((deltas["fast"] - deltas["plain"]).norm() / deltas["plain"].norm()),
    }


def whole(lm: LanguageModel, what: str, request: EditRequest, config: RRome) -> Row:
    """A whole solve: prefixes, keys, C from where it is stored, v* and the update."""
    edit, seconds = timed(lambda: solve(lm, [request], config))
    last = edit.history[-1]
    return {"what": what, "seconds": seconds, "steps": len(edit.history), "p_target": last.p_target}


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--steps", type=int, default=20, help="of both optimisations that are compared")
    parser.add_argument("--solve-steps", type=int, default=20, help="at most, of the whole solves")
    parser.add_argument("--repeats", type=int, default=2, help="how often each optimisation is timed")
    options = parse(parser)
    lm = load_model()
    default = RRome(steps=options.solve_steps)
    rows = [whole(lm, "first", REQUEST, default), whole(lm, "next", OTHER, default)]
    about = {**machine(lm), "engine": replay_note(lm) or "replay"}
    compared = optimisation(lm, resolve(lm, RRome(steps=options.steps, stop_loss=0.0)), options.repeats)
    lm.forget(REPLAY)
    lm.remember(REPLAY, (), lambda: "switched off by the benchmark")  # where solve looks whether it may use replay
    rows.append(whole(lm, "next, without replay", OTHER, default))
    print(heading(about), table(OPTIMISATION, [compared]), table(SOLVES, rows), sep="\n\n")
    write(options.out, machine=about, optimisation=compared, solves=rows)


if __name__ == "__main__":
    main()
