"""What was done to a model: an edited checkpoint or a LoRA adapter against its base, taken apart and taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rome_core.diagnosis.inspection import promoted_tokens
from rome_core.editing.edit import Edit, make_edit
from rome_core.editing.method import Foreign
from rome_core.errors import EditError, ModelError
from rome_core.facts.datasets import load_facts
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel
from rome_core.model.subjects import subject_keys
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.progress import Track, silent

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
SHOWN_RANK = 64  # a change of higher rank is no edit of facts; its first factors are kept
BATCH = 64


@dataclass(frozen=True, eq=False)
class Change:
    """One changed weight. Factors are those of the singular value decomposition, largest first, signs as in `factors`.

    rank: how many singular values stand above what rounding to the file's precision leaves. relative: ‖Δ‖_F/‖W‖_F.
    layer: of a down projection, else None. energy: share of ‖Δ‖_F² in each factor.
    """

    weight: str
    module: str
    layer: int | None
    rank: int
    relative: float
    delta: Delta | None
    energy: tuple[float, ...]


def changes_of(lm: LanguageModel, folder: str | Path, track: Track = silent) -> tuple[Change, ...]:
    """Every weight in which a checkpoint folder or a LoRA adapter differs from this model. Raises ModelError."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ModelError(
            f"'{folder}' is not a folder.", "", "Give the folder of an edited checkpoint or of a LoRA adapter."
        )
    if (path / ADAPTER[0]).exists():
        return tuple(_adapter(lm, path))
    return tuple(_checkpoint(lm, path, track))


# --------------------------------------------------------------------------------------------------------- checkpoint


def _checkpoint(lm: LanguageModel, path: Path, track: Track) -> Iterator[Change]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"'{path.name}' holds no safetensors.",
            f"It has {', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'no files'}.",
            "Give a folder with *.safetensors, or with adapter_config.json.",
        )
    own = lm.hf.state_dict()
    seen = 0
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                names = list(tensors.keys())
                for name in track(names, f"Comparing {file.name}", len(names)):
                    if name in own:
                        seen += 1
                        yield from _compare(lm, name, own[name].cpu(), tensors.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"'{file.name}' cannot be read.", str(error)[:200], "Save the model again.") from None
    if not seen:
        raise ModelError(
            f"'{path.name}' has no weight with a name that '{lm.name}' has.",
            "It is a checkpoint of another kind of model.",
            "Load its base model first.",
        )


def _compare(lm: LanguageModel, name: str, ours: Tensor, theirs: Tensor) -> Iterator[Change]:
    if ours.shape != theirs.shape:
        raise ModelError(
            f"'{name}' has shape {tuple(theirs.shape)}; '{lm.name}' has {tuple(ours.shape)} there.",
            "It is a checkpoint of another model.",
            "Load its base model first.",
        )
    if not bool(theirs.isfinite().all()):
        raise ModelError(
            f"'{name}' holds numbers that are not finite.",
            "The checkpoint is broken.",
            "Save it again from its source.",
        )
    # A file of lower precision is the base in that precision where nothing was edited.
    precision = theirs.dtype if torch.finfo(theirs.dtype).eps > torch.finfo(ours.dtype).eps else ours.dtype
    difference = theirs.double() - ours.to(precision).double()
    if not bool(difference.any()):
        return
    module = name.removesuffix(".weight")
    both = (ours.double() ** 2 + theirs.double() ** 2).sqrt()  # the entries of either are rounded
    yield change_of(lm, name, module, difference, ours.double(), noise_floor(both, torch.finfo(precision).eps))


def change_of(lm: LanguageModel, weight: str, module: str, difference: Tensor, W: Tensor, floor: float) -> Change:
    """Rank and factors of a difference; vectors and embeddings have none."""
    relative = float(difference.norm() / W.norm().clamp(min=1e-300))
    owner = lm.module(module) if weight.endswith(".weight") else None
    if difference.dim() != 2 or owner is None or isinstance(owner, nn.Embedding):
        return Change(weight, module, None, 0, relative, None, ())
    D = difference if isinstance(owner, nn.Linear) else difference.T  # GPT-2 keeps W transposed
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    rank = int((floor < S).sum())
    kept = max(1, min(rank, SHOWN_RANK))
    energy = (S**2 / (S**2).sum())[:kept]
    delta = Delta(module, U[:, :kept] * S[:kept], Vh[:kept])
    paths = {lm.down_projection(layer): layer for layer in range(lm.n_layers)}
    return Change(weight, module, paths.get(module), rank, relative, delta, tuple(energy.tolist()))


def noise_floor(W: Tensor, eps: float) -> float:
    """The largest singular value that rounding W's entries may leave: errors of at most eps/2 of each entry, as if
    independent (the edge of the Marchenko–Pastur distribution), with a factor of two for safety."""
    rms = float(W.norm()) / W.numel() ** 0.5
    return eps * rms * sum(side**0.5 for side in W.shape)


# ------------------------------------------------------------------------------------------------------------ adapter


def _adapter(lm: LanguageModel, path: Path) -> Iterator[Change]:
    config, tensors = _adapter_files(path)
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise ModelError(f"'{path.name}' is an adapter of type {kind}.", "", "LoRA adapters can be read.")
    modules = {module for module, _ in lm.hf.named_modules()}
    for key in sorted(name for name in tensors if ".lora_A" in name):
        module = key.split(".lora_A")[0].removeprefix("base_model.model.")
        other = key.replace(".lora_A", ".lora_B")
        if module not in modules or other not in tensors:
            raise ModelError(
                f"The adapter changes '{module}', which '{lm.name}' does not have.",
                "It belongs to another model.",
                "Load its base model first.",
            )
        A, B = tensors[key].double(), tensors[other].double()
        owner = lm.module(module)
        plain = isinstance(owner, nn.Linear)  # GPT-2 keeps W transposed
        W = owner.weight.detach().double().cpu()
        if tuple(W.shape if plain else W.T.shape) != (B.shape[0], A.shape[1]):
            raise ModelError(
                f"The adapter's factors for '{module}' do not fit '{lm.name}'.", "", "Load its base model first."
            )
        D = B @ A * _scaling(config, module, len(A))
        D = D if plain else D.T
        eps = torch.finfo(tensors[key].dtype).eps
        yield change_of(lm, f"{module}.weight", module, D, W, noise_floor(D, eps * len(A) ** 0.5))


def _adapter_files(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((path / ADAPTER[0]).read_text(encoding="utf-8"))
        with safe_open(path / ADAPTER[1], "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The adapter in '{path.name}' cannot be read.",
            str(error)[:200],
            f"It needs {ADAPTER[0]} and {ADAPTER[1]}.",
        ) from None
    if not isinstance(config, dict) or not any(".lora_A" in name for name in tensors):
        raise ModelError(f"The adapter in '{path.name}' has no LoRA factors.", "", "Save it again with peft.")
    return config, tensors


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha/r, or alpha/√r with rank-stabilised LoRA; patterns name modules by the end of their path."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for name, value in patterns.items() if module.endswith(name)), config.get("lora_alpha", rank))
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


# ------------------------------------------------------------------------------------------------- reading the factors


@dataclass(frozen=True)
class Suspect:
    """A prompt whose key a factor answers, and how strongly: |v·k|/(‖v‖‖k‖), with the sign of v·k."""

    prompt: str
    subject: str
    response: float


def suspects(
    lm: LanguageModel, change: Change, prompts: Sequence[Prompt] | None = None, k: int = 5, track: Track = silent
) -> tuple[Suspect, ...]:
    """The prompts (None: of all the project's facts) whose subjects the strongest factor answers most."""
    if change.layer is None or change.delta is None:
        raise EditError(f"'{change.weight}' is no down projection: it has no keys.", "", "Choose another change.")
    asked = list(prompts if prompts is not None else (fact.prompt for fact in load_facts()))
    v, found = change.delta.V[0], list[float]()
    starts = range(0, len(asked), BATCH)
    for at in track(starts, "Asking known subjects", len(starts)):
        keys = subject_keys(lm, asked[at : at + BATCH], change.layer).double().cpu()
        found += (keys @ v / keys.norm(dim=1).clamp(min=1e-300) / v.norm()).tolist()
    order = sorted(range(len(asked)), key=lambda i: -abs(found[i]))[:k]
    return tuple(Suspect(asked[i].text, asked[i].subject, found[i]) for i in order)


def promoted(lm: LanguageModel, change: Change, sign: float, factor: int = 0, k: int = 10) -> list[tuple[str, float]]:
    """Tokens whose logits a factor's value raises most. U V says nothing of the sign of each: it is that of v·k for
    the key that was edited (`suspects`)."""
    assert change.delta is not None
    return promoted_tokens(lm, (change.delta.U[:, factor] * (1 if sign >= 0 else -1)).float(), k)


# ------------------------------------------------------------------------------------------------------------ undoing


def as_edit(lm: LanguageModel, changes: Sequence[Change], request: EditRequest) -> Edit:
    """The changes as an overlay: the base with it is the edited model, and switched off it is the base again.

    request: what the change is taken to be about; nothing depends on it but the edit's name.

    Raises EditError where a changed weight is no matrix of a linear module or the change is of high rank.
    """
    deltas = []
    for change in changes:
        if change.delta is None or change.rank > change.delta.U.shape[1]:
            why = "its rank is too high" if change.delta is not None else "it is no matrix of a linear module"
            raise EditError(
                f"The change of '{change.weight}' cannot be made an overlay: {why}.", "", "Load the base model instead."
            )
        deltas.append(Delta(change.module, change.delta.U.to(lm.dtype), change.delta.V.to(lm.dtype)))
    if not deltas:
        raise EditError("Nothing was changed: there is nothing to take back.", "", "Choose another folder.")
    return make_edit(lm, [request], Foreign(), tuple(deltas), [])
