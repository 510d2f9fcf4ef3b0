"""Training of hypernetworks: it learns, it can be stopped at any time, and it never reads the test part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rome_core import EditError, LanguageModel
from rome_core.editing.hypernetworks import training
from rome_core.editing.hypernetworks.hypernetwork import SHIPPED
from rome_core.editing.hypernetworks.training import KINDS, Look, Schedule, state_path, train
from rome_core.facts.datasets import facts_of
from rome_core.progress import Stopped
from tests.tiny import halt_at, tiny_model
from tests.tiny_networks import PIECES

QUICK = Schedule(steps=4, every=2, lr=1e-2)


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LanguageModel]:
    """A tiny model, ten facts of each part, and text that need not be written."""
    asked = []

    def some(part: Any) -> list[Any]:
        asked.append(part)
        return facts_of(part)[:10]

    monkeypatch.setattr(training, "facts_of", some)
    monkeypatch.setattr(training, "pieces_of_text", lambda *_: (PIECES, PIECES[::-1]))
    monkeypatch.setattr(training, "HELD_BACK", 2)
    monkeypatch.setattr(training, "STATISTICS", 2)
    lm = tiny_model(layers=2)
    yield lm
    assert set(asked) <= {"train", "validation"}  # the test part is never read


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_ends_as_if_it_had_not_been_stopped(kind: str, lm: LanguageModel, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(lm, kind, whole, QUICK)

    with pytest.raises(Stopped):
        train(lm, kind, parts, QUICK, track=halt_at("Training", 3))
    train(lm, kind, parts, QUICK)

    one, two = load_file(whole), load_file(parts)
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())
    one, two = load_file(state_path(whole)), load_file(state_path(parts))
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str, lm: LanguageModel, tmp_path: Path) -> None:
    seen: list[Look] = []

    done = train(lm, kind, tmp_path / "n.safetensors", Schedule(steps=24, every=12, lr=2e-2), log=seen.append)

    assert [look.step for look in seen] == [0, 12, 24]
    best = min(seen, key=lambda look: look.score)
    assert seen[-1].nll < seen[0].nll - 0.1
    assert done.training["steps"] == best.step and done.training["facts"] == 10
    assert [Look(**look) for look in done.training["curve"]] == seen[: seen.index(best) + 1]
    assert done.training["lr"] == 2e-2 and done.training["seed"] == 0


def test_it_stops_early_and_stays_stopped(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([3.0, 1.0, 2.0, 2.5, 0.0])
    monkeypatch.setattr(training, "validate", lambda lm, network, lessons, step: Look(step, 1, 1, next(scores)))
    seen: list[Look] = []
    schedule = replace(QUICK, steps=100, patience=2)

    done = train(lm, "mend", tmp_path / "n.safetensors", schedule, log=seen.append)
    again = train(lm, "mend", tmp_path / "n.safetensors", schedule, log=seen.append)

    assert [look.step for look in seen] == [0, 2, 4, 6]
    assert done.training["steps"] == again.training["steps"] == 2


def test_it_ends_after_the_given_time(lm: LanguageModel, tmp_path: Path) -> None:
    seen: list[Look] = []
    train(lm, "ke", tmp_path / "n.safetensors", QUICK, minutes=0, log=seen.append)
    train(lm, "ke", tmp_path / "n.safetensors", QUICK, log=seen.append)

    assert [look.step for look in seen] == [0, 2, 4]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"steps": 0}, {"lr": float("nan")}, {"seed": 1.5}])
def test_a_schedule_that_cannot_be_is_one_sentence(lm: LanguageModel, tmp_path: Path, wrong: dict[str, Any]) -> None:
    schedule = Schedule()
    for name, value in wrong.items():
        object.__setattr__(schedule, name, value)  # past the check of types, which only tests have
    with pytest.raises(EditError, match=f"A training cannot have this setting: {next(iter(wrong))} must be a"):
        train(lm, "mend", tmp_path / "n.safetensors", schedule)
    assert not list(tmp_path.glob("n.*"))


def test_other_settings_or_a_damaged_file_do_not_go_on(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    train(lm, "mend", path, replace(QUICK, steps=2))

    with pytest.raises(EditError, match=r"'n.training' was begun with other settings"):
        train(lm, "mend", path, replace(QUICK, seed=1))
    state_path(path).write_bytes(b"k* = 3")
    with pytest.raises(EditError, match=r"'n.training' cannot be read. Delete it"):
        train(lm, "mend", path, QUICK)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem[-4:])
def test_a_shipped_network_is_small_and_says_how_it_was_trained(path: Path) -> None:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])

    assert path.stat().st_size <= 20_000_000
    assert path.stem == f"{about['base']}-{about['kind']}"
    assert about["training"]["facts"] == len(facts_of("train"))
    first, *_, best = about["training"]["curve"]
    assert best["score"] < first["score"] and best["step"] == about["training"]["steps"]
