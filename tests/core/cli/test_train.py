"""The training command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rome_core import ModelError
from rome_core.cli import train
from rome_core.editing.hypernetworks.hypernetwork import checkpoint_path
from rome_core.editing.hypernetworks.training import Look, Schedule
from tests.tiny import tiny_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def stand_in(lm: Any, kind: str, path: Path, schedule: Schedule, **options: Any) -> Any:
        seen.append((kind, path, schedule, options["minutes"]))
        options["log"](Look(200, 1.5, 0.01, 0.16))
        return SimpleNamespace(training={"steps": 200})

    monkeypatch.setattr(train, "load_model", lambda name: tiny_model())
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
    assert path.parent.is_dir()


def test_what_goes_wrong_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> None:
        raise ModelError(f"The model '{name}' could not be loaded.")

    monkeypatch.setattr(train, "load_model", missing)

    assert train.main(["mend", "--model", "nowhere"]) == 1
    assert capsys.readouterr().err == "The model 'nowhere' could not be loaded.\n"


def test_a_stop_says_that_it_can_go_on(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)

    assert train.main(["mend"]) == 130
    assert "The same command goes on" in capsys.readouterr().err
