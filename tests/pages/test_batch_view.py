"""Many facts on the edit page: the table with its bad rows, a batch, a sequence, a stop, and the files."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit import batch_view
from pages.shared.fact_at_hand import FactAtHand
from rome_core.facts.requests import Row
from tests.pages.conftest import edits_of, finish, goto, session_of, texts
from tests.tiny import REQUEST, random_edit, tiny_model


def test_edits_of_a_batch_are_a_zip() -> None:
    with zipfile.ZipFile(io.BytesIO(batch_view.edits_zip([random_edit(tiny_model())]))) as archive:
        assert {"edit-001-r-rome.safetensors", "adapter/adapter_model.safetensors"} <= set(archive.namelist())


@pytest.mark.usefixtures("random_moments")
def test_the_page_takes_a_table_says_what_is_wrong_and_edits_the_rest(app: AppTest) -> None:
    goto(app, "edit", **FactAtHand.of(REQUEST).link, view="A batch", method="emmet")
    app.number_input(key="layer").set_value(2).run()
    app.number_input(key="edit-steps").set_value(2).run()
    assert app.button(key="batch-run").disabled

    app.button(key="batch-add").click().run()
    with session_of(app):
        sheet = batch_view.current_sheet()
    rows = list(sheet.typed)
    assert rows == [Row(REQUEST.prompt.template, "Eiffel Tower", "Rome", "Paris")]
    sheet.typed = [*rows, Row("{} is", "France", "")]  # as somebody types it
    sheet.version = 9
    app.run()
    assert "1 row cannot be used" in texts(app.warning)
    assert app.button(key="batch-run").label == "Edit 1 fact"

    app.button(key="batch-run").click().run()
    finish(app, batch_view.JOB)
    assert [item.label for item in edits_of(app)] == ["Eiffel Tower → Rome (emmet)"]
    assert "Hold" in [metric.label for metric in app.metric]
    for part in ("k*", "v*", "Δ", "Objective"):
        app.session_state["batch-part"] = part
        app.run()
        assert not app.exception and not app.error, part

    app.button(key="batch-some").click().run()
    assert len(sheet.typed) == 2 + batch_view.SOME
    app.button(key="batch-clear").click().run()
    assert sheet.typed == [Row()]


def test_many_rows_with_one_fault_are_one_line(app: AppTest) -> None:
    goto(app, "edit", view="A batch", method="emmet")
    known = [{"known_id": n, "subject": f"X{n}", "prompt": f"X{n} is in", "attribute": "Y"} for n in range(40)]
    app.file_uploader(key="batch-file").upload("known.json", json.dumps(known).encode(), "text/plain").run()

    (shown,) = [table.value for table in app.table if "what is wrong" in table.value]
    assert len(shown) == 1 and "and 35 more" in shown["where"][0] and "new object is empty" in shown["what is wrong"][0]
    assert "new objects of the same relation" in texts(app.caption)


def test_rows_of_a_file_join_the_table_and_the_others_are_said(app: AppTest) -> None:
    goto(app, "edit", view="A batch", method="emmet")
    lines = "subject;relation;new object\nX;{} is;y\nY;{} is;\n;;\nZ;{} is;a;b\n"
    app.file_uploader(key="batch-file").upload("mine.csv", lines.encode(), "text/csv").run()

    assert not app.exception
    with session_of(app):
        typed = batch_view.current_sheet().typed
    assert typed == [Row("{} is", "X", "y"), Row("{} is", "Y", "")]
    shown = [str(cell) for table in app.table for cell in table.value.to_numpy().ravel()]
    assert "line 5" in shown and any("4 cells stand under 3 columns" in cell for cell in shown)
    assert "1 row cannot be used; the other stays in" in texts(app.warning)
    assert app.button(key="batch-run").label == "Edit 1 fact"


def test_what_was_typed_into_the_table_is_there_after_another_page_and_after_another_view(app: AppTest) -> None:
    goto(app, "edit", view="A batch", method="emmet")
    app.button(key="batch-some").click().run()
    with session_of(app):
        sheet = batch_view.current_sheet()
    typed = [Row("{} is", "Oslo", "typed over"), *sheet.typed[1:]]

    for leave in ({"view": "This method"}, None):
        sheet.typed = list(typed)  # as the editor reports it
        goto(app, "edit", **leave) if leave else goto(app, "tracing")
        for number in range(200):  # whatever else is looked at
            with session_of(app):
                batch_view.session.remember(number, number)
        goto(app, "edit", view="A batch", method="emmet")
        assert sheet.typed == typed
        assert app.button(key="batch-run").label == f"Edit {len(typed)} facts"
