"""The page of sequential edits on a tiny model: a run that grows, stops, goes on, is branched and compared."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.sequence import jobs as sequence_jobs
from pages.parts.sequence.figures import AT_ONCE, caption, curves_figure, finding, latest_efficacy, matrix_figure
from pages.parts.sequence.jobs import all_runs, work
from pages.shared import fact_sets, probe_panel, public
from pages.shared.style import DARK, LIGHT
from pages.shared.track import Job
from rome_core import EditRequest, Prompt
from rome_core.evaluation.sequence.folder import Check, Pace, Record, open_run
from rome_core.evaluation.sequence.start import SequenceStart
from rome_core.facts.datasets import Facts
from rome_core.files import cache_dir
from tests.core.evaluation.test_sequence import FACTS, config
from tests.pages.conftest import edits_of, end_of_jobs, goto, texts
from tests.tiny import change_by_hand, tiny_model

QUICK = {"facts": 3, "pace-check_every": 2, "pace-passages": 1, "pace-new_tokens": 2}


@pytest.fixture
def sequential(app: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_moments: None) -> AppTest:
    """The page with five facts, quick settings, C at hand, and no study."""
    monkeypatch.setattr(fact_sets, "load_facts", lambda *args: Facts(FACTS))
    monkeypatch.setattr(sequence_jobs, "SHIPPED", tmp_path / "none")
    goto(app, "sequential", method="r-rome", layer="1")
    app.number_input(key="sequencing-steps").set_value(3)
    app.number_input(key="sequencing-ridge").set_value(1e-3)
    for name, value in QUICK.items():
        app.number_input(key=f"sequence-{name}").set_value(value)
    return app.run()


def run_job(app: AppTest) -> AppTest:
    return end_of_jobs(app.button(key="run-sequence").click().run())


def test_an_empty_page_says_what_will_appear(sequential: AppTest) -> None:
    assert "Press **Run**" in texts(sequential.info)
    assert "Starts from the original model" in texts(sequential.caption)


def test_a_run_is_drawn_scrubbed_branched_and_compared(sequential: AppTest) -> None:
    run_job(sequential)

    assert not sequential.error and not sequential.exception, texts(sequential.error)
    values = {metric.label: metric.value for metric in sequential.metric}
    assert values["Facts edited"] == "3 of 3" and values["Retention"] != "–"
    (name,) = all_runs()
    assert name.startswith("r-rome-3-") and sequential.selectbox(key="sequence-shown").value == name

    run_job(sequential)  # the same wish is the same run, and nothing is left to do
    assert list(all_runs()) == [name]

    sequential.slider(key="sequence-step").set_value(1).run()
    assert "of this edit alone" in texts(sequential.caption)
    sequential.button(key="sequence-use").click().run()
    assert "step 1 (r-rome)" in edits_of(sequential)[0].label

    sequential.number_input(key="sequence-facts").set_value(4).run()
    end_of_jobs(sequential.button(key="sequence-branch").click().run())
    branch = next(run for run in all_runs().values() if run.parent)
    assert branch.parent == (name, 1) and len(branch.records) == 5
    assert branch.records[:2] == all_runs()[name].records[:2]
    assert sequential.selectbox(key="sequence-shown").value == branch.folder.name

    sequential.multiselect(key="sequence-others").set_value([name]).run()
    assert not sequential.error and not sequential.exception


def test_a_stopped_run_is_gone_on_with_as_it_was_begun(sequential: AppTest) -> None:
    run_job(sequential)
    run = next(iter(all_runs().values()))
    lines = (run.folder / "records.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "records.jsonl").write_text("".join(lines[:2]))  # as after a stop
    whole = [json.loads(line) for line in lines]
    sequential.number_input(key="sequencing-steps").set_value(2).run()

    assert sequential.button(key="sequence-resume").label == "Go on with the 2 facts left"
    end_of_jobs(sequential.button(key="sequence-resume").click().run())

    again = open_run(run.folder).records
    assert [record.edit for record in again] == [line["edit"] for line in whole]
    assert not sequential.error and "sequence-resume" not in [button.key for button in sequential.button]


def test_going_on_with_too_much_work_waiting_is_a_sentence(
    sequential: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(sequential)
    run = next(iter(all_runs().values()))
    lines = (run.folder / "records.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "records.jsonl").write_text("".join(lines[:2]))
    sequential.run()
    monkeypatch.setenv(public.SETTING, "1")
    monkeypatch.setenv("ROME_EXPLORER_MAX_JOBS", "0")

    for button in ("sequence-resume", "sequence-branch", "run-sequence"):
        sequential.button(key=button).click().run()
        assert "0 pieces of your work are waiting already" in texts(sequential.error), button
        assert not sequential.exception


def test_a_stranger_sees_no_run_of_others(sequential: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    run_job(sequential)
    (name,) = all_runs()
    copy = cache_dir() / "sequences" / "of-somebody-else"
    shutil.copytree(cache_dir() / "sequences" / name, copy)
    assert sorted(sequential.run().selectbox(key="sequence-shown").options) == sorted([name, copy.name])

    monkeypatch.setenv(public.SETTING, "1")
    assert sequential.run().selectbox(key="sequence-shown").options == [name]
    assert not sequential.multiselect(key="sequence-others").options


def test_a_batch_needs_a_method_that_takes_it(sequential: AppTest) -> None:
    sequential.number_input(key="sequence-pace-batch").set_value(2).run()

    assert "r-rome edits one fact at a time" in texts(sequential.warning)
    assert "run-sequence" not in [button.key for button in sequential.button]


# ------------------------------------------------------------------------------------------------- without the browser


def records(breaks: int = 4) -> list[Record]:
    """Six facts by hand; perplexity is a hundredfold from one of them on."""
    found = [Record(0, (), 0, "", "", "", 20.0, {}, 0.0, (), (), ())]
    for step in range(1, 7):
        own = (Check(step - 1, 0.6, 0.1, True),)
        earlier = tuple(Check(i, 0.1 * i, 0.25, False) for i in range(step - 1)) if step % 3 == 0 else ()
        ppl = 20.0 + step if step < breaks else 2000.0
        found.append(Record(step, (step - 1,), step, "rome", "x", "", ppl, {"a": 0.1}, 0.1, (), (*earlier, *own), ()))
    return found


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_curves_mark_the_collapse(look) -> None:
    figure = curves_figure({"one": records(), "two": records(99)}, "words", look)

    assert figure.layout.title.text == "one collapses at edit 4; two holds to edit 6"
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x"]
    assert [(cross.legendgroup, cross.x[0], cross.y[0]) for cross in crosses] == [("one", 4, 2000.0)]
    assert {trace.name for trace in figure.data if trace.showlegend} == {"one", "two"}
    retention = next(trace for trace in figure.data if trace.name == "one" and trace.error_y.array is not None)
    assert list(retention.x) == [3, 6] and list(retention.y) == pytest.approx([0.0, 0.4])
    assert finding({"one": records()}, 1000.0) == "one holds to edit 6"
    assert finding(dict.fromkeys("abcd", records()), 1000.0) == "4 runs hold to edit 6"
    assert finding(dict.fromkeys("ab", records()), 1000.0) == "a and b hold to edit 6"


def test_the_efficacy_curve_is_of_the_latest_facts() -> None:
    some = [replace(r, checks=(Check(r.step - 1, 0.1 if r.step == 1 else 0.6, 0.2, True),)) for r in records()[1:]]

    assert latest_efficacy([records()[0], *some]) == pytest.approx([None, 0, 1 / 2, 2 / 3, 3 / 4, 4 / 5, 5 / 6])


def test_the_retention_figure_has_a_row_a_check() -> None:
    figure = matrix_figure(records(), "words", LIGHT)

    (heat,) = figure.data
    assert list(heat.y) == [AT_ONCE, "after 3", "after 6"] and heat.z.shape == (3, 6)
    assert heat.z[2].tolist() == pytest.approx([-0.25, -0.15, -0.05, 0.05, 0.15, 0.5])
    assert figure.layout.title.text == "2 of 5 earlier edits hold at the last check"
    assert matrix_figure(records()[:1], "words", LIGHT).layout.title.text == "No earlier edit was checked yet"


@pytest.mark.usefixtures("random_moments")
def test_a_start_is_worked_off_and_its_run_described() -> None:
    lm = tiny_model()
    start = SequenceStart(FACTS[:2], config("emmet"), Pace(batch=2, passages=1, new_tokens=1), 5)
    assert work(lm, start, Job("test")) == 2
    run, *_ = all_runs().values()  # those that come with the project stand behind

    assert "emmet, layer 1" in caption(run) and "2 facts an edit" in caption(run) and "order seed 5" in caption(run)


def test_probes_of_one_edit_and_on_average() -> None:
    back = change_by_hand("reversed", "A is", (0.1, 0.2), (0.3, 0.2))
    question = replace(back.question, true_text="B is")
    back = replace(back, before=replace(back.before, question=question))

    assert probe_panel.row(back)["question"] == "A is … / B is …" and probe_panel.row(back)["new / true"] == "new"
    line = probe_panel.row(change_by_hand("what is near", "Near A is", (0.1, 0.2), (0.1, 0.1)))
    assert (line["new / true"], line["p before"], line["follows the edit"]) == ("new / true", "0.100 / 0.200", "no")
    tower = EditRequest(Prompt("The {} is in", "Eiffel Tower"), "Rome", "Paris")
    found = [question.text for question in probe_panel.list_questions(tower)]
    assert "A famous sight in the city of Rome is the" in found
    assert probe_panel.list_questions(EditRequest(Prompt("{} is", "Nobody"), "x")) == ()
