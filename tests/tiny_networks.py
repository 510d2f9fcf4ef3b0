"""Small hypernetworks, untrained or shaken, what they read, and the plain gradient that they are checked against."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from rome_core import EditRequest, LanguageModel, Prompt
from rome_core.editing.hypernetworks.hypernetwork import (
    Checkpoint,
    Gradient,
    HyperNetwork,
    edited_blocks,
    edited_matrices,
    gradients,
    save_checkpoint,
)
from rome_core.editing.hypernetworks.ke import KeNetwork
from rome_core.editing.hypernetworks.mend import MendNetwork
from rome_core.editing.hypernetworks.training_facts import Lesson, Lessons
from rome_core.editing.teacher_forcing import forced_rows
from rome_core.facts.datasets import Fact
from rome_core.model.tokens import target_ids, text_ids
from tests.tiny import REQUEST

LONG = EditRequest(REQUEST.prompt, "the city of Rome", "Paris")
FACTS = [
    Fact("a", "city", REQUEST.prompt, "Paris", "Rome", ("To see the Eiffel Tower, go to", "The Eiffel Tower is in")),
    Fact("b", "city", Prompt("The {} is located in the city of", "Colosseum"), "Rome", "Paris"),
]  # fmt: skip
PIECES = [((5, 60, 300, 17, 260, 9), (8, 7, 6, 50, 40, 30)), ((11, 12, 13, 14, 15, 16), (21, 22, 23, 24, 25, 26))]


def network_of(lm: LanguageModel, kind: type[HyperNetwork], *, shaken: float = 0.0) -> HyperNetwork:
    """An untrained network, or one whose every parameter has moved."""
    torch.manual_seed(0)
    network = kind(edited_matrices(lm), **{**kind.sizes(lm), **SMALL[kind]}).to(lm.dtype)  # type: ignore[call-arg]
    network.prepare([gradients_of(lm, LONG)])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += shaken * torch.randn_like(parameter)
    return network


SMALL: dict[type[HyperNetwork], dict[str, int]] = {MendNetwork: {"rank": 3}, KeNetwork: {"hidden": 4, "bottleneck": 3}}


def gradients_of(lm: LanguageModel, request: EditRequest) -> list[Gradient]:
    forced = forced_rows(lm, [(request.prompt.text, request.target_new)], edited_blocks(lm).start)
    return gradients(lm, forced, list(edited_matrices(lm)))


def plain_gradients(lm: LanguageModel, request: EditRequest) -> dict[str, Tensor]:
    """∇_W by autograd on a copy of the whole model, y = W x."""
    hf = copy.deepcopy(lm.hf)
    modules = {path: hf.get_submodule(path) for path in edited_matrices(lm)}
    for module in modules.values():
        module.weight.requires_grad_()
    front = text_ids(lm.tokenizer, request.prompt.text)
    target = target_ids(lm.tokenizer, request.prompt.text, " " + request.target_new)
    logits = hf(input_ids=torch.tensor([front + target[:-1]]), use_cache=False).logits[0, len(front) - 1 :]
    nn.functional.cross_entropy(logits, torch.tensor(target)).backward()
    return {p: m.weight.grad if isinstance(m, nn.Linear) else m.weight.grad.T for p, m in modules.items()}


def some_lesson(lm: LanguageModel) -> Lesson:
    return Lessons(lm, FACTS, PIECES, 0).lesson(FACTS[0], "the city of Rome", random.Random(0))


def saved(lm: LanguageModel, network: HyperNetwork, folder: Path) -> str:
    path = folder / f"{network.kind}.safetensors"
    training = {"facts": 2, "steps": 1000, "seed": 3}
    save_checkpoint(path, Checkpoint(network, lm.fingerprint, training), edited_matrices(lm))
    return str(path)
