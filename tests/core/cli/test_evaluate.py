"""The console commands on a tiny model: what they print, write, refuse."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rome_core.cli import evaluate
from rome_core.evaluation.runs.execution import choose_facts
from rome_core.evaluation.runs.store import Store
from rome_core.facts.datasets import part_of
from studies.results import keep, section
from tests.core.evaluation.test_runs import tiny
from tests.tiny import save_model

SUBJECTS = ("Paris", "Lyon", "Zürich", "Köln", "Milan", "Rome", "Tokyo", "Japan")


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Arguments for a tiny model and a small file of facts."""
    model = save_model(tiny(), tmp_path / "model")
    records = [
        {
            "case_id": i,
            "prompt": f"The home of {subject} is",
            "subject": subject,
            "target_new": "Italy",
            "ground_truth": "France",
            "rephrase_prompt": f"The country of {subject} is",
            "locality_prompt": "Milan is in",
            "locality_ground_truth": "Rome",
        }
        for i, subject in enumerate(SUBJECTS)
    ]
    (tmp_path / "facts.json").write_text(json.dumps([*records, {"case_id": 99}]))
    return [
        *("--out", str(tmp_path / "run"), "--model", str(model), "--facts", str(tmp_path / "facts.json")),
        *("--records", "2", "--part", "test", "--methods", "r-rome,h-rome", "--layers", "1"),
        *("--prefixes", "3", "--generated", "2", "--passages", "1"),
    ]


def test_evaluate_prints_a_table_and_exports_it(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(asked) == 0

    out, err = capsys.readouterr()
    head, *rest = out.splitlines()
    assert head.split()[:8] == ["method", "stage", "n", "failed", "known", "S", "ES", "EM"]
    assert [line.split()[:3] for line in rest[1:3]] == [["r-rome@1", "after", "2"], ["h-rome@1", "after", "2"]]
    assert rest[0].split()[:4] == ["no", "edit", "before", "2"]
    assert {Path(line).name for line in rest[3:]} == {"scores.csv", "scores.tex", "scores.md", "scores.parquet"}
    assert "Left out: facts.json, record 9" in err
    store = Store(tmp_path / "run")
    subjects = {row.subject for row in store.rows()}
    test_part = {fact.prompt.subject for fact in evaluate.facts_from(evaluate.arguments(asked))}
    assert subjects <= test_part and len(test_part) < len(SUBJECTS), "hypernetworks are trained on the others"
    assert store.about["facts"] == "facts.json, test part" and store.about["prefixes"] == 3

    text = "\n".join(section(store))
    assert "## facts.json, test part, 2 records" in text and "| r-rome@1 | after | 2 | 0 |" in text
    again = next(line for line in text.splitlines() if line.startswith("rome-evaluate"))
    again = again.replace("FOLDER", str(tmp_path / "run")).replace("facts.json", str(tmp_path / "facts.json"))
    before = len(store.rows())
    assert evaluate.main([*again.split()[1:], *asked[2:4]]) == 0, "the run's own settings are not refused in its folder"
    assert len(Store(tmp_path / "run").rows()) == before

    keep(store, tmp_path / "kept")
    kept = Store(tmp_path / "kept")
    assert list(section(kept)) == list(section(store)), "a kept run has all numbers"
    keep(kept, kept.folder)
    assert len(Store(kept.folder).rows()) == len(store.rows()), "and is not its own source"
    told = [str(row) for row in kept.rows()]
    assert not [word for word in (*subjects, "The home of", "Milan") for row in told if word in row], "and no prompts"

    assert evaluate.main(["--out", str(tmp_path / "run"), "--show", "--known-only"]) == 0
    assert "scores-known.csv" in capsys.readouterr().out


def test_all_facts_can_be_asked_for(asked: list[str]) -> None:
    args = evaluate.arguments([*asked, "--part", "all"])

    assert [fact.prompt.subject for fact in evaluate.facts_from(args)] == list(SUBJECTS)
    args = argparse.Namespace(**{**vars(args), "part": "test"})
    assert {part_of(fact) for fact in evaluate.facts_from(args)} == {"test"}


def test_known_facts_can_be_asked_for(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = evaluate.arguments([*asked, "--part", "all", "--choose", "known"])
    facts = evaluate.facts_from(args)
    monkeypatch.setattr(
        "rome_core.evaluation.runs.execution.known_facts", lambda lm, some: [f in facts[3:] for f in some]
    )

    assert set(evaluate.request_from(args).choose(tiny())) <= set(facts[3:])
    assert evaluate.request_from(args).described == "facts.json, known"
    args = evaluate.arguments(asked)
    assert evaluate.request_from(args).choose(tiny()) == choose_facts(evaluate.facts_from(args), 2, 0)
    assert evaluate.request_from(args).described == "facts.json, test part"


def test_minus_one_is_all_records(asked: list[str]) -> None:
    args = evaluate.arguments([*asked, "--part", "all", "--records", "-1"])

    assert len(evaluate.request_from(args).choose(tiny())) == len(SUBJECTS)


def test_one_fact_of_ones_own_is_evaluated(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its subject is in the train part by its hash, which is no reason to leave a user's own fact out."""
    (record,) = [r for r in json.loads((tmp_path / "facts.json").read_text()) if r.get("subject") == "Paris"]
    (tmp_path / "one.json").write_text(json.dumps([record]))
    at = asked.index("--part")
    args = [*asked[:at], *asked[at + 2 :], "--facts", str(tmp_path / "one.json"), "--methods", "r-rome"]

    assert evaluate.command(args) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:4] for line in out.splitlines()[1:3]] == [
        ["no", "edit", "before", "1"],
        ["r-rome@1", "after", "1", "0"],
    ]
    assert "All facts are taken: 1, fewer than --records 2." in err
    assert Store(tmp_path / "run").about["facts"] == "one.json"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layers", "a"], "argument --layers: numbers of layers are needed, e.g. 3,5,7; not 'a'"),
        (["--device", "gpu"], "argument --device: this machine has no device 'gpu'; it has cpu"),
        (["--out", __file__], "is a file; give a folder"),
        (["--out", ""], "argument --out: a path is needed"),
        (["--facts", "nowhere.json"], "there is no file 'nowhere.json'"),
        (["--records", "0"], "or -1 for all, not '0'"),
        (["--records", "-2"], "or -1 for all, not '-2'"),
        (["--methods", "mempit"], "there is no method 'mempit'"),
        (["--group", "0"], "argument --group: a whole number of 1 or more is needed"),
        (["--prefixes", "0"], "a whole number from 1 to 21 is needed"),
        (["--neighbours", "-1"], "neighbours must be a whole number from 0 to 100, not -1"),
        (["--workers", "-1"], "argument --workers: a whole number of 0 or more"),
        (["--workers", "0", "--address", "auto"], "--workers 0 is this process, and --address a cluster"),
        (["--gpus", "1"], "--gpus is of workers"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_leaves_nothing(
    asked: list[str], tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        evaluate.command([*asked, *options])

    assert leaving.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_the_model_cannot_do_is_one_sentence_and_leaves_nothing(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # not installed
    for options, sentence in (
        (["--layers", "99"], "Layer 99 does not exist. "),
        (["--workers", "2"], "Several workers need Ray, which is not installed."),
        (["--address", "auto"], "Several workers need Ray, which is not installed."),
        (["--model", str(tmp_path)], "has no config.json"),
        (["--choose", "known"], "knows none of the "),
        (["--references", str(tmp_path / "facts.json")], "is no table from objects to lists of texts"),
    ):
        assert evaluate.command([*asked, *options]) == 1
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error and not (tmp_path / "run").exists()

    assert evaluate.command([*asked, "--workers", "0", "--methods", "r-rome"]) == 0, "0 is this process"


def test_threads_are_of_this_process_where_there_are_no_workers(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(evaluate, "carry_out", lambda *_, **__: iter(()))

    evaluate.work(evaluate.arguments([*asked, "--threads", "3"]))

    assert seen == [3]


def test_ctrl_c_says_what_is_kept(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = evaluate.carry_out

    def stopped_after(n: int) -> Any:
        def some(*given: Any, **options: Any) -> Any:
            for done, row in enumerate(real(*given, **options)):
                if done == n:
                    raise KeyboardInterrupt
                yield row

        return some

    monkeypatch.setattr(evaluate, "carry_out", stopped_after(0))
    monkeypatch.setattr("rome_core.evaluation.runs.execution.moments_for", lambda *_: stop())
    assert evaluate.command(asked) == 130
    assert "Stopped. Nothing was finished, and nothing is kept." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()

    monkeypatch.setattr(evaluate, "carry_out", stopped_after(2))
    assert evaluate.command(asked) == 130
    assert (
        f"Stopped. Finished parts that are kept in '{tmp_path / 'run'}': 2. The same command goes on"
        in capsys.readouterr().err
    )


def stop() -> None:
    raise KeyboardInterrupt


def test_a_disk_that_is_full_is_one_sentence(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "0.parquet")

    monkeypatch.setattr("rome_core.evaluation.runs.store.write_whole", full)

    assert evaluate.command(asked) == 1
    assert "Error: '0.parquet' cannot be read or written: No space left on device." in capsys.readouterr().err


def test_a_run_in_which_nothing_could_be_edited_has_failed(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("C is singular")

    monkeypatch.setattr("rome_core.evaluation.solving.solve", broken)

    assert evaluate.command(asked) == 1
    out, err = capsys.readouterr()
    assert "C is singular" in out and "No fact could be edited: the reasons stand above." in err
