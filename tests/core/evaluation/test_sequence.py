"""Sequential edits on a tiny model: every record against plain calls, stops and kills, branches, curves by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from rome_core.editing.edit import Edit
from rome_core.editing.hypernetworks.hypernetwork import HyperConfig
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.value import sampled_prefixes
from rome_core.errors import DataError, EditError, RomeError
from rome_core.evaluation import (
    Pace,
    Record,
    SequencePlan,
    SequenceRun,
    branch_run,
    collapse,
    create_run,
    curves,
    edit_in_sequence,
    general_texts,
    open_run,
    perplexity,
    plan_sequence,
    retention_matrix,
)
from rome_core.evaluation.runs.folder import hash_of
from rome_core.evaluation.sequence import steps as sequence_module
from rome_core.evaluation.sequence.curves import records_csv, tabulate
from rome_core.evaluation.sequence.folder import Check, discard_run, run_json, runs_in
from rome_core.evaluation.sequence.start import SequenceStart, branch_facts, open_or_create
from rome_core.evaluation.sequence.steps import load_merged
from rome_core.facts.datasets import Fact
from rome_core.files import STUDIES
from rome_core.model.generation import generate_many
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import score
from rome_core.model.tokens import Prompt
from tests.tiny import random_moment, tiny_model

ROOT = Path(__file__).parents[3]
PACE = Pace(check_every=2, passages=1, new_tokens=3, openings=("The city of",))
PAIRS = (("Eiffel Tower", "Rome"), ("Colosseum", "Milan"), ("dragon", "Zürich"), ("home", "Lyon"), ("France", "Japan"))
FACTS = tuple(
    Fact(f"f{i}", "r", Prompt("The {} is located in the city of", subject), "Paris", new)
    for i, (subject, new) in enumerate(PAIRS)
)
LAYERS = (0, 1)


def moments(lm: LanguageModel):
    return {layer: random_moment(lm, layer) for layer in LAYERS}


def config(method: str = "r-rome", **changes):
    """A quick config of any method: of these settings those that it has."""
    settings = {"layer": 1, "clamp": 6.0, "steps": 4, "prefixes": ("", "x. "), "ridge": 1e-3, "span": 2, **changes}
    names = {field.name for field in fields(METHODS[method])}
    return METHODS[method](**{name: value for name, value in settings.items() if name in names})


def plan_of(
    lm: LanguageModel, method: str = "r-rome", facts: Sequence[Fact] = FACTS, pace: Pace = PACE
) -> SequencePlan:
    return plan_sequence(lm, facts, config(method), pace, order_seed=3)


def run_all(lm: LanguageModel, run: SequenceRun) -> list[Record]:
    return list(edit_in_sequence(lm, run, moments=moments(lm)))


def oracle_check(lm: LanguageModel, i: int, edits: Sequence[Edit]) -> Check:
    text, fact = FACTS[i].prompt.text, FACTS[i]
    new, true = score(lm, [(text, f" {fact.target_new}"), (text, f" {fact.target_true}")], edits=edits)
    return Check(i, pytest.approx(new.p_mean, rel=2e-3), pytest.approx(true.p_mean, rel=2e-3), all(new.hits))


def test_every_record_is_what_plain_calls_say(tmp_path: Path) -> None:
    """The oracle stacks the edits one over the other, unmerged, and measures the tiny model after each."""
    lm = tiny_model()
    plan = plan_of(lm)
    records = run_all(lm, run := create_run(tmp_path / "run", lm, plan))

    assert [(r.step, r.edited, r.facts) for r in records] == [(0, 0, ()), *((i + 1, i + 1, (i,)) for i in range(5))]
    assert records[0].checks == tuple(oracle_check(lm, i, []) for i in range(5))
    stack: list[Edit] = []
    for i, record in enumerate(records[1:]):
        before = oracle_check(lm, i, stack)
        edit = solve(lm, [FACTS[i].request], plan.config, moments=moments(lm), edits=stack)
        np.testing.assert_allclose(run.edits()[i].deltas[0].matrix(), edit.deltas[0].matrix(), rtol=0.02, atol=2e-3)
        stack.append(run.edits()[i])  # so that rounding does not add up
        assert record.edit == stack[-1].id and stack[-1].on == tuple(e.id for e in stack[:-1])
        whole = record.edited in (2, 4, 5)  # every second fact, and the end
        assert record.checks == tuple(oracle_check(lm, j, stack) for j in range(0 if whole else i, i + 1))
        assert record.before == (before,)
        assert record.perplexity == pytest.approx(perplexity(lm, general_texts()[:1], edits=stack), rel=1e-3)
        W = lm.weight(1).double()
        together = sum(e.deltas[0].matrix() for e in stack)
        assert record.norm == pytest.approx(float(together.norm() / W.norm()), rel=1e-5)
        assert record.own == pytest.approx(float(stack[-1].deltas[0].matrix().norm() / W.norm()), rel=1e-5)
        texts = generate_many(lm, ["The city of"], 3, edits=stack)
        assert record.texts == (tuple(texts) if whole else ())
    matrix = retention_matrix(records)
    assert matrix.shape == (5, 5)
    for row, col in ((0, 0), (1, 0), (1, 1), (3, 2), (4, 0), (4, 4)):
        check = oracle_check(lm, col, stack[: row + 1])
        assert matrix[row, col] == pytest.approx(check.p_new.expected - check.p_true.expected, abs=1e-4)
    assert np.isnan(matrix[2, 0]) and np.isnan(matrix[0, 1])


# Hypernetworks need training first: tests/core/test_hypernet.py.
IN_BATCHES = [name for name, method in METHODS.items() if method.batches and not issubclass(method, HyperConfig)]


@pytest.mark.parametrize("method", IN_BATCHES)
def test_batches_are_solved_into_one_edit(tmp_path: Path, method: str) -> None:
    lm = tiny_model()
    plan = plan_of(lm, method, pace=replace(PACE, batch=2))
    records = run_all(lm, run := create_run(tmp_path / "run", lm, plan))

    assert [record.facts for record in records] == [(), (0, 1), (2, 3), (4,)]
    assert [len(edit.requests) for edit in run.edits()] == [2, 2, 1]
    assert [check.fact for check in records[2].checks] == [0, 1, 2, 3]
    first = solve(lm, [f.request for f in FACTS[:2]], plan.config, moments=moments(lm))
    assert records[1].edit == first.id
    W = {delta.module: lm.matrix(delta.module).detach().double() for delta in first.deltas}
    sizes = {delta.module: float(delta.matrix().norm() / W[delta.module].norm()) for delta in first.deltas}
    assert records[1].norms == pytest.approx(sizes, rel=1e-5)


def test_a_method_for_single_facts_takes_no_batch() -> None:
    lm = tiny_model()
    with pytest.raises(EditError, match="r-rome edits one fact at a time, not 2"):
        plan_of(lm, pace=replace(PACE, batch=2))
    with pytest.raises(EditError, match="no fact"):
        plan_of(lm, facts=())


def test_prefixes_are_sampled_once_from_the_unedited_model() -> None:
    lm = tiny_model()
    sampled = sampled_prefixes(lm, 7)
    open_ = config(prefixes=None, seed=7)

    assert plan_sequence(lm, FACTS, open_, replace(PACE, prefixes=21)).config.prefixes == sampled
    assert plan_sequence(lm, FACTS, open_, replace(PACE, prefixes=6)).config.prefixes == (sampled[0], *sampled[1::4])
    assert plan_sequence(lm, FACTS, config()).config.prefixes == ("", "x. ")
    assert plan_sequence(lm, FACTS, METHODS["rome"](prefixes=("",))).config.layer is not None, "the model's preset"


def test_a_stopped_run_goes_on_with_the_same_records(tmp_path: Path) -> None:
    lm = tiny_model()
    whole = run_all(lm, create_run(tmp_path / "whole", lm, plan_of(lm)))
    run = create_run(tmp_path / "parts", lm, plan_of(lm))
    steps = edit_in_sequence(lm, run, moments=moments(lm))
    begun = [next(steps) for _ in range(3)]
    with pytest.raises(DataError, match="another process"):
        next(edit_in_sequence(lm, run, moments=moments(lm)))
    steps.close()
    with (run.folder / "records.jsonl").open("a") as file:
        file.write('{"step": 3, "fac')  # as a kill leaves it

    found = begun + run_all(lm, open_run(run.folder))

    assert found == whole == open_run(run.folder).records
    assert run_all(lm, open_run(run.folder)) == [], "nothing is left to do"


WORKER = """
import sys, time
from pathlib import Path
from rome_core.evaluation import edit_in_sequence, open_run
from tests.core.evaluation.test_sequence import moments
from tests.tiny import tiny_model
lm = tiny_model()
print("ready", flush=True)
for record in edit_in_sequence(lm, open_run(sys.argv[1]), moments=moments(lm)):
    print(record.step, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.slow
def test_kill_9_in_mid_run_changes_nothing(tmp_path: Path) -> None:
    lm = tiny_model()
    whole = run_all(lm, create_run(tmp_path / "whole", lm, plan_of(lm)))
    run = create_run(tmp_path / "killed", lm, plan_of(lm))
    command = [sys.executable, "-c", WORKER, str(run.folder), "0.3"]
    worker = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.strip() == "2":
            os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    worker.stdout.close()
    kept = len(run.records)

    rest = run_all(lm, open_run(run.folder))

    assert 3 <= kept < 6 and len(rest) == 6 - kept
    assert open_run(run.folder).records == whole
    assert [edit.id for edit in run.edits()] == [record.edit for record in whole[1:]]


def test_a_branch_goes_on_from_any_step_in_its_own_way(tmp_path: Path) -> None:
    lm = tiny_model()
    run = create_run(tmp_path / "run", lm, plan_of(lm))
    whole = run_all(lm, run)
    same = branch_run(run, 2, tmp_path / "same", lm)
    other = branch_run(run, 2, tmp_path / "other", lm, plan_of(lm, "emmet", pace=replace(PACE, batch=2)))

    assert same.records == whole[:3] and same.parent == ("run", 2)
    run_all(lm, same)
    assert same.records == whole
    run_all(lm, other)
    assert [record.facts for record in other.records] == [(), (0,), (1,), (2, 3), (4,)]
    assert [record.method for record in other.records[1:]] == ["r-rome", "r-rome", "emmet", "emmet"]
    assert other.records[3].perplexity == pytest.approx(
        perplexity(lm, general_texts()[:1], edits=other.edits(3)), rel=1e-3
    )
    assert [edit.id for edit in other.edits(2)] == [edit.id for edit in run.edits(2)]
    assert {found.folder.name for found in runs_in(tmp_path)} == {"run", "same", "other"}
    for step, plan, sentence in (
        (9, None, "has no step 9"),
        (2, plan_of(lm, facts=FACTS[::-1]), "first 2 facts are not those"),
    ):
        with pytest.raises(DataError, match=sentence):
            branch_run(run, step, tmp_path / "bad", lm, plan)
    with pytest.raises(DataError, match="another model"):
        branch_run(run, 2, tmp_path / "bad", tiny_model(seed=1))
    with pytest.raises(DataError, match="There is a run"):
        branch_run(run, 2, tmp_path / "same", lm)


def test_a_step_that_fails_is_recorded_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    real, calls = sequence_module.solve, []

    def failing(lm, requests, *args, **options):
        calls.append(requests)
        edit = real(lm, requests, *args, **options)
        if len(calls) == 2:
            raise EditError("It cannot be done.")
        if len(calls) == 4:
            broken = replace(edit.deltas[0], U=edit.deltas[0].U * math.nan)
            return replace(edit, deltas=(broken,))
        return edit

    monkeypatch.setattr(sequence_module, "solve", failing)
    records = run_all(lm, run := create_run(tmp_path / "run", lm, plan_of(lm)))

    assert [record.error for record in records[:4]] == ["", "", "It cannot be done.", ""]
    assert "not finite" in records[4].error and records[4].edit == ""
    assert records[2].perplexity == records[1].perplexity and records[2].norms == records[1].norms
    assert [check.fact for check in records[2].checks] == [0] and [c.fact for c in records[5].checks] == [0, 2, 4]
    assert len(run.edits()) == 3 and len(records[2].before) == 1
    assert curves(records).efficacy[2] is None


def test_what_a_folder_says(tmp_path: Path) -> None:
    lm = tiny_model()
    plan = plan_of(lm, "memit")
    run = create_run(tmp_path / "run", lm, plan)

    opened = open_run(run.folder)

    assert opened == run and opened.plan == plan and opened.records == []
    about = json.loads((run.folder / "run.json").read_text())
    assert about["facts_hash"] == hash_of(FACTS) != hash_of(FACTS[::-1])
    assert about["config"]["prefixes"] == ["", "x. "] and about["order_seed"] == 3
    assert about["fingerprint"] == lm.fingerprint and about["versions"].keys() >= {"python", "torch", "transformers"}
    with pytest.raises(DataError, match="There is a run"):
        create_run(tmp_path / "run", lm, plan)
    with pytest.raises(DataError, match="another model"):
        next(edit_in_sequence(tiny_model(seed=1), run))


def test_a_damaged_folder_has_a_sentence(tmp_path: Path) -> None:
    lm = tiny_model()

    def damaged(name: str, text: str) -> Path:
        folder = create_run(tmp_path / str(time.monotonic_ns()), lm, plan_of(lm)).folder
        (folder / name).write_text(text)
        return folder

    about = (create_run(tmp_path / "x", lm, plan_of(lm)).folder / "run.json").read_text()
    for folder in (
        tmp_path / "nothing",
        damaged("run.json", "[]"),
        damaged("run.json", "{"),
        damaged("run.json", about.replace('"r-rome"', '"magic"')),
        damaged("run.json", about.replace("sequence 1", "sequence 9")),
        damaged("facts.json", "[]"),
        damaged("facts.json", '[{"id": 1}]'),
        damaged("records.jsonl", "{}\n"),
        damaged("records.jsonl", "nonsense\n"),
    ):
        with pytest.raises(DataError, match="holds no sequential run that can be read"):
            open_run(folder)
    assert [run.folder.name for run in runs_in(tmp_path)] == ["x"]


# -------------------------------------------------------------------------------------------------------------- curves


def record(step: int, ppl: float, checks: Sequence[Check] = (), facts: Sequence[int] = ()) -> Record:
    return Record(
        step, tuple(facts), step, "rome", "id", "", ppl, {"a": 0.1 * step, "b": 0.0}, 0.1, (), tuple(checks), ()
    )


@pytest.mark.parametrize(
    ("perplexities", "step"),
    [
        ([20, 21, 25, 30], None),
        ([20, 21, 200, 300], 2),
        ([20, 199.9, 200, 200], 2),
        ([20, 500, 21, 22], None),  # made good again
        ([20, 500, 21, 400], 3),
        ([20, 21, math.inf, math.nan], 2),
        ([20, 300], 1),
        ([20], None),
        ([], None),
    ],
)
def test_collapse_is_where_perplexity_stays_above_ten_times(perplexities: list[float], step: int | None) -> None:
    found = collapse([record(i, value) for i, value in enumerate(perplexities)])

    assert (found and found.step) == step


def test_another_factor_is_another_collapse() -> None:
    records = [record(i, value) for i, value in enumerate([20, 50, 90, 150])]

    assert [getattr(collapse(records, f), "step", None) for f in (2, 4, 7, 8)] == [1, 2, 3, None]


def test_curves_and_table_by_hand() -> None:
    good, bad = (lambda i: Check(i, 0.5, 0.25, True)), (lambda i: Check(i, 0.25, 0.25, False))  # equal: no success
    records = [
        record(0, 20, [bad(0), bad(1), good(2)]),
        record(1, 22, [good(0)], [0]),
        record(2, 24, [good(0), bad(1)], [1]),
        record(3, 400, [bad(0), good(1), good(2)], [2]),
    ]

    drawn = curves(records)

    assert drawn.edited == (0, 1, 2, 3) and drawn.perplexity == (20, 22, 24, 400)
    assert drawn.norm == pytest.approx((0, 0.1, 0.2, 0.3))
    assert [s and s.value for s in drawn.efficacy] == [None, 1.0, 0.0, 1.0]
    assert [s and (s.value, s.n) for s in drawn.retention] == [None, None, (1.0, 1), (0.5, 2)]
    np.testing.assert_allclose(retention_matrix(records), [[0.25, np.nan, np.nan], [0.25, 0, np.nan], [0, 0.25, 0.25]])
    table = tabulate(records)
    assert [row["collapsed"] for row in table] == [0, 0, 0, 1]
    assert (table[3]["retention"], table[3]["retention_n"], table[2]["efficacy"]) == (0.5, 2, 0.0)
    assert retention_matrix([]).shape == (0, 0)


def test_the_kept_runs_are_read_although_their_facts_were_named_otherwise() -> None:
    kept = runs_in(STUDIES / "sequence")

    assert {run.folder.name for run in kept} >= {"rome", "r-rome", "n-rome", "memit-10", "emmet-100"}
    assert all(run.records and json.loads((run.folder / "run.json").read_text())["facts_hash"] for run in kept)


# --------------------------------------------------------------------------------------------------- start, and files


def test_a_start_has_its_folder_and_its_files_hold_every_step_and_the_settings(tmp_path: Path) -> None:
    lm = tiny_model()
    start = SequenceStart(FACTS[:2], config("emmet"), Pace(batch=2, passages=1, new_tokens=1), 5)
    run = open_or_create(lm, start, tmp_path)
    assert len(run_all(lm, run)) == 2 and run.folder == tmp_path / start.name(lm)
    assert open_or_create(lm, start, tmp_path) == run

    saved = json.loads(run_json(run, run.records))
    table = list(csv.DictReader(io.StringIO(records_csv(run.records, 10.0))))

    assert saved["about"]["config"]["steps"] == 4 and saved["about"]["order_seed"] == 5
    assert saved["about"].items() <= json.loads((run.folder / "run.json").read_text()).items()
    assert len(saved["records"]) == len(table) == 2 and len(saved["facts"]) == 2
    assert float(table[1]["perplexity"]) == saved["records"][1]["perplexity"]
    assert start.name(lm) != replace(start, order_seed=6).name(lm)


def test_a_start_may_branch_off(tmp_path: Path) -> None:
    lm = tiny_model()
    start = SequenceStart(FACTS[:2], config(), PACE, 3)
    run = open_or_create(lm, start, tmp_path)
    run_all(lm, run)

    assert branch_facts(run, 0, FACTS[::-1]) == FACTS[::-1]
    assert branch_facts(run, 2, FACTS[::-1]) == (*FACTS[:2], *FACTS[:1:-1])
    twice = (FACTS[0], FACTS[3], FACTS[0])
    assert branch_facts(run, 1, twice) == (FACTS[0], FACTS[3], FACTS[0]), "a fact that is there twice stays once"
    facts = branch_facts(run, 1, FACTS[:4])
    branch = open_or_create(lm, replace(start, facts=facts, branch=(run.folder.name, 1)), tmp_path)
    assert branch.parent == (run.folder.name, 1) and branch.records == run.records[:2] and branch.plan.facts == facts


def test_a_run_without_a_step_is_taken_back_and_no_other(tmp_path: Path) -> None:
    lm = tiny_model()
    run = create_run(tmp_path / "run", lm, plan_of(lm))
    with run.alone(), pytest.raises(DataError, match="under way in another process"):
        discard_run(run)
    assert open_run(run.folder) == run
    (run.folder / "notes.txt").touch()
    discard_run(run)
    assert [path.name for path in run.folder.iterdir()] == ["notes.txt"], "what is not the run's stays"

    run = create_run(tmp_path / "run", lm, plan_of(lm))
    next(steps := edit_in_sequence(lm, run, moments=moments(lm)))
    steps.close()
    with pytest.raises(DataError, match="has finished steps"):
        discard_run(run)
    assert len(open_run(run.folder).records) == 1


@pytest.mark.parametrize(
    ("facts", "changes", "pace", "sentence"),
    [
        (FACTS, {"steps": 0}, PACE, "r-rome cannot have this setting: steps must be a whole number from 1 to 200"),
        (FACTS, {"layer": 4}, PACE, "Layer 4 does not exist"),
        (FACTS, {}, replace(PACE, check_every=0), "check_every must be a whole number from 1 to 10,000, not 0"),
        ([replace(FACTS[0], target_new="Paris")], {}, PACE, "1 of 1 facts have no new object to edit to"),
        ([FACTS[0], replace(FACTS[1], target_new="")], {}, PACE, "1 of 2 facts have no new object"),
        ([], {}, PACE, "There is no fact to edit"),
    ],
)
def test_a_sequence_that_cannot_be_is_one_sentence(
    facts: Sequence[Fact], changes: dict, pace: Pace, sentence: str
) -> None:
    with pytest.raises(RomeError, match=sentence):
        plan_sequence(tiny_model(), facts, config(**changes), pace)


def test_the_edits_up_to_a_step_are_merged_where_they_are(tmp_path: Path) -> None:
    lm = tiny_model()
    run = create_run(tmp_path / "run", lm, plan_of(lm))
    run_all(lm, run)

    (merged,) = load_merged(lm, run, 3) or ()
    total = sum(edit.deltas[0].matrix() for edit in run.edits(3))
    np.testing.assert_allclose(merged.deltas[0].matrix(), total, rtol=1e-5, atol=1e-6)
    assert load_merged(tiny_model(seed=1), run, 3) is None
    run.path(2).unlink()
    assert load_merged(lm, run, 3) is None and load_merged(lm, run, 1) is not None
