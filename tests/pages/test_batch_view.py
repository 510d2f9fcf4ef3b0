"""Many facts on the edit page: the table with its bad rows, a batch, a sequence, a stop, and the files."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit import batch_run, batch_view
from pages.shared.track import Stopped
from rome_core import METHODS, EditRequest, LanguageModel, Moment, Prompt, continuation_probabilities, solve
from rome_core.facts.requests import Row
from tests.pages.conftest import goto, texts, wait_for
from tests.tiny import REQUEST, random_moment, tiny_model

QUICK = {"layer": 2, "prefixes": ("", "x. "), "steps": 2, "clamp": 1.0}
REQUESTS = (
    REQUEST,
    EditRequest(Prompt("The capital of {} is", "France"), "London", "Paris"),
    EditRequest(Prompt("{} plays", "A dragon"), "golf"),
)


@pytest.fixture
def lm() -> LanguageModel:
    return tiny_model("llama", layers=4)


@pytest.fixture
def moments(lm: LanguageModel) -> dict[int, Moment]:
    return {layer: random_moment(lm, layer, seed=layer) for layer in range(4)}


def all_of(items: Iterable[Any], label: str, total: int, /) -> Iterator[Any]:
    return iter(items)


@pytest.mark.parametrize("name", ["memit", "r-rome"])
def test_a_batch_is_measured_with_all_of_its_edits(lm: LanguageModel, moments: dict[int, Moment], name: str) -> None:
    config = METHODS[name](**QUICK)
    batch = batch_run.run(lm, REQUESTS, config, (), moments, all_of)

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
    assert 0 <= batch_run.held(batch) <= 1


def test_a_stop_keeps_what_was_found_and_a_bad_fact_ends_nothing(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    def until_third(items: Iterable[Any], label: str, total: int, /) -> Iterator[Any]:
        for number, item in enumerate(items):
            if label == "Facts" and number == 2:
                raise Stopped
            yield item

    endless = EditRequest(Prompt("The {} is", "tower " * 300), "red")
    for name in ("emmet", "r-rome"):
        batch = batch_run.run(lm, (endless, *REQUESTS), METHODS[name](**QUICK), (), moments, until_third)
        assert batch.stopped and batch.done == REQUESTS[:1]
        assert batch.problems and "tokens" in batch.problems[0] and len(batch.outcomes) == 1


def test_files_of_a_batch(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    batch = batch_run.run(lm, REQUESTS, METHODS["emmet"](**QUICK), (), moments, all_of)

    lines = list(csv.DictReader(io.StringIO(batch_run.as_csv(batch))))
    assert [line["subject"] for line in lines] == [request.prompt.subject for request in REQUESTS]
    assert lines[2]["true_after"] == "" and float(lines[0]["new_after"]) == batch.outcomes[0][0].after
    record = json.loads(batch_run.as_json(lm, batch))
    assert record["settings"]["prefixes"] == list(QUICK["prefixes"]) and len(record["rows"]) == 3  # type: ignore[call-overload]
    with zipfile.ZipFile(io.BytesIO(batch_view.edits_zip(batch.edits))) as archive:
        assert {"edit-001-emmet.safetensors", "adapter/adapter_model.safetensors"} <= set(archive.namelist())


def test_the_page_takes_a_table_says_what_is_wrong_and_edits_the_rest(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rome_core.editing.second_moment.stored_moment", random_moment)
    goto(app, "edit", view="A batch", method="emmet")
    app.number_input(key="layer").set_value(2).run()
    app.number_input(key="edit-steps").set_value(2).run()
    assert app.button(key="batch-run").disabled

    app.button(key="batch-add").click().run()
    rows = app.session_state["_results"][batch_view.NOW]
    assert rows == [Row(REQUEST.prompt.template, "Eiffel Tower", "Rome", "Paris")]
    app.session_state["_results"][batch_view.SHEET] = (9, [*rows, Row("{} is", "France", "")])
    app.run()
    assert "1 row cannot be used" in texts(app.warning)
    assert app.button(key="batch-run").label == "Edit 1 fact"

    app.button(key="batch-run").click().run()
    job = app.session_state["_results"][batch_view.JOB]
    wait_for(app, lambda app: not job.live)
    app.run()
    assert not app.exception and job.error is None
    assert [item.label for item in app.session_state["_edits"]] == ["Eiffel Tower → Rome (emmet)"]
    assert "Hold" in [metric.label for metric in app.metric]
    for part in ("k*", "v*", "Δ", "Objective"):
        app.session_state["batch-part"] = part
        app.run()
        assert not app.exception and not app.error, part

    app.button(key="batch-some").click().run()
    assert len(app.session_state["_results"][batch_view.NOW]) == 2 + batch_view.SOME
    app.button(key="batch-clear").click().run()
    assert app.session_state["_results"][batch_view.NOW] == [Row()]


def test_rows_of_a_file_join_the_table_and_the_others_are_said(app: AppTest) -> None:
    goto(app, "edit", view="A batch", method="emmet")
    lines = "subject;relation;new object\nX;{} is;y\nY;{} is;\n;;\nZ;{} is;a;b\n"
    app.file_uploader(key="batch-file").upload("mine.csv", lines.encode(), "text/csv").run()

    assert not app.exception
    assert app.session_state["_results"][batch_view.NOW] == [Row("{} is", "X", "y"), Row("{} is", "Y", "")]
    shown = [str(cell) for table in app.table for cell in table.value.to_numpy().ravel()]
    assert any("line 5" in cell and "4 cells stand under 3 columns" in cell for cell in shown)
    assert "1 row cannot be used; the other stays in" in texts(app.warning)
    assert app.button(key="batch-run").label == "Edit 1 fact"
