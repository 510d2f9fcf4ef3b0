"""The console command on a tiny model: it begins, goes on, branches, and says what is wrong in one sentence."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
    Path("empty").mkdir()
    for args, code, sentence in (
        (["--set", "colour=red"], 2, f"'colour=red' is no setting of {DEFAULT_METHOD}"),
        (["--set", "steps"], 2, f"'steps' is no setting of {DEFAULT_METHOD}. Write NAME=VALUE with"),
        (["--set", "steps=abc"], 2, "steps must be a whole number from 1 to 200 or None, not 'abc'"),
        (["--set", "steps=1e9"], 2, "steps must be a whole number from 1 to 200 or None, not '1e9'"),
        (["--set", "clamp=nan"], 2, "clamp must be a number from 0.1 to 20 or None, not nan"),
        (["--set", "prefixes='x. '"], 2, "prefixes must be a list of texts"),
        (["--check-every", "0"], 2, "check_every must be a whole number from 1 to 10,000, not 0"),
        (["--prefixes", "7"], 2, "prefixes must be one of 6, 21, not 7"),
        (["--batch", "3"], 2, "one fact at a time, not 3"),
        (["--step", "3"], 2, "--step is of another run"),
        (["--branch-of", "nowhere"], 2, "there is no folder 'nowhere'"),
        (["--branch-of", "empty"], 1, "holds no sequential run"),
        (["--resume"], 1, "holds no sequential run"),
        (["--set", "layer=99"], 1, "Layer 99 does not exist. 'tiny-llama' has layers 0 to 3."),
    ):
        monkeypatch.setattr(sys, "argv", ["rome-sequence", "--facts", "facts.json", "--out", "new", *SHORT, *args])
        assert ended() == code
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error and not Path("new").exists(), args


def ended() -> int:
    """The command's exit code, as a shell sees it."""
    try:
        return command.command()
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_a_start_that_fails_blocks_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is stopped before its first record nor one that was killed there leaves a folder in the way."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rome_core.evaluation.sequence.steps.perplexity", stopped)
        patch.setattr(
            sys, "argv", ["rome-sequence", "--facts", "facts.json", "--out", "new", *TINY, "--order-seed", "3"]
        )
        assert ended() == 130
    assert "Stopped. Nothing was finished, and nothing is kept." in capsys.readouterr().err and not Path("new").exists()

    args = command.arguments(["--facts", "facts.json", "--out", "new", *TINY, "--order-seed", "3"])
    lm = tiny_model()
    command.open_or_begin(args, lm, command.choose_from(command.facts_from(args), args, lm), None)
    assert Path("new/run.json").exists()

    assert call("--out", "new", *TINY) == 0
    assert open_run("new").plan.order_seed == 0 and len(open_run("new").records) == 5


def test_ctrl_c_says_what_is_kept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = command.edit_in_sequence, 3

    def some(*given: object, **options: object) -> Iterator[object]:
        for done, record in enumerate(real(*given, **options)):  # type: ignore[arg-type]
            if done == steps:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(command, "edit_in_sequence", some)
    monkeypatch.setattr(sys, "argv", ["rome-sequence", "--facts", "facts.json", "--out", "a", *TINY])
    assert ended() == 130
    assert "Stopped. Facts that are kept in 'a': 3. The same command goes on with the rest." in capsys.readouterr().err

    assert len(open_run("a").records) == 4


def test_a_sequence_in_which_every_step_fails_has_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("C is singular")

    monkeypatch.setattr("rome_core.evaluation.sequence.steps.solve", broken)

    assert call("--out", "a", *TINY) == 1
    assert "No fact could be edited" in capsys.readouterr().err
    assert {record.error for record in open_run("a").records[1:]} == {"_LinAlgError: C is singular"}


def test_settings_of_any_method_are_read_as_what_they_are() -> None:
    for name in METHODS:
        assert type(command.read_config(name, [])) is METHODS[name]
    config = command.read_config("r-rome", ["kl_at=prompt end", "lr=0.25", "prefixes=('',)"])
    assert (config.kl_at, config.lr, config.prefixes) == ("prompt end", 0.25, ("",))  # type: ignore[attr-defined]
