"""The page that evaluates, on a tiny model: a run that fills in, its table, figures, cases and files; two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.evaluation import run as evaluation_run
from pages.parts.evaluation.figures import bars, caption_of, has, scatter
from pages.parts.evaluation.run import parquet
from pages.shared import fact_sets
from pages.shared.style import DARK, LIGHT, Theme
from rome_core.evaluation import Score
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.tables import Line, score_lines
from rome_core.facts.datasets import Facts
from rome_core.files import cache_dir
from studies.results import keep
from tests.core.evaluation.test_runs import FACTS, rows_by_hand, tiny
from tests.pages.conftest import end_of_jobs, goto, texts


@pytest.fixture
def page(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page with four facts, and settings that make a run short."""
    tiny()
    monkeypatch.setattr(fact_sets, "load_facts", lambda *args: Facts(FACTS))
    page = goto(app, "evaluate")
    page.toggle(key="evaluate-part").set_value(False)
    for name, value in {"n": 2, "prefixes": 2, "passages": 1, "neighbours": 1}.items():
        page.number_input(key=f"evaluate-{name}").set_value(value)
    page.multiselect(key="evaluate-methods").set_value(["rome", "r-rome"])
    page.multiselect(key="evaluate-layers").set_value([1])
    return page.run()


def evaluated(page: AppTest) -> AppTest:
    return end_of_jobs(page.button(key="run-evaluate").click().run())


def test_an_empty_page_says_what_will_appear(page: AppTest) -> None:
    assert not page.error, texts(page.error)
    assert "Press Run" in texts(page.info)
    assert "Meng et al. 2022" in texts(page.caption)
    page.multiselect(key="evaluate-methods").set_value([]).run()
    assert page.button(key="run-evaluate").disabled and "at least one method" in texts(page.caption)


def test_a_run_ends_with_a_table_figures_and_files(page: AppTest) -> None:
    evaluated(page)

    assert not page.error, texts(page.error)
    table = page.dataframe[0].value
    assert list(table["method"]) == ["no edit", "rome@1", "r-rome@1"]
    assert list(table.columns)[:9] == ["method", "stage", "n", "S", "ES", "EM", "PS", "PM", "NS"]
    assert len(page.get("plotly_chart")) == 2
    assert {metric.label: metric.value for metric in page.metric}["Facts edited"] == "2"
    assert [b.proto.label for b in page.get("download_button")] == ["CSV", "Parquet, with settings", "LaTeX"]

    (folder,) = (cache_dir() / "runs").iterdir()
    before = len(Store(folder).rows())
    page.number_input(key="evaluate-n").set_value(3)
    evaluated(page)
    assert len(list((cache_dir() / "runs").iterdir())) == 1 and len(Store(folder).rows()) == before * 3 // 2
    assert {metric.label: metric.value for metric in page.metric}["Facts edited"] == "3"

    earlier = page.selectbox(key="beside").options[1]
    page.selectbox(key="beside").set_value(earlier).run()
    assert not page.error, texts(page.error)
    assert "Beside it" in texts(page.caption) and list(page.dataframe[1].value["n"]) == [2, 2, 2]


def test_only_facts_that_the_model_knows(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    page.toggle(key="evaluate-known").set_value(True).run()
    evaluated(page)
    assert "knows none of the 4 facts" in texts(page.error)

    monkeypatch.setattr(
        "rome_core.evaluation.runs.execution.known_facts", lambda lm, some: [f == FACTS[2] for f in some]
    )
    evaluated(page)
    assert not page.error, texts(page.error)
    assert {metric.label: metric.value for metric in page.metric}["Facts edited"] == "1"
    (folder,) = (cache_dir() / "runs").iterdir()
    assert {row.fact for row in Store(folder).rows()} == {FACTS[2].id}


def test_a_folder_of_another_run_is_opened(page: AppTest, tmp_path: Path) -> None:
    store = Store(tmp_path / "run", {"methods": {"m_1": {}}, "model": "other", "group": 1})
    for i, row in enumerate(rows_by_hand()):
        store.write("m_1", i, [row])

    page.text_input(key="beside-folder").set_value(str(tmp_path / "run")).run()
    assert "m_1" in list(page.dataframe[0].value["method"])
    page.text_input(key="beside-folder").set_value(str(tmp_path)).run()
    assert "is no run's folder" in texts(page.error)


def test_a_study_of_the_project_is_opened(page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "run", {"methods": {"m_1": {}}, "model": "other", "group": 1})
    store.write("m_1", 0, rows_by_hand())
    keep(store, tmp_path / "studies" / "cities")
    monkeypatch.setattr(evaluation_run, "SHIPPED", tmp_path / "studies")

    page.run().selectbox(key="beside").set_value("study: cities").run()

    assert not page.error, texts(page.error)
    assert list(page.dataframe[0].value["method"])[-1] == "m_1"


# -------------------------------------------------------------------------------------------------------- without page


def test_a_run_is_a_parquet_file() -> None:
    assert parquet(score_lines(rows_by_hand()), {"model": "tiny"})[:4] == b"PAR1"


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_figures_show_what_the_table_says(theme: Theme) -> None:
    found = score_lines(rows_by_hand())
    fig = bars({"run": found}, "ES", "the caption", theme)

    assert [(bar.name, list(bar.x), list(bar.y)) for bar in fig.data] == [
        ("before", ["m_1"], [0.0]),
        ("after", ["m_1"], [50.0]),
    ]
    score = found[1].scores["ES"]
    assert fig.data[1].error_y.array[0] == pytest.approx(100 * (score.high - score.value))
    assert "m_1" in fig.layout.title.text and fig.layout.annotations[0].text == "the caption"
    both = bars({"run": found, "other": found}, "NKL", "", theme)
    assert [bar.name for bar in both.data] == [f"{s}, {r}" for r in ("run", "other") for s in ("before", "after")]
    assert both.layout.title.text == "NKL, before and after the edits"
    assert "no clear winner" in bars({"run": found, "b": found}, "ES", "", theme).layout.title.text
    assert both.data[-1].marker.pattern.shape == "/"


def lines_by_hand(**after: tuple[float, float, float]) -> list[Line]:
    """Methods with S after their edits as (mean, low, high); c-rome has a baseline of its own."""
    return [
        line
        for method, score in after.items()
        for line in (
            Line(method, "before", 9, 0, 9, {"S": Score(0.392 if method == "c" else 0.418, 0.3, 0.5, 9)}),
            Line(method, "after", 9, 0, 9, {"S": Score(*score, 9)}),
        )
    ]


@pytest.mark.parametrize(
    ("lines", "title"),
    [
        (lines_by_hand(a=(0.9, 0.85, 0.95), b=(0.7, 0.6, 0.8)), "S is highest with a: 90.0"),
        (
            lines_by_hand(a=(0.739, 0.0, 1.0), b=(0.7, 0.0, 0.9)),
            "S: no clear winner, intervals of all methods overlap (70.0 to 73.9)",
        ),
        (
            lines_by_hand(a=(0.9, 0.8, 1.0), b=(0.85, 0.7, 0.9), d=(0.5, 0.4, 0.6)),
            "S: no clear winner, intervals of a and 1 other overlap (85.0 to 90.0)",
        ),
        (
            lines_by_hand(a=(0.5, 0.45, 0.55), b=(0.6, 0.5, 0.7), c=(0.9, 0.85, 0.95)),
            "S is highest with c: 90.0<br>Baselines differ: c from 39.2, the others from 41.8",
        ),
    ],
)
def test_a_title_names_a_winner_only_where_intervals_separate_it(lines: list[Line], title: str) -> None:
    assert bars({"run": lines}, "S", "", LIGHT).layout.title.text == title


def test_points_carry_their_case() -> None:
    rows = [replace(row, relative_norm=0.1 * (1 + row.position), delta_norm=2.0) for row in rows_by_hand()]
    fig = scatter(rows, "NKL", "", LIGHT)

    (trace,) = fig.data
    assert list(trace.x) == pytest.approx([0.1, 0.2]) and list(trace.y) == [0.25, 0.25]
    assert tuple(trace.customdata[0][:2]) == ("m_1", 0)
    assert fig.layout.yaxis.type == "log"
    next(row for row in rows if has(row, "NKL")).values["NKL"] = 0.0
    assert scatter(rows, "NKL", "", LIGHT).layout.yaxis.type is None, "a logarithm would hide the point"
    assert not has(Row("m", 0, "f", "s", "after", relative_norm=float("inf"), values={"NKL": 1.0}), "NKL")


def test_a_caption_says_what_the_numbers_rest_on() -> None:
    about = {"model": "tiny", "facts": "cities", "order_seed": 7, "prefixes": 6, "group": 1}

    assert caption_of(about, 3, True) == (
        "tiny · cities · 3 facts that it knows · order seed 7 · 6 prefixes · each fact edited by itself"
    )
    assert "groups of 5 edits" in caption_of({**about, "group": 5}, 3, False)
