"""Runs in a folder: what is written, stopping and killing and going on, failures, groups, many processes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rome_core.editing.edit import Edit
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.second_moment import save_moment
from rome_core.errors import DataError, RomeError
from rome_core.evaluation import solving
from rome_core.evaluation.answers import ask, pairs_of, questions_about
from rome_core.evaluation.fact_measures import MeasureSettings, measure_fact, score_pairs
from rome_core.evaluation.perplexity import general_texts
from rome_core.evaluation.runs import work
from rome_core.evaluation.runs.execution import FACTS_AT_ONCE, carry_out, choose_facts, choose_known, with_layers
from rome_core.evaluation.runs.folder import alone, append_line, cut_off, hash_of, read_lines
from rome_core.evaluation.runs.in_memory import evaluate, evaluate_each
from rome_core.evaluation.runs.request import RunRequest
from rome_core.evaluation.runs.store import Row, Store
from rome_core.evaluation.runs.tables import (
    as_latex,
    as_markdown,
    columns_for,
    export,
    merge_unedited,
    present_columns,
    score_lines,
    scores_csv,
)
from rome_core.evaluation.runs.work import Plan
from rome_core.evaluation.scores import summarise
from rome_core.facts.datasets import Fact, part_of
from rome_core.files import STUDIES, cache_dir
from rome_core.model.edits import relative_norms
from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import load_model
from rome_core.model.tokens import Prompt
from tests.core.evaluation.test_answers import BARE, FACT
from tests.tiny import random_edit, random_moment, save_model, tiny_model, watch

LAYERS = 4
FACTS = tuple(
    Fact(
        id=f"city/{i}",
        relation="city",
        prompt=Prompt("{} is a city in the country of" if i % 2 else "The home of {} is", subject),
        target_true="France",
        target_new="Italy",
        paraphrases=(f"The country of {subject} is",),
        neighbours=("The Colosseum is located in the city of", "Milan is in"),
        neighbour_true="Rome",
    )
    for i, subject in enumerate(("Paris", "Lyon", "Zürich", "Köln"))
)
QUICK = MeasureSettings(generated=2, passages=1)
SETTINGS = {"layer": 1, "clamp": 8.0, "steps": 3, "prefixes": ("", "x. ", "So it is. "), "ridge": 1e-3}
MASS = {**SETTINGS, "layer": 2, "span": 2}


def tiny() -> LanguageModel:
    """A tiny model whose C of the layers in use is in the cache."""
    lm = tiny_model("llama", layers=LAYERS)
    for layer in (1, 2):
        save_moment(random_moment(lm, layer), cache_dir() / "moments" / f"{lm.fingerprint}-{layer}.npz")
    return lm


def plan(facts=FACTS, names=("rome", "r-rome", "memit"), **changes) -> Plan:
    methods = {name: METHODS[name](**(MASS if hasattr(METHODS[name], "span") else SETTINGS)) for name in names}
    return Plan(facts, methods, QUICK, **changes)


def table(store: Store) -> list[dict]:
    """Everything but the clock, in a fixed order."""
    rows = sorted(store.rows(), key=lambda row: (row.method, row.position, row.stage))
    return [{k: v for k, v in asdict(row).items() if "seconds" not in k} for row in rows]


def same(a: list[dict], b: list[dict]) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # NaN equals NaN there


# -------------------------------------------------------------------------------------------------------- what it does


def test_rows_are_those_of_edits_solved_one_by_one(tmp_path: Path) -> None:
    lm = tiny()
    rows = list(carry_out(lm, plan(FACTS[:2], ("rome", "c-rome", "emmet", "memit")), tmp_path / "run"))

    assert {(row.method, row.stage) for row in rows} == {
        (m, s) for m in ("rome", "c-rome", "emmet", "memit") for s in ("before", "after")
    }
    for name in ("rome", "c-rome", "emmet", "memit"):
        config = METHODS[name](**(MASS if name == "memit" else SETTINGS))
        edit = solve(lm, [FACTS[0].request], config)  # by itself; the run shared δ between the policies
        prefix = edit.config.use_prefix
        assert bool(prefix) == (name == "c-rome")
        before = measure_fact(lm, FACTS[0], QUICK, prefix=prefix)
        after = measure_fact(lm, FACTS[0], QUICK, edits=[edit], prefix=prefix)
        (found,) = (row for row in rows if row.method == name and row.stage == "after" and row.position == 0)
        assert found.values == pytest.approx(after.values(before), rel=1e-3, abs=1e-4)
        assert found.delta_norm == pytest.approx(edit.delta_norm, rel=1e-4)
        assert found.relative_norm == pytest.approx(max(relative_norms(lm, [edit]).values()), rel=1e-4)
        assert found.error == "" and found.solve_seconds > 0 and found.texts == list(after.texts)


def test_delta_is_optimised_once_for_all_that_seek_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []

    def counted(lm, requests, config, **options):
        solved.append(config.name)
        return solve(lm, requests, config, **options)

    monkeypatch.setattr(solving, "solve", counted)

    list(carry_out(tiny(), plan(FACTS[:1], ("emmet", "rome", "r-rome", "memit", "alphaedit")), tmp_path / "a"))
    assert solved == ["emmet", "rome", "memit"], "EMMET keeps no δ for others; MEMIT's stands elsewhere"
    solved.clear()
    list(carry_out(tiny(), plan(FACTS[:1], ("rome", "r-rome", "emmet", "h-rome")), tmp_path / "c"))
    assert solved == ["rome"]
    solved.clear()

    other = plan(FACTS[:1], ("rome", "r-rome"))
    other = replace(other, methods={**other.methods, "r-rome": METHODS["r-rome"](**SETTINGS | {"steps": 2})})
    list(carry_out(tiny(), other, tmp_path / "b"))
    assert solved == ["rome", "r-rome"], "other settings, another δ"


def test_scores_can_be_made_again_from_the_stored_log_probabilities(tmp_path: Path) -> None:
    """By other code, from the Parquet files alone."""
    list(carry_out(tiny(), plan(FACTS[:2]), tmp_path / "run"))

    for path in (tmp_path / "run" / "parts").glob("*/*.parquet"):
        for record in pq.read_table(path).to_pylist():
            values = dict(record["values"])
            for letter, kind, sign in (("E", "edit", 1), ("P", "paraphrase", 1), ("N", "neighbour", -1)):
                some = [a for a in record["answers"] if a["kind"] == kind]
                lead = [sign * (np.exp(np.mean(a["new"])) - np.exp(np.mean(a["true"]))) for a in some]
                assert values[letter + "S"] == np.mean(np.array(lead) > 0)
                assert values[letter + "M"] == pytest.approx(np.mean(lead))
            near = [a for a in record["answers"] if a["kind"] == "neighbour"]
            assert values["specificity"] == pytest.approx(np.mean([np.mean(a["true_hits"]) for a in near]))


def test_the_stages_of_a_group_are_kept_apart(tmp_path: Path) -> None:
    lm = tiny()
    p = plan(FACTS[:4], ("h-rome", "memit"), group=2)
    rows = list(carry_out(lm, p, tmp_path / "run"))

    first = solve(lm, [FACTS[2].request], p.methods["h-rome"])
    second = solve(lm, [FACTS[3].request], p.methods["h-rome"], edits=[first])
    before = measure_fact(lm, FACTS[2], QUICK)
    expected = {
        "before": before.values(),
        "after": measure_fact(lm, FACTS[2], QUICK, edits=[first]).values(before),
        "end": measure_fact(lm, FACTS[2], QUICK, edits=[first, second]).values(before),
    }
    mine = {row.stage: row.values for row in rows if row.method == "h-rome" and row.position == 2}
    for stage, values in expected.items():
        assert mine[stage] == pytest.approx(values, rel=1e-4, abs=1e-5)
    assert mine["after"] != mine["end"]
    batch = solve(lm, [FACTS[0].request, FACTS[1].request], p.methods["memit"])
    (end,) = (row for row in rows if row.method == "memit" and row.position == 1 and row.stage == "end")
    assert end.edit == batch.id, "a method for batches solves the group at once"
    assert {line.stage for line in score_lines(rows)} == {"before", "after", "end"}


def test_a_failed_record_has_its_reason_and_ends_nothing(tmp_path: Path) -> None:
    lm = tiny_model("llama", layers=LAYERS, max_position_embeddings=40)
    save_moment(random_moment(lm, 1), cache_dir() / "moments" / f"{lm.fingerprint}-1.npz")
    long = replace(FACTS[0], id="long", prompt=Prompt("The city of {} is far away" + ", far away" * 20, "Paris"))
    p = replace(plan((FACTS[0], long, FACTS[1]), ("rome", "r-rome")), measures=replace(QUICK, passages=0))
    rows = list(carry_out(lm, p, tmp_path / "run"))

    failed = [row for row in rows if row.error]
    assert [(row.method, row.fact) for row in failed] == [("rome", "long"), ("r-rome", "long")]
    assert "can read 40" in failed[0].error and failed[0].values == {}
    (before, after, *_) = score_lines(rows)
    assert (before.n, before.failed, after.n, after.failed) == (2, 1, 2, 1)
    assert list(carry_out(lm, p, tmp_path / "run")) == [], "what failed is not tried again and again"
    assert Store(tmp_path / "run").forget_failures() == 2
    assert [(row.method, row.fact) for row in carry_out(lm, p, tmp_path / "run")] == [
        ("rome", "long"),
        ("r-rome", "long"),
    ]


@pytest.mark.parametrize("method", ["memit", "h-rome", "c-rome"])
def test_facts_with_one_id_share_nothing(tmp_path: Path, method: str) -> None:
    """Joined files repeat ids: three facts of id 1 have the numbers that they have with ids 0, 1 and 2."""
    found = []
    for ids in ("111", "012"):
        facts = tuple(replace(fact, id=id) for fact, id in zip(FACTS, ids, strict=False))
        list(carry_out(tiny(), plan(facts, (method,), group=3), tmp_path / ids))
        rows = table(store := Store(tmp_path / ids))
        assert [row["fact"] for row in rows if row["stage"] == "before"] == list(ids), "the id is kept as a label"
        found.append(([{**row, "fact": ""} for row in rows], score_lines(store.rows())))

    (one, lines), (other, expected) = found
    assert same(one, other) and lines == expected
    assert len({row["values"]["EM"] for row in one if row["stage"] == "before"}) == 3, "each has a before of its own"


def test_a_failure_leaves_its_namesakes_in(tmp_path: Path) -> None:
    lm = tiny_model("llama", layers=LAYERS, max_position_embeddings=40)
    save_moment(random_moment(lm, 1), cache_dir() / "moments" / f"{lm.fingerprint}-1.npz")
    long = replace(FACTS[0], prompt=Prompt("The city of {} is far away" + ", far away" * 20, "Paris"))
    facts = tuple(replace(fact, id="1") for fact in (FACTS[0], long, FACTS[1]))
    p = replace(plan(facts, ("rome",)), measures=replace(QUICK, passages=0))

    before, after = score_lines(list(carry_out(lm, p, tmp_path / "run")))

    assert (before.n, before.failed, after.n, after.failed) == (2, 1, 2, 1)


@pytest.mark.parametrize(("failure", "told"), [(RuntimeError, "RuntimeError: x"), (TypeError, "TypeError: x")])
def test_an_unforeseen_failure_is_logged_and_recorded_and_ends_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: type[Exception],
    told: str,
) -> None:
    real = work.measure_fact

    def broken(lm, fact, *args, **options):
        if fact == FACTS[0]:
            raise failure("x")
        return real(lm, fact, *args, **options)

    monkeypatch.setattr(work, "measure_fact", broken)
    rows = list(carry_out(tiny(), plan(FACTS[:2], ("rome", "r-rome")), tmp_path / "run"))

    assert [(row.method, row.fact, row.error) for row in rows if row.error] == [
        (method, FACTS[0].id, told) for method in ("rome", "r-rome")
    ]
    assert [(line.stage, line.n, line.failed) for line in score_lines(rows)] == [("before", 1, 1), ("after", 1, 1)] * 2
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[0] is failure and "Group 0 by rome, r-rome" in record.getMessage()


def test_matrices_that_cannot_be_factored_are_a_reason_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def singular(*args, **options):
        raise torch.linalg.LinAlgError("C is singular")

    monkeypatch.setattr(solving, "solve", singular)
    (row,) = carry_out(tiny(), plan(FACTS[:1], ("rome",)), tmp_path / "run")

    assert "C is singular" in row.error and not caplog.records


def test_perplexity_of_the_untouched_model_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, calls = tiny(), list[tuple]()
    real = work.perplexity
    monkeypatch.setattr(work, "perplexity", lambda *args, edits: calls.append(edits) or real(*args, edits=edits))

    rows = list(carry_out(lm, plan(FACTS[:3], ("rome", "r-rome")), tmp_path / "run"))

    assert calls == [()]
    expected = real(lm, general_texts()[: QUICK.passages], edits=())
    assert {row.values["perplexity"] for row in rows if row.stage == "before"} == {expected}


# ------------------------------------------------------------------------------------------------------ stop and go on


def test_a_stopped_run_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    lm = tiny()
    whole = list(carry_out(lm, plan(), tmp_path / "whole"))
    steps = carry_out(lm, plan(), tmp_path / "run")
    first = [next(steps) for _ in range(5)]
    steps.close()
    rest = list(carry_out(lm, plan(), tmp_path / "run"))

    assert len(first) == 5 and len(whole) == 2 * 3 * len(FACTS)
    kept = Store(tmp_path / "run").rows()
    written = 6  # the row that was not taken any more belongs to a part that was on the disk
    assert len(rest) == len(whole) - written and len(kept) == len(whole)
    assert same(table(Store(tmp_path / "run")), table(Store(tmp_path / "whole")))
    assert sum(s["parts"] for s in Store(tmp_path / "run").sittings()) == 3 * len(FACTS)


def test_more_facts_and_methods_may_join(tmp_path: Path) -> None:
    lm = tiny()
    options = {"set_hash": hash_of(FACTS), "source": "cities"}
    list(carry_out(lm, plan(FACTS[:2], ("rome",), **options), tmp_path / "run"))
    added = list(carry_out(lm, plan(FACTS[:3], ("r-rome", "rome"), **options), tmp_path / "run"))

    assert {(row.method, row.position) for row in added} == {("rome", 2), ("r-rome", 0), ("r-rome", 1), ("r-rome", 2)}
    about = Store(tmp_path / "run").about
    assert about["records"] == 3 and set(about["methods"]) == {"rome", "r-rome"} and about["facts"] == "cities"
    assert (
        about["facts_hash"] == hash_of(FACTS) and about["versions"]["torch"] and about["fingerprint"] == lm.fingerprint
    )
    list(carry_out(lm, plan(FACTS[:2], ("rome",), **options), tmp_path / "run"))
    assert Store(tmp_path / "run").about == about


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"facts": FACTS[1:]}, "another facts_hash"),
        ({"group": 2}, "another group"),
        ({"measures": replace(QUICK, seed=5)}, "another measures"),
        ({"methods": {"rome": METHODS["rome"](**SETTINGS | {"steps": 4})}}, "other settings of rome"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, change: dict, what: str) -> None:
    lm, first = tiny(), plan(FACTS[:1], ("rome",))
    list(carry_out(lm, first, tmp_path / "run"))

    with pytest.raises(DataError, match=what):
        list(carry_out(lm, replace(first, **change), tmp_path / "run"))


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no run's folder"):
        Store(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="another version"):
        Store(tmp_path)


def test_what_cannot_be_evaluated_is_one_sentence_before_anything_is_done(tmp_path: Path) -> None:
    lm, good = tiny(), plan(FACTS[:2], ("rome",))
    same_objects = tuple(replace(fact, target_new=fact.target_true) for fact in FACTS)
    for wrong, sentence in (
        (replace(good, facts=()), "nothing to evaluate: there is no fact"),
        (replace(good, methods={}), "nothing to evaluate: there is no method"),
        (replace(good, group=0), "Groups of 0 facts"),
        (replace(good, prefixes=0), "with 0 prefixes cannot be evaluated"),
        (
            replace(good, measures=replace(QUICK, passages=-1)),
            "passages must be a whole number from 0 to 1,000, not -1",
        ),
        (
            replace(good, facts=same_objects),
            "4 of 4 facts have no new object to edit to. None is given, or it is the true",
        ),
        (replace(good, facts=(FACTS[0], same_objects[1])), "1 of 2 facts have no new object"),
        (replace(good, methods={"rome": METHODS["rome"](layer=4)}), "Layer 4 does not exist"),
        (replace(good, methods={"rome": METHODS["rome"](**SETTINGS | {"steps": 0})}), "steps must be a whole number"),
    ):
        with pytest.raises(RomeError, match=sentence):
            list(carry_out(lm, wrong, tmp_path / "run"))
        assert not (tmp_path / "run").exists()
    for wrong_facts in (same_objects, (FACTS[0], replace(FACTS[1], target_new=" "))):
        with pytest.raises(DataError, match="have no new object"):
            evaluate(lm, wrong_facts, METHODS["rome"](**SETTINGS))


def test_a_start_that_fails_leaves_no_folder_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, wrong = tiny(), plan(FACTS[:1], ("rome",), group=2)
    with monkeypatch.context() as patch:
        patch.setattr("rome_core.evaluation.runs.execution.moments_for", stopped)
        with pytest.raises(KeyboardInterrupt):
            list(carry_out(lm, wrong, tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        list(carry_out(lm, wrong, tmp_path / "run", workers=stopped))
    assert not (tmp_path / "run").exists()

    rows = list(carry_out(lm, plan(FACTS[:1], ("rome",)), tmp_path / "run"))
    assert len(rows) == 2 and Store(tmp_path / "run").about["group"] == 1


def stopped(*_: object) -> Any:
    raise KeyboardInterrupt


DRIVER = """
import sys, time
from tests.core.evaluation.test_runs import carry_out, plan
from rome_core.model.loading import load_model

def slowly(items, label, total, /):
    for item in items:
        yield item
        time.sleep(0.2)

for row in carry_out(load_model(sys.argv[1]), plan(), sys.argv[2], track=slowly):
    print(row.method, flush=True)
"""


def test_a_killed_run_goes_on_to_the_same_table(tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same call again."""
    folder, model = tmp_path / "run", save_model(tiny(), tmp_path / "model")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(model), str(folder)], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    for _ in range(5):
        assert driver.stdout.readline()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    done = len(list(folder.glob("parts/*/*.parquet")))
    assert 0 < done < 3 * len(FACTS)
    (folder / "parts" / "rome" / "000001.parquet.99.part").write_bytes(b"half a file")

    lm = load_model(model)
    rest = list(carry_out(lm, plan(), folder))

    list(carry_out(lm, plan(), tmp_path / "whole"))
    assert len(rest) == 2 * (3 * len(FACTS) - done)
    assert same(table(Store(folder)), table(Store(tmp_path / "whole")))


# ------------------------------------------------------------------------------------------------------ many processes


@pytest.mark.slow
def test_two_workers_give_the_same_numbers_and_one_may_die(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from rome_core.evaluation.runs.ray_workers import ray_workers

    lm, model = tiny(), save_model(tiny(), tmp_path / "model")
    workers = ray_workers(2, partial(Dying(tmp_path / "died"), model))
    asked = plan(FACTS[:2], ("rome", "r-rome", "memit"))
    rows = list(carry_out(lm, asked, tmp_path / "run", workers=workers))

    list(carry_out(load_model(model), asked, tmp_path / "whole"))
    assert (tmp_path / "died").exists(), "the first worker was killed in its first task"
    assert not [row.error for row in rows if row.error]
    one, two = table(Store(tmp_path / "whole")), table(Store(tmp_path / "run"))
    for a, b in zip(one, two, strict=True):
        assert (a["method"], a["fact"], a["stage"]) == (b["method"], b["fact"], b["stage"])
        assert a["values"] == pytest.approx(b["values"], rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_cluster_of_one_cpu_does_the_work_of_two_workers(tmp_path: Path) -> None:
    """A real one: the second worker would never be placed."""
    ray = pytest.importorskip("ray")
    from rome_core.evaluation.runs.ray_workers import ray_workers

    model, said = save_model(tiny(), tmp_path / "model"), list[str]()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        workers = ray_workers(2, partial(load_model, model), threads=3, address="auto", say=said.append)
        rows = list(carry_out(load_model(model), plan(FACTS[:3], ("rome",)), tmp_path / "run", workers=workers))
    finally:
        ray.shutdown()
    assert len(rows) == 6 and not [row.error for row in rows if row.error]
    assert said == [
        "No machine of the Ray cluster has 3 CPUs: a worker takes 1.",
        "The Ray cluster has room for 1 of 2 workers: these do the work.",
    ]


class FakeRay:
    """A cluster by hand, in this process. A worker beyond its CPUs never starts, and who waits for one waits forever.

    deaths: which tasks take their worker with them, and how many machines go with it.
    """

    class exceptions:  # noqa: N801  (as ray has it)
        class RayActorError(Exception):
            pass

    def __init__(self, *machines: dict[str, float], busy: float = 0.0, deaths: Sequence[int] = ()) -> None:
        self.machines, self.busy, self.deaths = list(machines), busy, list(deaths)
        self.joined: list[dict[str, Any]] = []
        self.actors, self.wanted, self.killed, self.done = 0, list[dict[str, float]](), 0, 0

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.joined.append(options)
        if not self.machines:
            raise ConnectionError("Could not find any running Ray instance.\nLook around.")

    def shutdown(self) -> None:
        self.joined.append({"left": True})

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": bool(machine), "Resources": machine} for machine in self.machines]

    def cluster_resources(self) -> dict[str, float]:
        kinds = {kind for machine in self.machines for kind in machine}
        return {kind: sum(machine.get(kind, 0.0) for machine in self.machines) for kind in kinds}

    def available_resources(self) -> dict[str, float]:
        return {**self.cluster_resources(), "CPU": self.cluster_resources()["CPU"] - self.busy}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **wanted: float) -> Any:
        self.wanted.append(wanted)
        return lambda made: SimpleNamespace(remote=lambda *given: self.actor(made(*given)))

    def actor(self, engine: Any) -> Any:
        self.actors += 1
        placed = self.actors <= sum(int(machine.get("CPU", 0)) for machine in self.machines)
        return SimpleNamespace(work=SimpleNamespace(remote=lambda task: (placed, lambda: engine.work(task))))

    def wait(self, futures: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        ready = [future for future in futures if future[0]][:num_returns]
        assert ready, "this would wait forever"
        return ready, [future for future in futures if future not in ready]

    def get(self, future: Any) -> Any:
        self.done += 1
        if self.done in self.deaths:
            self.actors -= 1
            self.machines = [{} for _ in self.machines] if self.deaths.count(self.done) > 1 else self.machines
            raise self.exceptions.RayActorError("the worker died\nlong story")
        return future[1]()

    def kill(self, actor: Any) -> None:
        self.killed += 1


def run_on(
    monkeypatch: pytest.MonkeyPatch, folder: Path, ray: FakeRay, n: int = 2, **options: Any
) -> tuple[list[Row], list[str]]:
    """Three facts by ROME on a cluster, and what was said."""
    from rome_core.evaluation.runs.ray_workers import ray_workers

    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("rome_core.evaluation.runs.ray_workers.SETTLE", 0.01)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    lm, said = tiny(), list[str]()
    workers = ray_workers(n, lambda: lm, say=said.append, **{"address": "head:6379", **options})
    return list(carry_out(lm, plan(FACTS[:3], ("rome",)), folder, workers=workers)), said


def test_a_cluster_that_is_too_small_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, said = run_on(monkeypatch, tmp_path / "a", ray := FakeRay({"CPU": 1.0}))

    assert len(rows) == 6 and not [row.error for row in rows if row.error]
    assert said == ["The Ray cluster has room for 1 of 2 workers: these do the work."]
    assert ray.wanted == [{"num_cpus": 1, "num_gpus": 0.0}] and ray.killed == 1
    assert ray.joined == [{"address": "head:6379", "log_to_driver": False}, {"left": True}]

    rows, said = run_on(monkeypatch, tmp_path / "b", ray := FakeRay({"CPU": 2.0}, {"CPU": 3.0}), 9, threads=4)
    assert len(rows) == 6 and ray.wanted == [{"num_cpus": 3, "num_gpus": 0.0}]
    assert said == [
        "No machine of the Ray cluster has 4 CPUs: a worker takes 3.",
        "The Ray cluster has room for 1 of 9 workers: these do the work.",
    ]

    rows, said = run_on(monkeypatch, tmp_path / "c", ray := FakeRay({"CPU": 2.0}), address=None, threads=4)
    assert len(rows) == 6 and not said and ray.wanted == [{"num_cpus": 1, "num_gpus": 0.0}], "one's own is as large"
    assert ray.joined[0]["address"] == "local" and ray.joined[0]["num_cpus"] == 2


@pytest.mark.parametrize(
    ("ray", "options", "sentence"),
    [
        (
            FakeRay(),
            {},
            "No Ray cluster can be used at 'head:6379'. Could not find any running Ray instance. Start one",
        ),
        (FakeRay(), {"address": None}, "Ray cannot be started here. Could not find"),
        (FakeRay({"CPU": 2.0}, busy=2.0), {}, r"no room for a worker \(CPUs: 1, GPUs: 0\). It has CPUs: 2, free: 0;"),
        (FakeRay({"CPU": 2.0}), {"gpus": 1.0}, r"no room for a worker \(CPUs: 1, GPUs: 1\).*GPUs: 0, free: 0"),
        (FakeRay({"CPU": 1.0}, deaths=[2, 2]), {}, "has no machine left for a worker. Start one again"),
    ],
    ids=["nowhere", "not here", "busy", "no GPU", "gone"],
)
def test_a_cluster_without_room_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RomeError, match=sentence):
        run_on(monkeypatch, tmp_path / "run", ray, **options)
    assert (tmp_path / "run").exists() == bool(ray.deaths), "what was finished before is kept"


def test_a_worker_that_dies_is_replaced_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = run_on(monkeypatch, tmp_path / "a", FakeRay({"CPU": 1.0}, deaths=[2]), 1)
    assert len(rows) == 6 and not [row.error for row in rows if row.error]

    rows, _ = run_on(monkeypatch, tmp_path / "b", FakeRay({"CPU": 1.0}, deaths=[1, 2, 3]), 1)
    assert {row.error for row in rows} == {"", "3 workers died on it: the worker died"}


def test_workers_stand_on_one_machine_each() -> None:
    from rome_core.evaluation.runs.ray_workers import seats

    def cluster(*resources: dict[str, float], alive: bool = True) -> list[dict[str, Any]]:
        return [{"Alive": alive, "Resources": own} for own in resources]

    assert seats(cluster({"CPU": 3.0}, {"CPU": 3.0}), 2, 0.0) == 2, "2 + 2, and not 6 / 2"
    assert seats(cluster({"CPU": 8.0, "GPU": 1.0}), 1, 0.1) == 8
    assert seats(cluster({"CPU": 99.0, "GPU": 1.0}), 1, 0.1) == 10
    assert seats(cluster({"CPU": 8.0}), 1, 0.5) == seats(cluster({"CPU": 8.0}, alive=False), 1, 0.0) == 0


class Dying:
    """Loads a model; the first process of all to do so is killed a moment later, in the middle of its work."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, model: Path) -> LanguageModel:
        lm = load_model(model)
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return lm
        import threading

        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return lm


# -------------------------------------------------------------------------------------------------------------- tables


def rows_by_hand() -> list[Row]:
    def row(method: str, i: int, stage: str, es: float, known: bool = True, **more) -> Row:
        values = {"ES": es, "PS": es, "NS": 1.0, "NKL": 0.25, "perplexity": 50.0}
        return Row(method, i, f"f{i}", "s", stage, known, values=values, **more)

    return [
        *(row("m_1", i, "before", 0.0, i == 0) for i in range(2)),
        *(row("m_1", i, "after", float(i == 0), i == 0) for i in range(2)),
        Row("m_1", 2, "f2", "s", "after", error="no"),
        row("m_1", 2, "before", 1.0),
    ]


def test_a_table_by_hand() -> None:
    before, after = score_lines(rows_by_hand())

    assert (before.stage, after.stage) == ("before", "after")
    assert (after.n, after.failed, after.known) == (2, 1, 1)
    assert before.n == 2, "the stages are of the same facts"
    assert after.scores["ES"].value == 0.5 and after.scores["S"].value == pytest.approx(3 / (2 + 2 + 1))
    (_, known) = score_lines(rows_by_hand(), known_only=True)
    assert known.n == 1 and known.scores["ES"].value == 1.0
    names = present_columns([before, after])
    assert names == ["S", "ES", "PS", "NS", "NKL", "perplexity"]
    assert "| m_1 | after | 2 | 1 | 1 | 60.0 [" in as_markdown([after], names)
    assert as_latex([after], names).count("\\\\") == 2 and "m\\_1 & after & 2 & 60.0" in as_latex([after], names)
    assert "m_1,after,2,1,1,perplexity,50.0" in scores_csv([after]).replace("49.99999999999999", "50.0").replace(
        "50.00000000000001", "50.0"
    )


def test_the_csv_has_every_measure() -> None:
    rows = list(csv.DictReader(io.StringIO(scores_csv(score_lines(rows_by_hand())))))

    assert {row["measure"] for row in rows} == {"ES", "PS", "NS", "NKL", "perplexity", "S"}


def test_the_unedited_model_has_one_line_where_it_is_the_same() -> None:
    before, after = score_lines(rows_by_hand())
    behind = replace(before, method="c-rome", scores={**before.scores, "ES": before.scores["NS"]})

    found = merge_unedited([before, after, replace(before, method="m_2"), behind])

    assert [(line.method, line.stage) for line in found] == [
        *(("no edit", "before"), ("m_1", "after"), ("c-rome", "before"))
    ]
    assert merge_unedited([after]) == [after]


def test_questions_have_zsre_columns() -> None:
    asked = Row("m", 0, "f", "s", "after", answers=[{"kind": "edit", "text": "Who made it?"}])

    assert "efficacy" in columns_for([asked]) and "ES" not in columns_for([asked])
    assert "ES" in columns_for(rows_by_hand())


def test_a_run_under_way_compares_methods_on_the_same_facts() -> None:
    rows = [Row(method, i, f"f{i}", "s", "before", values={"ES": 0.0}) for i in range(3) for method in "ab"]

    unequal = rows[:-1]  # method b has not come to the third fact yet
    assert [(line.method, line.n) for line in score_lines(unequal)] == [("a", 2), ("b", 2)]
    assert [line.method for line in merge_unedited(score_lines(unequal))] == ["no edit"]
    assert [(line.method, line.n) for line in score_lines(rows)] == [("a", 3), ("b", 3)]
    assert [line.n for line in score_lines([rows[0], rows[3]])] == [1, 1]  # none in common yet: what there is


def test_a_run_is_exported_into_its_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", {"methods": {}, "model": "tiny"})
    for i, row in enumerate(rows_by_hand()):
        store.write("m_1", i, [row])

    paths = export(Store(tmp_path / "run"))

    assert sorted(path.name for path in paths) == ["scores.csv", "scores.md", "scores.parquet", "scores.tex"]
    kept = pq.read_table(tmp_path / "run" / "scores.parquet")
    assert json.loads(kept.schema.metadata[b"run"])["model"] == "tiny"
    assert {"method", "stage", "measure", "value", "low", "high", "n"} <= set(kept.column_names)


def test_a_part_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    store, (row, *_) = Store(tmp_path, {"methods": {"m_1": {}}}), rows_by_hand()
    store.write("m_1", 0, [row])
    assert store.rows() == store.rows() and store.rows()[0].subject == row.subject

    store.write("m_1", 0, [replace(row, subject="another")])
    assert [row.subject for row in store.rows()] == ["another"]


def test_a_damaged_part_is_one_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", {"methods": {"m": {}}})
    store.write("m", 0, rows_by_hand()[:1])
    (part,) = (tmp_path / "run" / "parts").glob("*/*.parquet")
    part.write_bytes(b"PAR1 and nothing else")

    with pytest.raises(DataError, match=r"000000.parquet' cannot be read\..*Delete it, and the run does it again"):
        Store(tmp_path / "run").rows()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"format": "rome-explorer run 1"}))
    with pytest.raises(DataError, match="does not say its methods"):
        Store(tmp_path / "run")


def test_rows_survive_their_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", {"methods": {}})
    answer = {"kind": "edit", "text": "t", "new": [-1.0], "true": [-2.0, -3.0]}
    answer |= {"new_hits": [True], "true_hits": [False, True]}
    full = Row("m", 3, "a/b", "Zürich", "after", True, values={"ES": 1.0}, texts=["é"], answers=[answer])
    store.write("m", 0, [full])
    (found,) = Store(tmp_path / "run").rows()

    assert math.isnan(found.delta_norm)
    assert replace(found, delta_norm=0.0, relative_norm=0.0, solve_seconds=0.0, measure_seconds=0.0) == replace(
        full, delta_norm=0.0, relative_norm=0.0, solve_seconds=0.0, measure_seconds=0.0
    )


# --------------------------------------------------------------------------------------------------------------- parts


def test_a_longer_choice_begins_with_the_shorter_one() -> None:
    assert choose_facts(FACTS, 4, 1)[:2] == choose_facts(FACTS, 2, 1)
    assert len({choose_facts(FACTS, 4, seed) for seed in range(10)}) > 5
    assert sorted(fact.id for fact in choose_facts(FACTS, None, 3)) == [fact.id for fact in FACTS]
    with pytest.raises(DataError, match="-1 facts cannot be chosen"):
        choose_facts(FACTS, -1, 0)


def test_a_set_without_a_test_part_is_not_called_empty() -> None:
    train = tuple(fact for fact in FACTS if part_of(fact) != "test")
    asked = RunRequest("cities", "", train, 2)

    assert train and len(replace(asked, test_only=False).choose(tiny())) == min(2, len(train))
    with pytest.raises(DataError, match=f"None of the {len(train)} facts is in the test part. Half of all subjects"):
        asked.choose(tiny())


def test_known_facts_are_chosen_in_the_same_order_and_no_more_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, many = tiny(), [replace(FACTS[0], id=str(i)) for i in range(10 * FACTS_AT_ONCE)]
    asked: list[Fact] = []

    def every_third(_: LanguageModel, some: list[Fact]) -> list[bool]:
        asked.extend(some)
        return [int(fact.id) % 3 == 0 for fact in some]

    monkeypatch.setattr("rome_core.evaluation.runs.execution.known_facts", every_third)
    order = choose_facts(many, None, 5)

    assert choose_known(lm, many, 3, 5) == tuple(fact for fact in order if int(fact.id) % 3 == 0)[:3]
    assert asked == list(order[: len(asked)]) and len(asked) < len(many) / 2
    assert len(choose_known(lm, many, 1000, 5)) == len(range(0, len(many), 3))
    with pytest.raises(DataError, match="knows none of the 2 facts: it says the true object of none by itself"):
        choose_known(lm, [many[1], many[2]], 1, 5)
    with pytest.raises(DataError, match="There are no facts of which the model could know some"):
        choose_known(lm, [], 1, 5)
    with pytest.raises(DataError, match="-1 facts cannot be chosen"):
        choose_known(lm, many, -1, 5)


def test_methods_at_several_layers() -> None:
    found = with_layers({"rome": METHODS["rome"]()}, [1, 3])

    assert list(found) == ["rome@1", "rome@3"] and [c.layer for c in found.values()] == [1, 3]  # type: ignore[attr-defined]
    assert with_layers({"rome": METHODS["rome"]()}, []) == {"rome": METHODS["rome"]()}


def test_fewer_prefixes_for_all(tmp_path: Path) -> None:
    from rome_core.evaluation.runs.execution import prepare

    lm = tiny()
    p = prepare(lm, replace(plan(FACTS[:1]), prefixes=3))

    chosen = {config.prefixes for config in p.methods.values()}  # type: ignore[attr-defined]
    (prefixes,) = chosen
    assert len(prefixes) == 3 and prefixes[0] == ""


# -------------------------------------------------------------------------------------------------------------- folder


def test_the_kept_runs_are_read_and_gone_on_with(tmp_path: Path) -> None:
    for name in ("counterfact", "known", "zsre"):
        kept = tmp_path / name
        shutil.copytree(STUDIES / "evaluation" / name, kept)
        about = Store(kept).about
        assert Store(kept, {key: about[key] for key in about.keys() - {"format", "versions", "prompts"}}).about == about
        assert len(score_lines(Store(kept).rows())) > 2 and Store(kept).sittings()


def test_a_line_that_was_cut_off_is_passed_over_and_then_removed(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    assert list(read_lines(path)) == []
    append_line(path, {"step": 0})
    with path.open("a") as file:
        file.write('{"step": 1, "fac')

    assert list(read_lines(path)) == [{"step": 0}]
    cut_off(path)
    append_line(path, {"step": 1, "name": "Zürich"})
    assert path.read_text(encoding="utf-8").splitlines() == ['{"step": 0}', '{"step": 1, "name": "Zürich"}']


def test_a_run_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(DataError, match="another process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


# ----------------------------------------------------------------------------------------------------------- in memory


def in_memory(**changes):
    return METHODS["r-rome"](**{"layer": 1, "clamp": 8.0, "steps": 6, "prefixes": ("",), "ridge": 1e-3, **changes})


def values_of(lm: LanguageModel, fact: Fact, edits: Sequence[Edit] = ()) -> dict[str, float]:
    """ES … NM, by another way."""
    return score_pairs(pairs_of(ask(lm, questions_about(fact), edits=edits)))


def test_every_fact_is_edited_by_itself_on_the_untouched_model() -> None:
    lm = tiny_model()
    moments = {1: random_moment(lm, 1)}
    facts = (FACT, replace(FACT, id="other", target_new="Milan"))
    seen: list[tuple[str, int]] = []

    found = evaluate(lm, facts, in_memory(), moments=moments, track=watch(seen))

    expected: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for fact in facts:
        before, after = (row for row in found.rows if row.fact == fact.id)
        edit = solve(lm, [fact.request], in_memory(), moments=moments)
        assert (before.stage, after.stage, before.error, after.error) == ("before", "after", "", "")
        assert after.delta_norm == pytest.approx(edit.delta_norm)
        assert after.values != before.values
        expected["before"].append(values_of(lm, fact))
        expected["after"].append(values_of(lm, fact, [edit]))
    for scores, values in ((found.before, expected["before"]), (found.scores, expected["after"])):
        for name, score in summarise(values).items():
            assert (scores[name].value, scores[name].low, scores[name].n) == (
                *(pytest.approx(score.value, abs=1e-5), pytest.approx(score.low, abs=1e-5)),
                score.n,
            )
    assert found.failed == () and seen == [("Editing facts", 2)]


def test_edits_that_are_active_stay_active() -> None:
    lm = tiny_model()
    first, moments = random_edit(lm, 2), {1: random_moment(lm, 1)}

    ((before, after),) = evaluate_each(lm, [FACT], in_memory(), moments=moments, edits=[first])

    edit = solve(lm, [FACT.request], in_memory(), moments=moments, edits=[first])
    for row, edits in ((before, [first]), (after, [first, edit])):
        expected = values_of(lm, FACT, edits)
        assert {name: row.values[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_a_fact_that_cannot_be_edited_is_counted_and_not_hidden() -> None:
    lm = tiny_model("gpt2", n_positions=24)
    moments = {1: random_moment(lm, 1)}
    long = replace(BARE, id="long", prompt=Prompt("The city of {} is far away" + ", far away" * 10, "Paris"))

    found = evaluate(lm, [BARE, long, replace(BARE, id="last")], in_memory(), moments=moments)

    (failed,) = found.failed
    assert failed.fact == "long" and "24" in failed.error
    assert failed.values == {} and math.isnan(failed.delta_norm)
    assert list(dict.fromkeys(row.fact for row in found.rows)) == ["bare", "long", "last"]
    assert found.scores["ES"].n == found.before["ES"].n == 2
    nowhere = evaluate(lm, [FACT], in_memory(layer=9), moments=moments)
    assert "Layer 9 does not exist" in nowhere.failed[0].error and nowhere.scores == nowhere.before == {}


# ------------------------------------------------------------------------------------------------------- as asked for


def asked_for(**changes) -> RunRequest:
    return replace(RunRequest("cities", "hash", FACTS, 2, methods=("r-rome",), layers=(1,), measures=QUICK), **changes)


def test_a_folder_serves_all_sizes_and_methods_of_the_same_settings() -> None:
    lm = tiny()

    assert asked_for().folder(lm) == asked_for(n=4, methods=("rome",)).folder(lm)
    others = [
        asked_for(order_seed=1),
        asked_for(layers=()),
        asked_for(group=2),
        asked_for(test_only=False),
        asked_for(set_hash="x"),
        asked_for(known_only=True),
    ]
    assert len({a.folder(lm) for a in [asked_for(), *others]}) == 7


def test_what_is_asked_for_is_planned_and_read(tmp_path: Path) -> None:
    lm, wide = tiny(), asked_for(methods=("rome", "r-rome"), prefixes=2, test_only=False)
    p = wide.plan(lm)
    assert p.facts == choose_facts(FACTS, 2, 0) and list(p.methods) == ["rome@1", "r-rome@1"]
    assert (p.source, p.set_hash, p.prefixes) == ("cities", "hash", 2)
    assert asked_for().plan(lm).source == "cities, test part"
    list(carry_out(lm, p, tmp_path / "run"))

    rows = replace(wide, n=1, methods=("rome",)).rows(Store(tmp_path / "run"))
    assert {(row.method, row.position) for row in rows} == {("rome@1", 0)}
