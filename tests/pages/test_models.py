"""Models in memory: loaded once for everybody, never dropped while somebody uses them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pages.shared.models import Loading, Models
from rome_core import LanguageModel, ModelError
from tests.tiny import tiny_model


@pytest.fixture
def gone() -> set[str]:
    """Visitors who have closed their last tab."""
    return set()


@pytest.fixture
def begun() -> list[str]:
    """What was loaded, in order."""
    return []


@pytest.fixture
def models(gone: set[str], begun: list[str]) -> Models:
    def load(name: str, job: Loading) -> LanguageModel:
        begun.append(name)
        if name == "broken":
            raise ModelError("It is broken.")
        return tiny_model()

    return Models(load, lambda user: user not in gone, most=2)


def wait(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everybody_is_given_the_same_model_loaded_once(models: Models, begun: list[str]) -> None:
    jobs = [models.get("a", user) for user in ("ann", "ben", "ann")]
    wait(lambda: not jobs[0].live)

    assert len({id(job) for job in jobs}) == 1 and begun == ["a"]
    assert models.result("a") is jobs[0].result is not None
    assert models.result("b") is None and begun == ["a"], "asking does not load"


def test_two_models_in_use_are_not_dropped_for_a_third(models: Models, begun: list[str]) -> None:
    models.get("a", "ann")
    models.get("b", "ben")

    with pytest.raises(ModelError, match="'a' and 'b' are in memory and in use, and this server holds 2"):
        models.get("c", "cem")

    for name, user in (("a", "ann"), ("b", "ben")) * 3:
        models.get(name, user)
    wait(lambda: len(begun) == 2)
    assert sorted(begun) == ["a", "b"], "nobody's model is loaded twice"


def test_a_model_makes_room_when_its_users_are_gone_or_use_another_one(
    models: Models, gone: set[str], begun: list[str]
) -> None:
    models.get("a", "ann")
    models.get("b", "ben")
    gone.add("ann")
    models.get("c", "cem")
    assert models.result("a") is None

    models.get("c", "ben")
    models.settle_on("c", "ben")
    models.get("d", "dan")

    wait(lambda: len(begun) == 4)
    assert sorted(begun) == ["a", "b", "c", "d"]
    with pytest.raises(ModelError, match="'c' and 'd' are in memory"):
        models.get("e", "eve")


def test_a_failed_one_holds_no_room_and_is_tried_again_when_asked(models: Models, begun: list[str]) -> None:
    failed = models.get("broken", "ann")
    wait(lambda: not failed.live)
    assert models.get("broken", "ben") is failed

    models.forget_failed("broken")
    again = models.get("broken", "ann")
    wait(lambda: not again.live)
    models.get("a", "ann")
    models.get("b", "ben")

    wait(lambda: len(begun) == 4)
    assert begun.count("broken") == 2
