"""The doctor's command: the proof as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rome_core.cli import doctor
from rome_core.cli.doctor import examine, lines
from rome_core.model.proof import CAPABILITIES, prove
from tests.families import FOUND, MIXTURES
from tests.models_table import row
from tests.tiny import FAMILIES, save_model, tiny_model


def test_it_says_of_a_folder_what_can_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tiny_model("phi"), tmp_path / "model")

    assert doctor.main([str(folder)]) == 0

    said = capsys.readouterr().out
    assert said.startswith(f"{folder}: phi, ") and "parts from its structure" in said
    assert said.count("ok ") == len(prove(tiny_model("phi"))) + 1 and "NO " not in said
    for capability in CAPABILITIES:
        assert f"{capability:28} yes" in said
    assert "not measured on this model" in said


def test_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tiny_model("mixtral"), tmp_path / "model")

    assert doctor.main(["--model", str(folder), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["layout"]["from"] == "its structure" and found["layout"]["mlp_out"] == "mlp"
    assert found["possible"]["trace the MLP"] == "yes"
    assert found["possible"]["edit"] == "its MLP has no single matrix W; router and experts are traced as one"
    assert {check["name"]: check["passed"] for check in found["checks"]}["W is a plain matrix"] is False
    assert found["bytes"]["weights"] == 4 * found["parameters"]


def test_a_family_of_the_table_and_one_that_cannot_be_resumed() -> None:
    assert examine(tiny_model("gpt2"))["layout"]["from"] == "the table"

    said = "\n".join(lines(examine(tiny_model("mpt"))))

    assert "--  runs can be resumed: This model's blocks cannot be resumed" in said


def test_what_cannot_be_loaded_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.command(["/nowhere/at all"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    seen: list[Any] = []
    monkeypatch.setattr(doctor, "loader", lambda args: seen.append(args.model) or (lambda: tiny_model()))

    doctor.main([])

    assert seen == [doctor.parser().parse_args([]).model]


def test_the_docs_table_has_every_family_and_what_can_be_done_with_it() -> None:
    """Errors are left out: they differ by the machine."""
    docs = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    documented = [line.rsplit("|", 2)[0] for line in docs.splitlines() if "| yes |" in line]

    made = [" | ".join(["", *row(name)[:-1]]).strip() for name in (*FAMILIES, *FOUND, *MIXTURES)]

    assert [line.strip() for line in documented] == made
