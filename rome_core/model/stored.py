"""The files that a model's weights are stored in: which of them count, and whether they hold plain numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rome_core.errors import ModelError
from rome_core.model.layout import is_recomputed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN = ("F64", "F32", "F16", "BF16")  # as the headers of safetensors call them


def weight_files(find: Callable[[str], str | Path | None]) -> list[Path]:
    """The safetensors that a model is loaded from, by transformers' own order: one file, else those of the index.

    find: where a file of the model is, by its name; None if there is none. Raises ModelError where the index names a
    file that is not there.
    """
    if single := find(SINGLE):
        return [Path(single)]
    if (index := find(INDEX)) is None:
        return []
    found = []
    for name in sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())):
        if (part := find(name)) is None:
            raise ModelError(f"'{name}' is missing.", f"{INDEX} names it.", "Copy or save the model again.")
        found.append(Path(part))
    return found


def check_plain(files: Iterable[Path], name: str) -> None:
    """Raise ModelError unless all weights are of 16 bits or more: those of quantised models stand for others."""
    for file in files:
        for key, kind in _types(file).items():
            if kind not in PLAIN and not is_recomputed(key):
                raise ModelError(
                    f"'{name}' has quantised weights.",
                    f"'{key}' is of type {kind}; keys, values and updates need the plain numbers.",
                    "Choose the unquantised version of the model.",
                )


def _types(file: Path) -> dict[str, str]:
    """The type of each tensor in a file, read off its header."""
    try:
        with safe_open(file, "pt") as tensors:
            return {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"'{file.name}' cannot be read.", str(error)[:200], "Copy or save the model again.") from None
