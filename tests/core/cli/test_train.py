"""The training command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rome_core import ModelError
from rome_core.cli import terminal, train
from rome_core.editing.hypernetworks.hypernetwork import checkpoint_path
from rome_core.editing.hypernetworks.training import Look, Schedule, state_path
from tests.tiny import tiny_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def stand_in(lm: Any, kind: str, path: Path, schedule: Schedule, **options: Any) -> Any:
        seen.append((kind, path, schedule, options["minutes"]))
        options["log"](Look(200, 1.5, 0.01, 0.16))
        return SimpleNamespace(training={"steps": 200})

    monkeypatch.setattr(train, "loader", lambda args: tiny_model)
    monkeypatch.setattr(train, "train", stand_in)
    return seen


def test_it_trains_with_the_schedules_defaults_and_says_how_it_goes(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["mend"]) == 0

    assert asked == [("mend", checkpoint_path(tiny_model(), "mend"), Schedule(), float("inf"))]
    out = capsys.readouterr().out
    assert "step   200: NLL 1.500, KL 0.0100 nats" in out and "after 200 steps, is in" in out


def test_every_option_reaches_the_schedule(asked: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "own.safetensors"
    options = ["--steps", "9", "--lr", "0.1", "--seed", "3", "--every", "4", "--patience", "2", "--minutes", "5"]
    train.main(["ke", *options, "--out", str(path)])

    assert asked == [("ke", path, Schedule(steps=9, lr=0.1, seed=3, every=4, patience=2), 5.0)]
    assert not path.parent.exists(), "the folder comes with the first file"


def test_what_goes_wrong_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str, **options: Any) -> None:
        raise ModelError(f"The model '{name}' could not be loaded.")

    monkeypatch.setattr(terminal, "load_model", missing)

    assert train.command(["mend", "--model", "nowhere"]) == 1
    assert capsys.readouterr().err == "Error: The model 'nowhere' could not be loaded.\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--every", "0"], "every must be a whole number from 1 to 1,000,000, not 0"),
        (["--steps", "1e3"], "steps must be a whole number from 1 to 10,000,000, not '1e3'"),
        (["--lr", "nan"], "lr must be a number from 1e-09 to 10 or None, not nan"),
        (["--patience", "0"], "patience must be a whole number"),
        (["--minutes", "-1"], "a number of 0 or more is needed, not '-1'"),
        (["--out", "."], "is a folder; give a file"),
        (["--out", "own.training"], "'own.training' is the name of the training's own state"),
    ],
)
def test_a_wrong_value_is_one_sentence(
    asked: list[Any], options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        train.command(["mend", *options])

    assert leaving.value.code == 2 and sentence in capsys.readouterr().err and not asked


def test_a_stop_says_what_is_kept(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)
    out = tmp_path / "own.safetensors"

    assert train.command(["mend", "--out", str(out)]) == 130
    assert "It had not looked at the held-back facts yet, so nothing is kept." in capsys.readouterr().err
    state_path(out).touch()
    assert train.command(["mend", "--out", str(out)]) == 130
    assert "What the last look found is kept: the same command goes on from there." in capsys.readouterr().err
