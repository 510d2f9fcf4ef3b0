"""The console commands on a tiny model: what they print, write, refuse."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

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
        *("--records", "2", "--methods", "r-rome,h-rome", "--layers", "1"),
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
    test_part = {fact.prompt.subject for fact in evaluate.facts_from(evaluate.parser().parse_args(asked))}
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
    args = evaluate.parser().parse_args([*asked, "--part", "all"])

    assert [fact.prompt.subject for fact in evaluate.facts_from(args)] == list(SUBJECTS)
    args = argparse.Namespace(**{**vars(args), "part": "test"})
    assert {part_of(fact) for fact in evaluate.facts_from(args)} == {"test"}


def test_known_facts_can_be_asked_for(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = evaluate.parser().parse_args([*asked, "--part", "all", "--choose", "known"])
    facts = evaluate.facts_from(args)
    monkeypatch.setattr(
        "rome_core.evaluation.runs.execution.known_facts", lambda lm, some: [f in facts[3:] for f in some]
    )

    assert set(evaluate.request_from(args).choose(tiny())) <= set(facts[3:])
    assert evaluate.request_from(args).described == "facts.json, known"
    args = evaluate.parser().parse_args(asked)
    assert evaluate.request_from(args).choose(tiny()) == choose_facts(evaluate.facts_from(args), 2, 0)
    assert evaluate.request_from(args).described == "facts.json, test part"
