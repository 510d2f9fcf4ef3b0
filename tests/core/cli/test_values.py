"""Values of options: what may be typed, what is refused, and in which words."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rome_core.cli import values
from rome_core.editing.methods import METHODS
from rome_core.evaluation.fact_measures import MeasureSettings


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.records, "3", 3),
        (values.records, "-1", None),
        (values.records, "all", None),
        (values.layers, "3, 5,3", (3, 5)),
        (values.layers, "", ()),
        (values.method_names, "all", tuple(METHODS)),
        (values.method_names, "r-rome, memit,r-rome", ("r-rome", "memit")),
        (values.whole(0), "0", 0),
        (values.amount, "inf", float("inf")),
        (values.gpus, "0.25", 0.25),
        (values.gpus, "2", 2.0),
        (values.device, "cpu", "cpu"),
        (values.device, "auto", "auto"),
        (values.encoding, "windows-1252", "windows-1252"),
        (values.cluster, " auto", "auto"),
        (values.of_field(MeasureSettings, "neighbours"), "7", 7),
    ],
)
def test_what_is_meant_is_read(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        (values.records, "0", "1 or more is needed, or -1 for all, not '0'"),
        (values.records, "-2", "not '-2'"),
        (values.records, "ten", "not 'ten'"),
        (values.layers, "a", "numbers of layers are needed, e.g. 3,5,7; not 'a'"),
        (values.layers, "3,-1", "not '3,-1'"),
        (values.method_names, "mempit", "there is no method 'mempit'; choose of rome"),
        (values.method_names, " , ", "at least one method is needed"),
        (values.whole(1), "0", "a whole number of 1 or more is needed, not '0'"),
        (values.whole(1, 21), "22", "a whole number from 1 to 21 is needed"),
        (values.amount, "nan", "0 or more is needed, not 'nan'"),
        (values.amount, "-1", "0 or more"),
        (values.gpus, "1.5", "a share of one GPU or whole ones"),
        (values.gpus, "inf", "a share of one GPU or whole ones"),
        (values.encoding, "klingon", "there is no encoding 'klingon'"),
        (values.cluster, " ", "an address is needed"),
        (
            values.of_field(MeasureSettings, "neighbours"),
            "101",
            "neighbours must be a whole number from 0 to 100, not 101",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(read: Callable[[str], Any], text: str, sentence: str) -> None:
    with pytest.raises(ArgumentTypeError, match=sentence):
        read(text)


def test_a_device_that_is_not_there_is_answered_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for text in ("gpu", "cuda", "cuda:0", ""):
        with pytest.raises(ArgumentTypeError, match=rf"no device '{text}'; it has cpu \(or auto\)"):
            values.device(text)

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [values.device(text) for text in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(ArgumentTypeError, match="no device 'cuda:2'; it has cpu, cuda, cuda:0, cuda:1"):
        values.device("cuda:2")


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "facts.json").touch()

    assert values.folder_to_write("~/runs/a") == tmp_path / "runs" / "a"
    assert values.file_to_write("~/net.safetensors") == tmp_path / "net.safetensors"
    assert values.file("~/facts.json") == tmp_path / "facts.json"
    assert values.folder("~") == tmp_path
    assert list(tmp_path.iterdir()) == [tmp_path / "facts.json"], "checking makes nothing"


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        (values.folder_to_write, "file", "is a file; give a folder"),
        (values.folder_to_write, "file/a/b", "file' is a file, so nothing can be in it"),
        (values.folder_to_write, "locked/a", "locked' cannot be written to"),
        (values.file_to_write, ".", "is a folder; give a file"),
        (values.file, ".", "is a folder, not a file"),
        (values.file, "nowhere", "there is no file 'nowhere'"),
        (values.folder, "file", "is a file, not a folder"),
        (values.folder, "nowhere", "there is no folder 'nowhere'"),
        (values.folder, "", "a path is needed"),
        (values.folder_to_write, "a\0b", "is no path that can be used"),
        (values.folder_to_write, "~nobody-of-this-name/a", "is no path that can be used"),
        (values.folder_to_write, "a" * 5000, "is no path that can be used: File name too long"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_sentence(
    read: Callable[[str], Path], text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")  # root may write anywhere

    with pytest.raises(ArgumentTypeError, match=sentence):
        read(text)
