"""Many requests: one edit or one after another, a stop, a bad fact, and the files."""

from __future__ import annotations

import csv
import io
import json

import pytest

from rome_core import METHODS, EditRequest, LanguageModel, Moment, Prompt, RomeError, continuation_probabilities, solve
from rome_core.evaluation.batch import batch_csv, batch_json, edit_batch, share_held
from rome_core.progress import Stopped
from tests.tiny import REQUEST, halt_at

QUICK = {"layer": 2, "prefixes": ("", "x. "), "steps": 2, "clamp": 1.0}
REQUESTS = (
    REQUEST,
    EditRequest(Prompt("The capital of {} is", "France"), "London", "Paris"),
    EditRequest(Prompt("{} plays", "A dragon"), "golf"),
)


@pytest.mark.parametrize("name", ["memit", "r-rome"])
def test_a_batch_is_measured_with_all_of_its_edits(lm: LanguageModel, moments: dict[int, Moment], name: str) -> None:
    config = METHODS[name](**QUICK)
    batch = edit_batch(lm, REQUESTS, config, (), moments)

    assert batch.done == REQUESTS and not batch.problems and not batch.stopped
    assert len(batch.edits) == (1 if name == "memit" else 3)
    if name == "memit":
        assert batch.edits[0].id == solve(lm, REQUESTS, config, moments=moments).id
        assert batch.edits[0].of_request(1).requests == REQUESTS[1:2]
    else:
        assert [len(edit.on) for edit in batch.edits] == [0, 1, 2]
    first = {one.kind: one for one in batch.outcomes[0]}
    p_new, p_true = continuation_probabilities(lm, REQUEST.prompt.text, [" Rome", " Paris"], edits=batch.edits)
    assert (first["new"].after, first["true"].after) == (
        pytest.approx(p_new, rel=1e-3),
        pytest.approx(p_true, rel=1e-3),
    )
    assert [one.kind for one in batch.outcomes[2]] == ["new"]  # of a fact that nobody knows
    assert 0 <= share_held(batch) <= 1


def test_a_stop_keeps_what_was_found_and_a_bad_fact_ends_nothing(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    endless = EditRequest(Prompt("The {} is", "tower " * 300), "red")
    for name in ("emmet", "r-rome"):
        batch = edit_batch(lm, (endless, *REQUESTS), METHODS[name](**QUICK), (), moments, halt_at("Facts", 2))
        assert batch.stopped and batch.done == REQUESTS[:1]
        assert batch.problems and "tokens" in batch.problems[0] and len(batch.outcomes) == 1


def test_files_of_a_batch(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    batch = edit_batch(lm, REQUESTS, METHODS["emmet"](**QUICK), (), moments)

    lines = list(csv.DictReader(io.StringIO(batch_csv(batch))))
    assert [line["subject"] for line in lines] == [request.prompt.subject for request in REQUESTS]
    assert lines[2]["true_after"] == "" and float(lines[0]["new_after"]) == batch.outcomes[0][0].after
    record = json.loads(batch_json(lm, batch))
    assert record["settings"]["prefixes"] == list(QUICK["prefixes"]) and len(record["rows"]) == 3  # type: ignore[call-overload]


def test_without_any_edit_there_is_no_batch(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    endless = EditRequest(Prompt("The {} is", "tower " * 300), "red")
    with pytest.raises(RomeError, match="None of the facts"):
        edit_batch(lm, [endless], METHODS["r-rome"](**QUICK), (), moments)
    with pytest.raises(Stopped):
        edit_batch(lm, REQUESTS, METHODS["r-rome"](**QUICK), (), moments, halt_at("", 0))
