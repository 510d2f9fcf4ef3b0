"""What was done to a model: an edited checkpoint or a LoRA adapter against its base, taken apart and taken back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rome_core.diagnosis import adapters
from rome_core.diagnosis.differences import Difference, difference_of
from rome_core.diagnosis.inspection import promoted_tokens
from rome_core.editing.edit import Edit, make_edit
from rome_core.editing.method import Foreign
from rome_core.errors import EditError, ModelError
from rome_core.facts.datasets import load_facts
from rome_core.files import expanded
from rome_core.model.edits import Delta
from rome_core.model.language_model import LanguageModel
from rome_core.model.layout import is_recomputed, is_transposed
from rome_core.model.stored import check_plain, weight_files
from rome_core.model.subjects import subject_keys
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.progress import Track, silent

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


class Changes(tuple[Change, ...]):
    """Every changed weight, in the files' order.

    compared: how many weights were compared. not_compared: what was not, and why; all else is as in the base.
    base: what an adapter names as its base, which may be another model than the one that it was compared with.
    """

    compared: int
    not_compared: Mapping[str, str]
    base: str

    def __new__(
        cls, changes: Iterable[Change], compared: int, not_compared: Mapping[str, str], base: str = ""
    ) -> Changes:
        made = super().__new__(cls, changes)
        made.compared, made.not_compared, made.base = compared, not_compared, base
        return made


def changes_of(lm: LanguageModel, folder: str | Path, track: Track = silent) -> Changes:
    """Every weight in which a checkpoint folder or a LoRA adapter differs from this model.

    Names may have a prefix more or less than the model's own (`module.`, `model.`). Tensors that only one side has are
    in `.not_compared`; of an adapter everything is understood, or it is refused. Raises ModelError.
    """
    path = expanded(folder)
    if not path.is_dir():
        raise ModelError(
            f"'{folder}' is not a folder.", "", "Give the folder of an edited checkpoint or of a LoRA adapter."
        )
    if (path / adapters.CONFIG).exists():
        found, base = adapters.read_adapter(lm, path)
        return Changes((change_of(lm, difference) for difference in found), len(lm.hf.state_dict()), {}, base)
    return _checkpoint(lm, path, track)


# --------------------------------------------------------------------------------------------------------- checkpoint


def _checkpoint(lm: LanguageModel, path: Path, track: Track) -> Changes:
    own = lm.hf.state_dict()
    changes, seen, left = list[Change](), set[str](), dict[str, str]()
    for file in _files(path, left):
        try:
            with safe_open(file, "pt") as tensors:
                names = [name for name in tensors.keys() if not is_recomputed(name)]  # noqa: SIM118  (not a dict)
                for name in track(names, f"Comparing {file.name}", len(names)):
                    weight = _own_name(lm, name, own)
                    if weight is None:
                        left[name] = f"{lm.name} has no such weight"
                    elif weight in seen:
                        left[name] = f"{weight} is there under another name, too"
                    else:
                        seen.add(weight)
                        theirs = tensors.get_tensor(name)
                        if (found := difference_of(weight, own[weight].cpu(), theirs, lm.name)) is not None:
                            changes.append(change_of(lm, found))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"'{file.name}' cannot be read.", str(error)[:200], "Save the model again.") from None
    if not seen:
        raise ModelError(
            f"'{path.name}' has no weight with a name that '{lm.name}' has.",
            "It is a checkpoint of another kind of model.",
            "Load its base model first.",
        )
    places = {own[weight].data_ptr() for weight in seen}  # a head that is the embedding is stored once
    missing = [name for name in own if own[name].data_ptr() not in places and not is_recomputed(name)]
    return Changes(changes, len(seen), {**left, **dict.fromkeys(missing, f"{path.name} does not hold it")})


def _files(path: Path, left: dict[str, str]) -> list[Path]:
    """The files of a checkpoint, of plain numbers. left: takes those that no model is loaded from."""
    everything = sorted(path.glob("*.safetensors"))
    if not everything:
        raise ModelError(
            f"'{path.name}' holds no safetensors.",
            f"It has {', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'no files'}.",
            "Give a folder with *.safetensors, or with adapter_config.json.",
        )
    try:
        files = weight_files(lambda name: path / name if (path / name).exists() else None) or everything
        config = path / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        if settings.get("quantization_config"):
            raise ModelError(
                f"'{path.name}' has quantised weights.",
                "They stand for others, which cannot be compared.",
                "Give the unquantised checkpoint.",
            )
        check_plain(files, path.name)
    except (OSError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{path.name}' cannot be read.", str(error)[:200], "Save the model again.") from None
    left |= {file.name: "no model is loaded from this file" for file in everything if file not in files}
    return files


_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")  # what training leaves in front of a name


def _own_name(lm: LanguageModel, name: str, own: Mapping[str, Tensor]) -> str | None:
    """The model's own name of a stored tensor, which may have a prefix more or less; None if it has none."""
    bare = name
    while wrapper := next((wrapper for wrapper in _WRAPPERS if bare.startswith(wrapper)), None):
        bare = bare.removeprefix(wrapper)
    shorter = bare.removeprefix("model.")
    base = lm.hf.base_model_prefix
    return next((found for found in (name, bare, f"{base}.{bare}", shorter, f"{base}.{shorter}") if found in own), None)


def change_of(lm: LanguageModel, difference: Difference) -> Change:
    """Rank and factors of a difference; vectors and embeddings have none."""
    weight, delta = difference.weight, difference.delta
    module = weight.removesuffix(".weight")
    owner = lm.module(module) if weight.endswith(".weight") else None
    relative = float(delta.norm() / lm.hf.state_dict()[weight].double().norm().clamp(min=1e-300))
    if delta.dim() != 2 or owner is None or isinstance(owner, nn.Embedding):
        return Change(weight, module, None, 0, relative, None, ())
    U, S, Vh = torch.linalg.svd(delta.T if is_transposed(owner) else delta, full_matrices=False)
    rank = int((difference.floor < S).sum())
    kept = max(1, min(rank, SHOWN_RANK))
    energy = (S**2 / (S**2).sum())[:kept]
    paths = {lm.down_projection(layer): layer for layer in range(lm.n_layers)}
    factors = Delta(module, U[:, :kept] * S[:kept], Vh[:kept])
    return Change(weight, module, paths.get(module), rank, relative, factors, tuple(energy.tolist()))


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
        keys = subject_keys(lm, asked[at : at + BATCH], change.layer).cpu().double()
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

    Raises EditError where a changed weight is no matrix of a block or the change is of high rank.
    """
    deltas = []
    for change in changes:
        why = _no_overlay(lm, change)
        if change.delta is None or why:
            raise EditError(
                f"The change of '{change.weight}' cannot be made an overlay: {why}.", "", "Load the base model instead."
            )
        deltas.append(Delta(change.module, change.delta.U.to(lm.dtype), change.delta.V.to(lm.dtype)))
    if not deltas:
        raise EditError("Nothing was changed: there is nothing to take back.", "", "Choose another folder.")
    return make_edit(lm, [request], Foreign(), tuple(deltas), [])


def _no_overlay(lm: LanguageModel, change: Change) -> str:
    """Why a change cannot act as an overlay; empty if it can."""
    if change.delta is None:
        return "it is no matrix of a linear module"
    if not change.module.startswith(f"{lm.layout.blocks}."):
        return "it is outside the blocks, as the head is"  # which is applied to states when the overlays are gone
    return "its rank is too high" if change.rank > change.delta.U.shape[1] else ""
