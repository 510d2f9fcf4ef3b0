"""One fact by several methods: a shared search, and failures that are reasons."""

from __future__ import annotations

import pytest
import torch

from rome_core import METHODS, LanguageModel, solve
from rome_core.evaluation import solving
from rome_core.evaluation.solving import solve_by_each
from tests.tiny import REQUEST, random_edit

pytestmark = pytest.mark.usefixtures("random_moments")
QUICK = {"layer": 2, "prefixes": ("", "x. "), "steps": 3, "clamp": 1.0}


def test_every_edit_is_that_of_the_method_by_itself(lm: LanguageModel) -> None:
    below = random_edit(lm, 0, size=0.02)
    configs = [METHODS[name](**QUICK) for name in ("r-rome", "h-rome", "emmet", "memit")]

    found = list(solve_by_each(lm, REQUEST, configs, edits=[below]))

    assert [solved.shared for solved in found] == ["", "r-rome", "r-rome", ""]
    for solved, config in zip(found, configs, strict=True):
        assert solved.edit is not None and solved.error == "" and solved.edit.on == (below.id,)
        alone = solve(lm, [REQUEST], config, edits=[below])
        for mine, theirs in zip(solved.edit.deltas, alone.deltas, strict=True):
            torch.testing.assert_close(mine.matrix(), theirs.matrix(), rtol=1e-3, atol=1e-5)


def test_after_a_failure_the_next_method_searches_itself(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(lm, requests, config, **options):
        if config.name == "rome":
            raise torch.linalg.LinAlgError("C is singular")
        return solve(lm, requests, config, **options)

    monkeypatch.setattr(solving, "solve", singular)
    first, second = solve_by_each(lm, REQUEST, [METHODS[name](**QUICK) for name in ("rome", "r-rome")])

    assert first.edit is None and "C is singular" in first.error
    assert second.edit is not None and second.shared == ""


def test_a_fault_of_the_program_is_no_reason(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*args, **options):
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(solving, "solve", faulty)
    with pytest.raises(TypeError, match="unexpected keyword"):
        list(solve_by_each(lm, REQUEST, [METHODS["rome"](**QUICK)]))
