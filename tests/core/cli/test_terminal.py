"""What the console commands share: facts and what is left out, errors as one sentence, any value of any option."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rome_core.cli import evaluate, sequence, train
from rome_core.cli.terminal import facts_from, run_guarded
from rome_core.errors import DataError
from rome_core.facts.datasets import facts_of, part_of

# ------------------------------------------------------------------------------------------------------ how it may end


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DataError("The file is empty.", "", "Give another."), 1, "Error: The file is empty. Give another.\n"),
        (KeyboardInterrupt(), 130, "\nStopped. 3 facts are kept.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/parts/rome/0.parquet"),
            1,
            "Error: 'runs/a/parts/rome/0.parquet' cannot be read or written: No space left on device. What was "
            "finished before is kept.\n",
        ),
        (OSError("the disk is gone"), 1, "Error: A file cannot be read or written: the disk is gone. What was"),
        (MemoryError(), 1, "Error: The memory is not enough."),
        (
            RuntimeError("shapes\ndiffer"),
            1,
            "Error: Something unforeseen happened (RuntimeError: shapes). Please report",
        ),
    ],
)
def test_a_command_says_what_is_wrong_in_one_sentence(
    error: BaseException,
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert run_guarded(main, lambda argv: "3 facts are kept.") == code
    said = capsys.readouterr().err
    assert said.startswith(sentence) and "Traceback" not in said
    kept = [path.read_text() for path in tmp_path.glob("rome-*.txt")]
    assert len(kept) == isinstance(error, RuntimeError) and all("RuntimeError: shapes" in text for text in kept)


def test_a_command_that_is_done_gives_its_code() -> None:
    assert run_guarded(lambda argv: len(argv or ()), lambda argv: "", ["a", "b"]) == 2


def test_a_reader_that_goes_away_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("rome_core.cli.terminal.close_output", lambda: None)
    assert run_guarded(main, lambda argv: "") == 1 and capsys.readouterr().err == ""


# --------------------------------------------------------------------------------------------------------------- facts

KNOWN = [  # as ROME ships them: nothing to edit to
    {"known_id": i, "subject": subject, "attribute": true, "prompt": f"{subject} is in", "relation_id": "P17"}
    for i, (subject, true) in enumerate((("Paris", "France"), ("Lyon", "France"), ("Rome", "Italy")))
]


def asked(tmp_path: Path, records: object, *more: str) -> argparse.Namespace:
    (tmp_path / "known.json").write_text(json.dumps(records))
    return evaluate.arguments(["--out", "run", "--facts", str(tmp_path / "known.json"), *more])


def test_a_set_without_new_objects_is_not_run_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DataError,
        match=r"^3 of 3 facts have no new object to edit to\..*--new-objects same-relation.*tracing needs none",
    ):
        facts_from(asked(tmp_path, KNOWN))
    assert capsys.readouterr().err == ""

    found = facts_from(asked(tmp_path, KNOWN, "--new-objects", "same-relation"))
    assert [(fact.target_true, fact.target_new) for fact in found] == [
        *(("France", "Italy"), ("France", "Italy"), ("Italy", "France"))
    ]
    assert "Facts with another object of their relation as the new one, by seed 0: 3." in capsys.readouterr().err
    with pytest.raises(DataError, match=r"There is no fact in 'known.json' that can be edited"):
        facts_from(asked(tmp_path, KNOWN, "--new-objects", "leave-out"))
    assert "Left out: 3 of 3 facts, which have no new object." in capsys.readouterr().err


def test_a_fact_without_another_object_of_its_relation_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {**KNOWN[0], "subject": "Bach", "prompt": "Bach was a", "attribute": "composer", "relation_id": "P106"}

    assert len(facts_from(asked(tmp_path, [*KNOWN, odd], "--new-objects", "same-relation"))) == 3
    assert "Left out: fact 4: The set has no other object of the relation 'P106' for 'Bach'." in capsys.readouterr().err


def test_a_file_of_ones_own_is_taken_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--new-objects", "same-relation", "--records", "-1")
    whole = facts_from(asked(tmp_path, KNOWN, *options))
    assert len(whole) == 3 and {part_of(fact) for fact in whole} != {"test"}
    capsys.readouterr()

    train_part = [record for record, fact in zip(KNOWN, whole, strict=True) if part_of(fact) != "test"]
    with pytest.raises(DataError, match=rf"None of the {len(train_part)} facts of 'known.json' is in the test part"):
        facts_from(asked(tmp_path, train_part, "--part", "test"))

    own = facts_from(evaluate.arguments(["--out", "run"]))
    assert own == facts_of("test") and capsys.readouterr().err == "", "of the project's facts the test part"


def test_facts_that_are_left_out_by_part_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{**KNOWN[i % 3], "subject": f"City {i}", "prompt": f"City {i} is in"} for i in range(20)]
    options = ("--new-objects", "same-relation", "--part", "test", "--records", "50")
    found = facts_from(asked(tmp_path, records, *options))

    assert 0 < len(found) < 20
    said = capsys.readouterr().err
    assert f"Left out by --part test: {20 - len(found)} of 20 facts." in said
    assert f"All facts are taken: {len(found)}, fewer than --records 50." in said


def test_facts_that_a_network_was_trained_on_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = facts_of("train")[0].prompt.subject
    records = [*KNOWN, {**KNOWN[0], "subject": trained, "prompt": f"{trained} is in", "relation_id": "P17"}]
    options = ("--new-objects", "same-relation", "--methods", "rome,mend")
    facts_from(args := asked(tmp_path, records, *options), args.methods)
    own = {fact.prompt.subject for fact in (*facts_of("train"), *facts_of("validation"))}
    n = sum(str(record["subject"]) in own for record in records)

    assert n and f"{n} of 4 facts are about subjects that mend may have been trained on" in capsys.readouterr().err
    facts_from(args, ["rome"])
    assert "trained" not in capsys.readouterr().err


def test_an_encoding_reaches_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("rome_core.cli.terminal.load_facts", lambda path, **more: seen.append(more) or facts_of("test"))
    with pytest.raises(AttributeError, match="problems"):
        facts_from(asked(tmp_path, KNOWN, "--encoding", "windows-1252"))

    assert seen == [{"encoding": "windows-1252"}]


# ---------------------------------------------------------------------------------------------- any value of any option

COMMANDS = {
    "rome-evaluate": (evaluate, "--out=run"),
    "rome-sequence": (sequence, "--out=run"),
    "rome-train": (train, "mend"),
}
OPTIONS = {
    name: [
        action.option_strings[0]
        for action in command.parser()._actions
        if action.option_strings and action.nargs is None
    ]
    for name, (command, _) in COMMANDS.items()
}
WORDS = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", " ", "-1", "0", "None", "auto", "all", "~", "~nobody/x", ".", "/dev/null/x", "a=b=c"]),
)
SETTINGS = st.tuples(
    st.sampled_from(["layer", "steps", "lr", "clamp", "prefixes", "kl_at", "seed", "colour"]),
    WORDS | st.just("['a', 3]") | st.just("{1: 2}") | st.just("(" * 99),
).map("=".join)


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_option_is_taken_or_ends_in_a_sentence(
    name: str, data: st.DataObject, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, needed = COMMANDS[name]
    option = data.draw(st.sampled_from(OPTIONS[name]))
    word = data.draw(SETTINGS if option == "--set" else WORDS)
    code: object = 0
    try:
        command.arguments([needed, f"{option}={word}"])
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr().err
    assert code == (2 if f"\n{name}: error: " in said else 0) and "Traceback" not in said
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"], "asking makes nothing"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        COMMANDS[name][0].arguments(["--help"])

    assert leaving.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in OPTIONS[name])
