"""What the console commands share: errors as one sentence, checked names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rome_core.cli.terminal import method_names, run_guarded
from rome_core.editing.methods import METHODS
from rome_core.errors import DataError


def test_a_command_says_what_is_wrong_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(argv: Sequence[str] | None) -> int:
        raise DataError("The file is empty.", "", "Give another.")

    def stopped(argv: Sequence[str] | None) -> int:
        raise KeyboardInterrupt

    assert run_guarded(wrong, "Go on.") == 1
    assert run_guarded(stopped, "Go on.") == 130
    assert capsys.readouterr().err == "Error: The file is empty. Give another.\n\nStopped. Go on.\n"


def test_method_names_are_checked() -> None:
    assert method_names("all") == list(METHODS)
    assert method_names("r-rome, memit") == ["r-rome", "memit"]
    with pytest.raises(DataError, match="There is no method 'mempit'"):
        method_names("mempit")
