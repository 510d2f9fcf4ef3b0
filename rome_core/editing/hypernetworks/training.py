"""Training a hypernetwork on the train part of the facts: seeded, resumable, with early stopping on held-back ones."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rome_core.editing.hypernetworks.hypernetwork import (
    Checkpoint,
    HyperNetwork,
    edited_matrices,
    load_checkpoint,
    save_checkpoint,
)
from rome_core.editing.hypernetworks.ke import KeNetwork
from rome_core.editing.hypernetworks.mend import MendNetwork
from rome_core.editing.hypernetworks.training_facts import Lessons, gradient_of, outcome, pieces_of_text
from rome_core.errors import EditError
from rome_core.facts.datasets import facts_of
from rome_core.files import write_whole
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.settings import first_fault, setting

KINDS: dict[str, type[HyperNetwork]] = {network.kind: network for network in (MendNetwork, KeNetwork)}
STATISTICS = 64  # facts from which the normalisation of the gradients is measured
HELD_BACK = 30  # of the validation facts are looked at


@dataclass(frozen=True)
class Schedule:
    """How a network is trained. One step is one fact; its target and other text depend on seed and step alone."""

    steps: int = setting(4000, "Steps", "Facts, one after another, in all.", bounds=(1, 10_000_000, 100))
    lr: float | None = setting(None, "Learning rate", "Of Adam; None: the network's own.", bounds=(1e-9, 10.0, 1e-5))
    seed: int = setting(0, "Seed", "Of the facts' order, their targets and the texts.", bounds=(0, 2**31 - 1, 1))
    clip: float = setting(1.0, "Clip", "Largest norm of one step's gradient.", bounds=(1e-6, 1e6, 0.1))
    every: int = setting(200, "Look every", "Steps between two looks at held-back facts.", bounds=(1, 1_000_000, 10))
    patience: int = setting(
        6, "Patience", "Looks without a better score until the training ends.", bounds=(1, 1_000_000, 1)
    )


@dataclass(frozen=True)
class Look:
    """What the network does to held-back facts after some steps: mean NLL of the new object on the prompt and its
    paraphrases, mean KL on unrelated text (nats), and the score that early stopping watches."""

    step: int
    nll: float
    kl: float
    score: float


Log = Callable[[Look], None]


@dataclass
class State:
    """A training so far. best: the smallest score; its network stands in the checkpoint."""

    network: HyperNetwork
    adam: torch.optim.Adam
    step: int = 0
    curve: tuple[Look, ...] = ()

    @property
    def best(self) -> Look:
        return min(self.curve, key=lambda look: look.score)


def train(
    lm: LanguageModel,
    kind: str,
    path: Path,
    schedule: Schedule = Schedule(),
    *,
    minutes: float = float("inf"),
    track: Track = silent,
    log: Log = lambda look: None,
) -> Checkpoint:
    """Train a network and keep the best one in `path`; a training that was stopped goes on where it was.

    minutes: it ends at the first look after so long; calling again goes on. The facts are the train part's, held back
    are some of the validation part's; the test part is never read. Raises EditError for a schedule that cannot be.
    """
    if fault := first_fault(schedule):
        raise EditError(f"A training cannot have this setting: {fault}")
    practice, exam = facts_of("train"), facts_of("validation")
    known, unknown = pieces_of_text(lm, schedule.seed, track)
    lessons, looks = Lessons(lm, practice, known, schedule.seed), Lessons(lm, exam, unknown, schedule.seed)
    state = resume_training(lm, kind, path, schedule) or begin_training(lm, kind, schedule, lessons, track)
    about = {**asdict(schedule), "lr": rate_of(state.network, schedule), "facts": len(practice)}
    began = time.monotonic()

    def look() -> bool:
        """Look at the held-back facts, keep what is better, and say whether to go on."""
        if not state.curve or state.curve[-1].step < state.step:
            state.curve += (validate(lm, state.network, looks, state.step),)
            log(state.curve[-1])
            if state.best is state.curve[-1]:
                curve = [asdict(one) for one in state.curve]
                trained = about | {"steps": state.step, "curve": curve}
                save_checkpoint(path, Checkpoint(state.network, lm.fingerprint, trained), edited_matrices(lm))
            save_state(path, state, schedule)
        idle = (state.step - state.best.step) // schedule.every
        return idle < schedule.patience and time.monotonic() - began < 60 * minutes

    left = range(state.step, schedule.steps)
    for step in track(left, f"Training {kind.upper()}", len(left)):
        if step % schedule.every == 0 and not look():
            break
        practise(lm, state, lessons, step, schedule)
    else:
        look()
    return load_checkpoint(path, lm, KINDS[kind])


def practise(lm: LanguageModel, state: State, lessons: Lessons, step: int, schedule: Schedule) -> None:
    """One step of Adam on one fact."""
    lesson = lessons.training(step)
    with torch.enable_grad():
        nll, kl = outcome(lm, state.network, lesson)
        loss = state.network.loss(nll, kl)
    state.adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), schedule.clip)
    state.adam.step()
    state.network.stepped(kl.item())
    state.step = step + 1


@torch.no_grad()
def validate(lm: LanguageModel, network: HyperNetwork, lessons: Lessons, step: int) -> Look:
    """Every held-back fact is edited to its own new object; the facts and texts are the same every time."""
    chosen = list(lessons.facts)
    random.Random("held back").shuffle(chosen)
    found = [
        outcome(lm, network, lessons.lesson(fact, fact.target_new, random.Random(f"held back {fact.id}")))
        for fact in chosen[:HELD_BACK]
    ]
    nll, kl = (float(torch.stack(values).mean()) for values in zip(*found, strict=True))
    return Look(step, nll, kl, network.score(nll, kl))


# ------------------------------------------------------------------------------------------------------ begin, go on


def begin_training(lm: LanguageModel, kind: str, schedule: Schedule, lessons: Lessons, track: Track) -> State:
    """An untrained network that has seen some training facts' gradients."""
    torch.manual_seed(schedule.seed)
    network = KINDS[kind](edited_matrices(lm), **KINDS[kind].sizes(lm)).to(lm.device)
    steps = track(range(STATISTICS), "Looking at gradients", STATISTICS)
    network.prepare([gradient_of(lm, lessons.training(step)) for step in steps])
    return State(network, optimiser(network, schedule))


def rate_of(network: HyperNetwork, schedule: Schedule) -> float:
    return network.lr if schedule.lr is None else schedule.lr


def optimiser(network: HyperNetwork, schedule: Schedule) -> torch.optim.Adam:
    return torch.optim.Adam(network.groups(rate_of(network, schedule)))


def state_path(path: Path) -> Path:
    return path.with_suffix(".training")


def save_state(path: Path, state: State, schedule: Schedule) -> None:
    """Network, Adam's moments and the curve in one file, replaced as a whole."""
    tensors: dict[str, Tensor] = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    for index, own in state.adam.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in own.items()}
    about = {"schedule": asdict(schedule), "step": state.step, "curve": [asdict(look) for look in state.curve]}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_whole(state_path(path), lambda part: save_file(tensors, part, {"about": json.dumps(about)}))


def resume_training(lm: LanguageModel, kind: str, path: Path, schedule: Schedule) -> State | None:
    """The training that was stopped, if there is one. Raises EditError where it was begun with other settings."""
    stopped = state_path(path)
    if not stopped.exists():
        return None
    network = load_checkpoint(path, lm, KINDS[kind]).network.requires_grad_(True)
    try:
        with safe_open(stopped, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        if replace(Schedule(**about["schedule"]), steps=schedule.steps) != schedule:
            raise EditError(
                f"The training in '{stopped.name}' was begun with other settings.",
                "",
                "Use the same, or another --out, or delete the file to begin anew.",
            )
        network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
        adam = optimiser(network, schedule)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        adam.load_state_dict({**adam.state_dict(), "state": moments})
        return State(network, adam, about["step"], tuple(Look(**look) for look in about["curve"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise EditError(f"'{stopped.name}' cannot be read.", "", "Delete it to begin the training anew.") from error
