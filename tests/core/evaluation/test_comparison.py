"""Every method on one request: rows as they finish, one search shared, measures against plain ones, files."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from rome_core import METHODS, LanguageModel, ModelError, Moment, continuation_probabilities, generate
from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation.comparison import MethodRow, Trial, compare_methods, comparison_csv, comparison_json
from rome_core.progress import Stopped
from tests.tiny import REQUEST, halt_at, plain_run, random_edit, written

QUICK = {"layer": 2, "prefixes": ("", "x. "), "steps": 3, "clamp": 1.0}
TASK = Trial(REQUEST, ("The city of the Eiffel Tower is",), ("Lyon is a city in", "Milan is a city in"), "It is", 5)


class Untrained(MethodConfig):
    name = "untrained"
    title = formula = ""

    def solve(self, lm: LanguageModel, requests: Any, **options: Any) -> Edit:
        raise ModelError("There is no checkpoint.", "", "Train one.")


@pytest.fixture(scope="module")
def rows(lm: LanguageModel, moments: dict[int, Moment]) -> list[MethodRow]:
    configs = [*(METHODS[name](**QUICK) for name in ("r-rome", "h-rome", "emmet", "memit")), Untrained()]
    return list(compare_methods(lm, TASK, configs, moments=moments))


def test_every_method_has_its_row_and_the_search_is_shared(rows: list[MethodRow]) -> None:
    assert [row.method for row in rows] == ["before", "r-rome", "h-rome", "emmet", "memit", "untrained"]
    assert [row.shared for row in rows] == ["", "", "r-rome", "r-rome", "", ""]
    assert rows[-1].error == "There is no checkpoint. Train one." and rows[-1].edit is None
    assert rows[2].edit is not None and rows[2].edit.history == rows[1].edit.history  # type: ignore[union-attr]
    assert rows[0].values.keys() == {"efficacy", "paraphrase", "neighbour"}


def test_measures_are_the_plain_ones(lm: LanguageModel, rows: list[MethodRow]) -> None:
    row = rows[2]
    assert row.edit is not None
    (p,) = continuation_probabilities(lm, REQUEST.prompt.text, [" Rome"], edits=[row.edit])
    n_tokens = len(lm.tokenizer(" Rome")["input_ids"])
    assert row.values["efficacy"] == pytest.approx(p ** (1 / n_tokens), rel=1e-4)

    (delta,) = row.edit.deltas
    kls = []
    for text in TASK.neighbours:
        ids = lm.tokenizer(text)["input_ids"]
        plain, edited = plain_run(lm, [ids]), plain_run(written(lm, row.edit), [ids])
        p, q = (logits[0, -1].double().softmax(-1) for logits in (plain, edited))
        kls.append(float((p * (p / q).log()).sum()))
    assert row.values["nkl"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    W = lm.weight(2).double()
    assert row.values["relative_norm"] == pytest.approx(float(delta.matrix().norm() / W.norm()), rel=1e-6)
    assert row.text == generate(lm, "It is", 5, edits=[row.edit])


def test_measures_without_prompts_are_absent(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    found = list(compare_methods(lm, Trial(REQUEST), [METHODS["r-rome"](**QUICK)], moments=moments))

    assert found[1].values.keys() == {"efficacy", "relative_norm", "seconds"}
    assert found[1].text == ""
    assert next(csv.reader(io.StringIO(comparison_csv(found)))) == [
        "method", "efficacy", "relative_norm", "seconds", "delta_of", "text", "error",
    ]  # fmt: skip


def test_rows_come_one_by_one_on_top_of_other_edits(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    below = random_edit(lm, 0, size=0.02)
    configs = [METHODS[name](**QUICK) for name in ("r-rome", "h-rome")]
    steps = compare_methods(lm, TASK, configs, moments=moments, edits=[below], track=halt_at("Methods", 1))
    before, first = next(steps), next(steps)

    assert before.method == "before" and first.edit is not None and first.edit.on == (below.id,)
    with pytest.raises(Stopped):
        next(steps)


def test_files_hold_the_settings(lm: LanguageModel, rows: list[MethodRow]) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_csv(rows))))
    assert [line["method"] for line in lines] == [row.method for row in rows]
    assert float(lines[1]["efficacy"]) == rows[1].values["efficacy"] and lines[-1]["error"]

    record = json.loads(comparison_json(lm, TASK, rows))
    assert record["fingerprint"] == lm.fingerprint and record["task"]["neighbours"] == list(TASK.neighbours)
    assert record["rows"][1]["settings"]["prefixes"] == list(QUICK["prefixes"])  # type: ignore[call-overload]
    assert record["rows"][0]["settings"] is None


def test_a_value_that_left_the_numbers_is_null(lm: LanguageModel) -> None:
    record = json.loads(comparison_json(lm, TASK, [MethodRow("x", values={"nkl": float("inf")})]))

    assert record["rows"][0]["values"] == {"nkl": None}
