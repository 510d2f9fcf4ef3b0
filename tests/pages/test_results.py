"""A result names what was asked, and stands apart once the form asks something else; doubts come before a run."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.diagnosis import many
from pages.parts.edit import batch_view, comparison_view
from pages.shared import doubts
from pages.shared.fact_at_hand import EXAMPLES, FactAtHand
from rome_core import METHODS, EditRequest, Prompt
from rome_core.model.scoring import next_tokens
from tests.pages.conftest import edits_of, finish, goto, session_of, texts
from tests.tiny import tiny_model

MOVED_ON = "The form has changed since this run; press **{}** to run it."
FRANCE = EXAMPLES[2].link


def moved_on(app: AppTest, button: str) -> bool:
    return MOVED_ON.format(button) in texts(app.caption)


def test_an_edit_names_its_fact_and_stands_apart_when_the_form_moves_on(app: AppTest, random_moments: None) -> None:
    goto(app, "edit", **FRANCE, **{"edit-steps": "2"})
    app.button(key="run").click().run()
    report = finish(app, ("edit", "job"))
    title = f"**France → London ({report.edit.method}), layer {report.edit.config.layer}**"
    assert title in texts(app.markdown) and not moved_on(app, "Edit")
    assert "no paraphrases and neighbours are known" in texts(app.caption), "why the figure has few rows"

    app.button(key="example-0").click().run()
    assert title in texts(app.markdown) and moved_on(app, "Edit")
    app.button(key="example-2").click().run()
    assert not moved_on(app, "Edit")
    app.number_input(key="edit-steps").set_value(3).run()
    assert moved_on(app, "Edit")
    app.text_input(key="target").set_value("").run()
    assert moved_on(app, "Edit") and app.button(key="run").disabled


def test_a_comparison_does(app: AppTest, random_moments: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_view, "METHODS", {"r-rome": METHODS["r-rome"]})
    goto(app, "edit", **FRANCE, view="All methods", **{"edit-steps": "2"})
    app.button(key="bench-run").click().run()
    finish(app, comparison_view.JOB)
    assert "**France → London by every method**" in texts(app.markdown) and not moved_on(app, "Run all methods")

    app.button(key="example-0").click().run()
    assert moved_on(app, "Run all methods")


def test_a_batch_does(app: AppTest, random_moments: None) -> None:
    goto(app, "edit", **FRANCE, view="A batch", method="r-rome", **{"edit-steps": "1"})
    app.button(key="batch-add").click().run()
    app.button(key="batch-run").click().run()
    finish(app, batch_view.JOB)
    assert "**France → London, by r-rome**" in texts(app.markdown) and not moved_on(app, "Edit")

    app.button(key="example-0").click().run()
    app.button(key="batch-add").click().run()
    assert moved_on(app, "Edit")


def test_a_diagnosis_does(app: AppTest, random_moments: None, few_facts: None) -> None:
    goto(app, "diagnostics", **FRANCE, method="r-rome", **{"edit-steps": "1"})
    app.button(key="diagnose").click().run()
    finish(app, ("diagnosis", "job"))
    assert "**France → London (r-rome), layer" in texts(app.markdown) and not moved_on(app, "Diagnose")

    app.button(key="example-0").click().run()
    assert moved_on(app, "Diagnose")


def test_many_diagnoses_do(app: AppTest, random_moments: None, few_facts: None) -> None:
    goto(app, "diagnostics", question="Many edits", method="r-rome", **{"edit-steps": "1"})
    app.text_area(key="many-list").set_value("The capital of {} is | France | Rome").run()
    app.button(key="diagnose-all").click().run()
    finish(app, many.JOB)
    assert "**Diagnosing France by r-rome**" in texts(app.markdown) and not moved_on(app, "Diagnose all")

    app.text_area(key="many-list").set_value("The capital of {} is | France | Oslo").run()
    assert moved_on(app, "Diagnose all")
    goto(app, "home")
    goto(app, "diagnostics", question="Many edits")
    assert app.text_area(key="many-list").value == "The capital of {} is | France | Oslo", "what was typed stays"


# ------------------------------------------------------------------------------------------------------ before it runs


def answer_of(prompt: Prompt) -> str:
    return next_tokens(tiny_model("llama", layers=4), prompt.text)[0][0].strip()


PROMPT = Prompt("The home of {} is", "Köln")


def test_an_edit_to_what_the_model_answers_is_said_before_it_runs(app: AppTest) -> None:
    said = answer_of(PROMPT)
    goto(app, "edit", **FactAtHand(PROMPT.template, PROMPT.subject, said).link)
    assert f"The model answers “{said}” already" in texts(app.warning)
    assert "would change nothing" in texts(app.warning)
    goto(app, "edit", **FactAtHand(PROMPT.template, PROMPT.subject, said).link, view="All methods")
    assert "would change nothing" in texts(app.warning)
    goto(app, "diagnostics", **FactAtHand(PROMPT.template, PROMPT.subject, said).link)
    assert "would change nothing" in texts(app.warning)

    app.text_input(key="target").set_value("Oslo").run()
    assert not app.warning
    app.text_input(key="true").set_value("oslo").run()
    assert "The new object and the true one are both “Oslo”" in texts(app.warning)


def test_rows_of_a_batch_without_a_purpose_are_named(app: AppTest) -> None:
    goto(app, "edit", view="A batch")
    rows = [
        (PROMPT.template, PROMPT.subject, answer_of(PROMPT), ""),
        ("{} is in", "Oslo", "Norway", "Norway"),
        ("{} is in", "Paris", "Norway", "France"),
    ]
    with session_of(app):
        sheet = batch_view.current_sheet()
    sheet.typed, sheet.version = [batch_view.Row(*row) for row in rows], 9
    app.run()

    assert "2 facts of 3 may be edited to no purpose" in texts(app.warning)
    shown = [str(cell) for table in app.table for cell in table.value.to_numpy().ravel()]
    assert sum("would change nothing" in cell for cell in shown) == 1
    assert sum("no score can tell them apart" in cell for cell in shown) == 1


def test_present_answers_are_asked_once_and_one_that_cannot_be_asked_is_no_doubt(monkeypatch: Any) -> None:
    lm, asked = tiny_model("llama", layers=4), []
    monkeypatch.setattr(doubts.st, "session_state", {})
    real = doubts.score

    def count(lm: Any, pairs: Any, edits: Any) -> Any:
        asked.append(len(pairs))
        return real(lm, pairs, edits=edits)

    monkeypatch.setattr(doubts, "score", count)
    same = EditRequest(PROMPT, answer_of(PROMPT))
    other = EditRequest(PROMPT, "Oslo", "Norway")

    assert [bool(doubt) for doubt in doubts.of_requests(lm, [same, other, same], ())] == [True, False, True]
    assert doubts.of_requests(lm, [other], ()) == [""]
    assert asked == [2]


def test_a_broken_form_has_no_button_to_press(app: AppTest) -> None:
    goto(app, "edit", **{**FRANCE, "target": ""})
    assert app.button(key="run").disabled and "The form above says what is missing." in texts(app.caption)
    goto(app, "diagnostics", **{**FRANCE, "target": ""})
    assert app.button(key="diagnose").disabled


# ---------------------------------------------------------------------------------------------------- on, off, removed


def test_an_edit_is_said_to_be_on_off_weaker_or_gone_everywhere_at_once(app: AppTest, random_moments: None) -> None:
    goto(app, "edit", **FRANCE, **{"edit-steps": "2"})
    app.button(key="run").click().run()
    edit = finish(app, ("edit", "job")).edit
    edits_of(app)[0].on = True
    app.run()
    heading = lambda: next(m.value for m in app.sidebar.markdown if "Active edits" in m.value)  # noqa: E731
    assert heading().endswith("1 on") and "It is on in this session: " in texts(app.caption)

    app.toggle(key=f"on-{edit.id}").set_value(False).run()
    assert heading().endswith("0 on") and "It is off in this session" in texts(app.caption)
    app.toggle(key=f"on-{edit.id}").set_value(True).run()
    app.slider(key=f"scale-{edit.id}").set_value(0.5).run()
    assert heading().endswith("1 on") and "at strength 0.5; the numbers here are those of strength 1" in texts(
        app.caption
    )
    app.toggle(key="original_model").set_value(True).run()
    assert heading().endswith("all off") and "It is off, as all edits are" in texts(app.caption)
    app.toggle(key="original_model").set_value(False).run()
    app.button(key=f"remove-{edit.id}").click().run()
    assert heading().endswith("none") and "It is not among this session's edits" in texts(app.caption)


def test_an_edit_that_is_switched_on_by_a_page_is_on_in_the_list(app: AppTest, random_moments: None) -> None:
    goto(app, "edit", **FRANCE, **{"edit-steps": "2"})
    app.button(key="run").click().run()
    edit = finish(app, ("edit", "job")).edit
    app.toggle(key=f"on-{edit.id}").set_value(False).run()
    with session_of(app):
        batch_view.session.put_edit(edit, "again")
    app.run()

    assert app.toggle(key=f"on-{edit.id}").value is True and edits_of(app)[0].on
