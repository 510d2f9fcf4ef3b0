"""All methods on one fact: the button, the rows, a row that becomes the active edit, and the figure."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit import comparison_figure as bench_figure
from pages.parts.edit import comparison_view as bench_view
from pages.shared.style import LIGHT
from rome_core import METHODS, EditRequest, Prompt
from rome_core.editing import presets
from rome_core.editing.presets import resolve
from rome_core.evaluation.comparison import MethodRow, Trial
from tests.pages.conftest import edits_of, finish, goto, texts
from tests.tiny import random_edit, tiny_model


@pytest.fixture
def page(app: AppTest, monkeypatch: pytest.MonkeyPatch, random_moments: None) -> AppTest:
    """The view, with few methods and a C that need not be estimated."""
    kept = {name: METHODS[name] for name in ("r-rome", "h-rome", "memit")}
    monkeypatch.setattr(bench_view, "METHODS", kept)
    goto(app, "edit", view="All methods")
    app.number_input(key="layer").set_value(1).run()  # memit's three layers do not fit below
    app.number_input(key="edit-steps").set_value(2).run()
    return app


def test_rows_fill_a_table_and_one_becomes_the_active_edit(page: AppTest) -> None:
    assert "Press Run all methods" in texts(page.info)
    page.button(key="bench-run").click().run()
    run = finish(page, bench_view.JOB)

    assert [row.method for row in run.rows] == ["before", "r-rome", "h-rome", "memit"]
    assert run.rows[2].shared == "r-rome"
    assert run.rows[1].edit.config.layer == run.rows[2].edit.config.layer == 1
    assert edits_of(page) == []

    page.selectbox(key="bench-row").set_value("h-rome").run()
    page.button(key="bench-activate").click().run()
    assert [item.edit.method for item in edits_of(page)] == ["h-rome"]
    page.selectbox(key="bench-row").set_value("r-rome").run()
    page.button(key="bench-activate").click().run()
    assert [item.edit.method for item in edits_of(page)] == ["r-rome"]
    assert "Among this session's edits" in texts(page.caption)


def test_an_unknown_fact_asks_for_prompts(page: AppTest) -> None:
    page.text_input(key="subject").set_value("green dragon").run()
    page.text_input(key="target").set_value("Oslo").run()
    page.text_area(key="bench-neighbours").set_value("Lyon is in\n\n Milan is in ").run()
    page.button(key="bench-run").click().run()
    run = finish(page, bench_view.JOB)

    asked = run.task  # the form's is made on every run: read it off a run
    assert isinstance(asked, Trial) and asked.neighbours == ("Lyon is in", " Milan is in") and asked.paraphrases == ()
    assert "paraphrase" not in run.rows[1].values


def test_methods_take_the_settings_that_they_share() -> None:
    lm = tiny_model()
    config = METHODS["r-rome"](layer=3, steps=7, seed=5)

    found = {one.name: one for one in bench_view.configs_like(lm, config)}

    assert found.keys() == METHODS.keys()
    for name, one in found.items():
        if METHODS[name].adds_to == "mlp_out":
            assert (one.layer, one.steps) == (3, 7)
        assert getattr(one, "seed", 5) == 5
    assert found["memit"].steps == 7 and found["memit"].clamp == METHODS["memit"]().clamp  # of another norm


@pytest.mark.usefixtures("presets_of_first_tokens")
def test_methods_of_many_keys_do_not_take_over_the_layer_of_a_first_token() -> None:
    lm, wanted = tiny_model(), EditRequest(Prompt("{} is the capital of", "Paris"), "Italy")
    shown = resolve(lm, METHODS["n-rome"](lr=0.25), [wanted])  # as the form draws it
    assert (shown.layer, shown.steps) == (0, 9)

    found = {one.name: one for one in bench_view.configs_like(lm, shown, wanted)}

    assert found["n-rome"] == shown
    assert (found["rome"].layer, found["rome"].clamp, found["rome"].steps, found["rome"].lr) == (0, 6.0, 9, 0.25)
    assert (found["memit"].layer, found["memit"].steps, found["memit"].lr) == (2, 4, 0.25)
    assert found["ft"].layer == 2
    assert presets.unresolved(lm, shown, [wanted]) == METHODS["n-rome"](lr=0.25)


def test_the_figure_has_a_panel_a_measure_and_names_the_finding() -> None:
    edit = random_edit(tiny_model())
    rows = [
        MethodRow("before", values={"efficacy": 0.1, "neighbour": 0.0}),
        MethodRow("a", edit=edit, values={"efficacy": 0.9, "neighbour": 0.1, "nkl": 0.5, "seconds": 2.0}),
        MethodRow("b", edit=edit, values={"efficacy": 0.8, "neighbour": 0.0, "nkl": 0.01, "seconds": 1.0}),
        MethodRow("c", error="There is no checkpoint."),
    ]
    fig = bench_figure.methods_figure(rows, "caption", LIGHT)

    assert fig.layout.title.text == "2 of 2 reach p(new) above 0.5; of these b changes neighbours least (0.0100 nats)"
    assert [list(trace.x) for trace in fig.data] == [[0.9, 0.8], [0.1, 0.0], [0.5, 0.01], [2.0, 1.0]]
    assert len(fig.layout.shapes) == 2
    assert bench_figure.title([]).endswith("?")
    assert bench_figure.decades([0.0137, 0.0326]) == [-2.1, -0.9] and bench_figure.decades([10.0, None, 0.0]) == [
        0.9,
        2.1,
    ]
    shown = bench_view.table_rows(rows)
    assert [row["method"] for row in shown] == ["before", "a", "b"] and shown[0]["NKL"] == ""
