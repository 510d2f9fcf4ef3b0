"""What a user or a model has written is shown as it is: no dollar, star or tag of it means anything on a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit.figures import dumbbell
from pages.parts.sequence.figures import curves_figure
from pages.parts.tracing.view import LATEST
from pages.shared import circuits
from pages.shared.style import LIGHT
from pages.shared.text import code, literal
from rome_core import EditRequest, Prompt
from rome_core.evaluation.sequence.folder import Record
from tests.pages.conftest import draw_tabs, edits_of, finish, goto, job_of, wait_for
from tests.tiny import change_by_hand, random_edit, tiny_model

FACT = {"template": "The name of {} is", "subject": "A$AP *Rocky*", "target": "Ke$ha", "true": "<b>[x](y)</b>"}
MARKS = re.compile(r"(?<!\\)[$*<\[]")


def words(app: AppTest) -> Iterator[str]:
    """Every text of the page that Streamlit reads as Markdown."""
    for block in (app.main, app.sidebar):
        for kind in ("caption", "markdown", "info", "warning", "error", "success", "subheader", "header", "title"):
            yield from (str(one.value) for one in block.get(kind))
        for kind in ("button", "toggle", "expander", "tab", "page_link", "progress", "metric", "download_button"):
            for one in block.get(kind):
                proto: Any = getattr(one, "proto", None)
                yield from (str(getattr(proto, name, "")) for name in ("label", "text", "delta", "help"))


def loose(text: str, typed: str) -> bool:
    """Whether a part of what was typed stands in a text with its marks at work."""
    return typed in text and bool(MARKS.search(typed))


def assert_inert(app: AppTest) -> None:
    assert not app.exception
    for text in words(app):
        for typed in FACT.values():
            assert not loose(text, typed), text


def test_the_form_the_list_of_edits_and_the_jobs(app: AppTest, random_moments: None) -> None:
    goto(app, "edit", **FACT)
    app.button(key="run").click().run()
    assert_inert(app)
    finish(app, ("edit", "job"))
    assert_inert(app)
    assert [literal(item.label) for item in edits_of(app)] == [toggle.label for toggle in app.sidebar.toggle[1:]]
    for name in draw_tabs(app):
        app.session_state["edit-tab"] = name
        assert_inert(app.run())
    goto(app, "diagnostics")
    assert_inert(app)
    app.button(key="diagnose").click().run()
    assert_inert(app)
    finish(app, ("diagnosis", "job"))
    assert_inert(app)


def test_a_trace(app: AppTest) -> None:
    goto(app, "tracing", **{**FACT, "answer": "Ke$ha", "trace-samples": "1", "trace-window": "2"})
    app.button(key="run").click().run()
    assert_inert(app)
    wait_for(app, lambda app: not job_of(app, LATEST).live)
    assert_inert(app)
    goto(app, "tracing", template="The A$AP *Rocky* song is", subject="")
    assert_inert(app)
    goto(app, "tracing", template="The A$AP *Rocky* song is", subject="Ke$ha")
    assert_inert(app)


@pytest.mark.parametrize("page", ["edit", "tracing", "averages", "evaluate", "sequential", "facts"])
def test_the_list_of_edits_on_every_page(app: AppTest, page: str) -> None:
    request = EditRequest(Prompt(FACT["template"], FACT["subject"]), FACT["target"], FACT["true"])
    edit = replace(random_edit(tiny_model("llama", layers=4)), requests=(request,))
    from pages.shared.session import ActiveEdit
    from pages.shared.text import edit_label

    edits_of(app).append(ActiveEdit(edit, edit_label(edit)))
    goto(app, page)
    assert_inert(app)
    assert literal("A$AP *Rocky* → Ke$ha (r-rome)") in [toggle.label for toggle in app.sidebar.toggle]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("A$AP Rocky → Ke$ha", "A\\$AP Rocky → Ke\\$ha"),
        ("k_0ᵀC⁻¹k* [x]", "k\\_0ᵀC⁻¹k\\* \\[x\\]"),
        ("# 1", "\\# 1"),
        ("1. FC Köln", "1\u2060. FC Köln"),
        (":red[x]", "\\:red\\[x\\]"),
        (":smile:", ":\u2060smile:"),
        ("a -> b", "a -\u2060> b"),
        ("www.x.org", "www\u2060.x.org"),
        ("&lt;", "\\&lt;"),
        ("one\ntwo", "one ⏎ two"),
        ("0.000738", "0.000738"),
        ("-0.5", "-0.5"),
        ("- 0.5", "\\- 0.5"),
        ("---", "-\u2060-\u2060-"),
        ("a-b (c): d!", "a-b (c): d!"),
    ],
)
def test_a_text_is_made_inert(typed: str, shown: str) -> None:
    assert literal(typed) == shown


def test_tokens_are_text_for_circuitsvis() -> None:
    assert circuits.inert(['<img/src="x">', " a&b"]) == ["&lt;img/src=&quot;x&quot;&gt;", " a&amp;b"]


def test_what_is_typed_is_no_placeholder_of_a_figure() -> None:
    change = change_by_hand("edit", "The %{y} <b>tower</b> is in", [0.1, 0.2], [0.3, 0.4])
    for trace in dumbbell([change], ["%{x}", "<i>true</i>"], "", LIGHT).data:
        assert "tower" not in (trace.hovertemplate or "") and "%{x}) " not in (trace.hovertemplate or "")
    told = [cell for trace in dumbbell([change], ["%{x}", "b"], "", LIGHT).data for cell in trace.customdata or ()]
    assert ("The %{y} &lt;b&gt;tower&lt;/b&gt; is in", "%{x}") in [tuple(cell) for cell in told]
    own = [Record(step, (), step, "rome", "", "", 20.0, {"a": 0.1}, 0.1, (), (), ()) for step in range(3)]
    for trace in curves_figure({"%{x} <b>run</b>": own}, "", LIGHT).data:
        assert trace.name == "%{x} &lt;b&gt;run&lt;/b&gt;" and "run" not in (trace.hovertemplate or "")


@pytest.mark.parametrize(
    ("typed", "shown"), [("·a", "`·a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a\nb", "`a ⏎ b`")]
)
def test_nothing_ends_a_piece_of_code(typed: str, shown: str) -> None:
    assert code(typed) == shown
