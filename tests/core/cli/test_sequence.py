"""The console command on a tiny model: it begins, goes on, branches, and says what is wrong in one sentence."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from rome_core.cli import sequence as command
from rome_core.evaluation.sequence.folder import open_run
from rome_core.methods import DEFAULT_METHOD, METHODS
from tests.core.evaluation.test_sequence import FACTS
from tests.tiny import tiny_model

SHORT = ["--part", "all", "--records", "4", "--check-every", "2", "--passages", "1", "--new-tokens", "2"]
SETTINGS = ["layer=1", "clamp=6", "steps=3", "prefixes=('', 'x. ')", "ridge=1e-3"]
TINY = [*SHORT, *(part for text in SETTINGS for part in ("--set", text))]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_moments: None) -> None:
    """The tiny model under any name, its C, and a file of five facts."""
    lm = tiny_model()
    records = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": fact.prompt.template,
                "subject": fact.prompt.subject,
                "target_true": {"str": fact.target_true},
                "target_new": {"str": fact.target_new},
            },
            "paraphrase_prompts": [],
            "neighborhood_prompts": [],
        }
        for i, fact in enumerate(FACTS)
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rome_core.cli.terminal.load_model", lambda name, **options: lm)


def call(*args: str) -> int:
    return command.main(["--facts", "facts.json", *args])


def test_a_run_its_table_and_going_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--out", "a", *TINY) == 0

    printed = capsys.readouterr().out
    assert "2 facts · perplexity" in printed and "of 1 earlier ones" in printed and "collapse" in printed
    run = open_run("a")
    assert len(run.records) == 5 and run.plan.order_seed == 0 and run.plan.config.steps == 3  # type: ignore[attr-defined]
    assert sorted(fact.id for fact in run.plan.facts) != [fact.id for fact in run.plan.facts], "shuffled by the seed"
    table = list(csv.DictReader(Path("a/table.csv").read_text().splitlines()))
    assert [row["edited"] for row in table] == list("01234") and float(table[4]["perplexity"]) > 1
    before = run.records

    assert call("--out", "a", *TINY) == call("--out", "a", "--resume") == call("--out", "a", "--show") == 0
    assert open_run("a").records == before

    for other in (["--set", "steps=4"], ["--order-seed", "5"], ["--records", "3"], ["--check-every", "3"]):
        with pytest.raises(command.DataError, match="begun with other settings"):
            call("--out", "a", *TINY, *other)


def test_a_branch_with_another_method() -> None:
    call("--out", "a", *TINY)
    branch = ["--out", "b", "--branch-of", "a", "--step", "2", *TINY, "--method", "emmet", "--batch", "2"]
    assert call(*branch) == 0

    records = open_run("b").records
    assert [record.method for record in records] == ["", DEFAULT_METHOD, DEFAULT_METHOD, "emmet"]
    assert records[:3] == open_run("a").records[:3] and len(records[3].facts) == 2
    assert call(*branch) == 0 and open_run("b").records == records


def test_what_is_wrong_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for args, sentence in (
        (["--set", "colour=red"], f"'colour=red' is no setting of {DEFAULT_METHOD}"),
        (["--batch", "3"], "one fact at a time"),
        (["--resume"], "holds no sequential run"),
        (["--branch-of", "nowhere"], "holds no sequential run"),
    ):
        monkeypatch.setattr(sys, "argv", ["rome-sequence", "--facts", "facts.json", "--out", "new", *SHORT, *args])
        assert command.command() == 1
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error
    monkeypatch.setattr(command, "main", lambda argv: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command.command() == 130 and "goes on with the rest" in capsys.readouterr().err


def test_settings_of_any_method_are_read_as_what_they_are() -> None:
    for name in METHODS:
        assert type(command.read_config(name, [])) is METHODS[name]
    config = command.read_config("r-rome", ["kl_at=prompt end", "lr=0.25", "prefixes=('',)"])
    assert (config.kl_at, config.lr, config.prefixes) == ("prompt end", 0.25, ("",))  # type: ignore[attr-defined]
