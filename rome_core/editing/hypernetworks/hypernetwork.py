"""What MEND and KE share: the gradient they begin with, in factors, the file of a trained network, and the edit."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rome_core.editing.edit import Edit, make_edit
from rome_core.editing.method import EditContext, MethodConfig
from rome_core.editing.teacher_forcing import Forced, forced_rows, precise
from rome_core.errors import EditError
from rome_core.files import ASSETS, cache_dir, write_whole
from rome_core.model.edits import Delta
from rome_core.model.hooks import Overlay
from rome_core.model.language_model import Kept, LanguageModel
from rome_core.model.tokens import EditRequest, as_target, target_ids, text_ids
from rome_core.settings import setting

FORMAT = "rome-explorer hypernetwork 1"
SHIPPED = ASSETS / "hypernets"
BLOCKS = 3  # the last ones, whose MLP matrices are edited (Mitchell et al. 2022, section 4)
Shapes = Mapping[str, tuple[int, int]]  # module → (out, in) of its matrix


@dataclass(frozen=True, eq=False)
class Gradient:
    """∇_W of the target's NLL for one matrix, Σ_t δ_t x_tᵀ, over the tokens whose δ is not zero.

    x: the module's input. delta: the loss's gradient with respect to its output.
    """

    module: str
    x: Float[Tensor, "tokens in"]
    delta: Float[Tensor, "tokens out"]


def edited_blocks(lm: LanguageModel) -> range:
    return range(max(0, lm.n_layers - BLOCKS), lm.n_layers)


def edited_matrices(lm: LanguageModel) -> dict[str, tuple[int, int]]:
    """The MLP matrices of the last blocks, with their shapes."""
    paths = [path for layer in edited_blocks(lm) for path in lm.layout.mlp_matrices(layer)]
    return {path: (lm.matrix(path).shape[0], lm.matrix(path).shape[1]) for path in paths}


def gradients(lm: LanguageModel, forced: Forced, modules: Sequence[str]) -> list[Gradient]:
    """The factors for every module; the loss is the sum over the rows of their targets' mean NLL.

    Zeros are added to each module's output: their gradient is δ, and no weight needs one.
    """
    inputs: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}

    def probe(module: str, width: int) -> Overlay:
        def add(x: Tensor) -> Tensor:
            inputs[module] = x.detach()
            zeros[module] = x.new_zeros(*x.shape[:-1], width, requires_grad=True)
            return zeros[module]

        return module, add

    with torch.enable_grad():
        log_p, _ = forced.log_p(lm, [probe(module, lm.matrix(module).shape[0]) for module in modules])
        found = torch.autograd.grad(-forced.mean(log_p).sum(), [zeros[module] for module in modules])
    used = [delta.abs().amax(-1) > 0 for delta in found]
    return [
        Gradient(module, inputs[module][at], delta[at]) for module, delta, at in zip(modules, found, used, strict=True)
    ]


class HyperNetwork(nn.Module, ABC):
    """A network that turns the gradient of a fact into an edit. `size` holds the arguments that it was made with."""

    kind: ClassVar[str]
    lr: ClassVar[float]
    size: dict[str, int]

    @staticmethod
    def sizes(lm: LanguageModel) -> dict[str, int]:
        """Arguments beside the shapes that depend on the model."""
        return {}

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters with their learning rates, for Adam."""
        return [{"params": list(self.parameters()), "lr": lr}]

    @abstractmethod
    def updates(self, found: Sequence[Gradient], text: Float[Tensor, "tokens d_text"]) -> tuple[Delta, ...]:
        """The update of every matrix. text: what `describe` says of the edit."""

    @abstractmethod
    def loss(self, nll: Tensor, kl: Tensor) -> Tensor:
        """What training minimises: the target's NLL where it shall hold, and KL where nothing shall change."""

    @abstractmethod
    def score(self, nll: float, kl: float) -> float:
        """What early stopping watches on held-back facts; small is good."""

    def prepare(self, found: Sequence[Sequence[Gradient]]) -> None:
        """See the gradients of some training facts before the training."""

    def stepped(self, kl: float) -> None:
        """Called after every training step."""


def describe(lm: LanguageModel, request: EditRequest) -> Float[Tensor, "tokens d_text"]:
    """Prompt and target as a network reads them: token embeddings of unit scale, and a column that marks the target."""
    front = text_ids(lm.tokenizer, request.prompt.text)
    target = target_ids(lm.tokenizer, request.prompt.text, as_target(request.target_new, request.prompt.text))
    table = lm.module(lm.layout.embed).weight.detach()
    rows = precise(table[torch.tensor([*front, *target], device=table.device)])
    marks = torch.tensor([0.0] * len(front) + [1.0] * len(target)).to(rows)
    scale = rows.norm(dim=1, keepdim=True).clamp(min=1e-12) / rows.shape[1] ** 0.5
    return torch.cat([rows / scale, marks[:, None]], 1)


# --------------------------------------------------------------------------------------------------------- the file


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network and what is known of it: the model it is for, how it was trained, how it did on held-back facts."""

    network: HyperNetwork
    base: str
    training: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint, shapes: Shapes) -> None:
    """Write one safetensors file with the settings of the training in its header."""
    about = {
        "format": FORMAT,
        "kind": checkpoint.network.kind,
        "base": checkpoint.base,
        "size": checkpoint.network.size,
        "shapes": shapes,
        "training": checkpoint.training,
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.network.state_dict().items()}
    write_whole(path, lambda part: save_file(tensors, part, {"about": json.dumps(about)}))


def load_checkpoint(path: str | Path, lm: LanguageModel, kind: type[HyperNetwork]) -> Checkpoint:
    """Read a network for this model. Raises EditError with what is wrong with the file."""
    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        if about["format"] != FORMAT or about["kind"] != kind.kind:
            raise EditError(
                f"'{name}' holds no {kind.kind.upper()} network of this version.", "", train_one(lm, kind.kind)
            )
        if about["base"] != lm.fingerprint:
            raise EditError(f"'{name}' was trained for another model than '{lm.name}'.", "", train_one(lm, kind.kind))
        shapes = {path: tuple(shape) for path, shape in about["shapes"].items()}
        if shapes != edited_matrices(lm):  # before anything of their size is made
            raise ValueError("shapes of other matrices")
        network = kind(shapes, **about["size"])
        network.load_state_dict(tensors)
        training = {**about["training"], **{key: int(about["training"][key]) for key in ("facts", "steps", "seed")}}
    except (OSError, SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise EditError(f"'{name}' is not a hypernetwork's file.", "", train_one(lm, kind.kind)) from error
    return Checkpoint(network.to(lm.device).eval().requires_grad_(False), about["base"], training)


def checkpoint_path(lm: LanguageModel, kind: str) -> Path:
    """Where the training puts a model's network."""
    return cache_dir() / "hypernets" / f"{lm.fingerprint}-{kind}.safetensors"


def find_checkpoint(lm: LanguageModel, kind: str) -> Path:
    """The network that this user trained, else the one that ships. Raises EditError where there is neither."""
    own = checkpoint_path(lm, kind)
    for path in (own, SHIPPED / own.name):
        if path.exists():
            return path
    raise EditError(f"There is no {kind.upper()} network for '{lm.name}' yet.", "", train_one(lm, kind))


def train_one(lm: LanguageModel, kind: str) -> str:
    return f"Train one: rome-train {kind} --model '{lm.name}'."


# ------------------------------------------------------------------------------------------------------- the method


NETWORKS = Kept[Checkpoint]("hypernetworks", limit=4)


@dataclass(frozen=True)
class HyperConfig(MethodConfig):
    """Settings of an edit by a trained network. checkpoint: its file; None takes this model's own."""

    trained: ClassVar[bool] = True
    network: ClassVar[type[HyperNetwork]]
    scale: float = setting(
        1.0,
        "Scale",
        "Multiplies the network's update; 1 is the edit as the network was trained to make it.",
        source="1 in the papers",
        bounds=(0.0, 20.0, 0.1),
    )
    checkpoint: str | None = None

    def solve(self, on: EditContext, requests: Sequence[EditRequest]) -> Edit:
        """One pass for the gradient, one through the network."""
        lm, edits = on.lm, on.edits
        self.check(lm, requests)
        path = Path(self.checkpoint) if self.checkpoint else find_checkpoint(lm, self.name)
        key = (self.name, path, path.stat().st_mtime_ns if path.exists() else 0)
        trained = lm.remember(NETWORKS, key, lambda: load_checkpoint(path, lm, self.network))
        pairs = [(request.prompt.text, request.target_new) for request in requests]
        (deltas,) = [
            make_updates(lm, trained.network, forced_rows(lm, pairs, edited_blocks(lm).start, edits), requests[0])
            for _ in on.track([0], "Editing", 1)
        ]
        training = trained.training
        made_of = f"{training['facts']} facts, {training['steps']:,} steps, seed {training['seed']}"
        edit = make_edit(lm, requests, self, deltas, edits, corpus=f"network trained on {made_of}")
        return edit.scaled(self.scale)


def make_updates(lm: LanguageModel, network: HyperNetwork, forced: Forced, request: EditRequest) -> tuple[Delta, ...]:
    """The network's updates for these rows; differentiable with respect to the network."""
    found = gradients(lm, forced, list(edited_matrices(lm)))
    return network.updates(found, describe(lm, request))
