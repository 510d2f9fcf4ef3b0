"""Files of weights: those that transformers reads, and what their headers say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rome_core.errors import ModelError
from rome_core.model.stored import INDEX, SINGLE, check_plain, weight_files


def finder(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).exists() else None


def test_one_file_goes_before_an_index_and_others_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").touch()
    assert weight_files(finder(tmp_path)) == []

    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "two", "b": "one", "c": "two"}}))
    with pytest.raises(ModelError, match=rf"'one' is missing\. {INDEX} names it"):
        weight_files(finder(tmp_path))
    (tmp_path / "one").touch(), (tmp_path / "two").touch()
    assert weight_files(finder(tmp_path)) == [tmp_path / "one", tmp_path / "two"]

    (tmp_path / SINGLE).touch()
    assert weight_files(finder(tmp_path)) == [tmp_path / SINGLE]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("a.weight", torch.ones(2, dtype=torch.bfloat16), None),
        ("a.weight", torch.ones(2, dtype=torch.float64), None),
        ("h.0.attn.bias", torch.ones(2, dtype=torch.bool), None),
        ("a.weight", torch.ones(2).to(torch.float8_e5m2), "F8_E5M2"),
        ("a.qweight", torch.ones(2, dtype=torch.int32), "I32"),
        ("a.weight", torch.ones(2, dtype=torch.uint8), "U8"),
    ],
)
def test_quantised_weights_are_told_by_their_type(tmp_path: Path, name: str, value: Tensor, kind: str | None) -> None:
    save_file({name: value}, tmp_path / "file")

    if kind is None:
        check_plain([tmp_path / "file"], "mine")
    else:
        with pytest.raises(ModelError, match=rf"'mine' has quantised weights\. '{name}' is of type {kind};"):
            check_plain([tmp_path / "file"], "mine")
