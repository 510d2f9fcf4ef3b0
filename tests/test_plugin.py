"""A method that another package brings, by an entry point alone: it is offered and works wherever methods are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rome_core.editing.methods import METHODS, OWN, collect_methods, markdown_table

ROOT = Path(__file__).parent.parent
TOY = '''
"""Adds a small multiple of the mean of all keys' directions; a toy."""
from dataclasses import dataclass
from typing import ClassVar

import torch

from rome_core.editing.edit import make_edit
from rome_core.editing.method import MethodConfig
from rome_core.model.edits import Delta
from rome_core.settings import setting


@dataclass(frozen=True)
class Toy(MethodConfig):
    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "A toy: every weight of one matrix moves a little."
    formula: ClassVar[str] = r"\\Delta = \\epsilon \\mathbf{1} \\mathbf{1}^\\top"
    size: float = setting(0.001, "Size", "How far every weight moves.", bounds=(0.0, 1.0, 0.001))

    def solve(self, on, requests):
        lm = on.lm
        delta = Delta(lm.down_projection(1), torch.full((lm.d_model, 1), self.size), torch.ones(1, lm.d_mlp))
        return make_edit(lm, requests, self, (delta,), on.edits)
'''
# Run with the package on the path, as after its installation: METHODS, all methods on one fact, an evaluation by the
# command's own main, and the edit page.
PROGRAM = """
import sys
import rome_core.cli.evaluate as command
import rome_core.cli.terminal as terminal
from rome_core import METHODS, Prompt, EditRequest
from rome_core.editing.methods import markdown_table
from rome_core.evaluation.comparison import Trial, compare_methods
from streamlit.testing.v1 import AppTest
from tests.tiny import REQUEST, tiny_model

assert list(METHODS)[-1] == "toy", list(METHODS)
assert "| `toy` | A toy:" in markdown_table(METHODS)
lm = tiny_model()
rows = list(compare_methods(lm, Trial(REQUEST), [METHODS["toy"]()]))
assert rows[-1].method == "toy" and rows[-1].edit is not None and not rows[-1].error
terminal.load_model = lambda *args, **options: lm
quick = ["--neighbours", "1", "--generated", "0", "--passages", "0"]
assert command.main(["--out", sys.argv[1], "--records", "2", "--methods", "toy,ke", *quick]) == 0

import pages.shared.models as models
models.load_model = lambda *args, **options: lm
page = AppTest.from_file("app.py", default_timeout=120).run()
page = page.switch_page("pages/edit.py").run()
assert "toy" in page.selectbox(key="method").options, page.error
page = page.selectbox(key="method").set_value("toy").run()
assert not page.exception and any("Size" in number.label for number in page.number_input)
print("all of it")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "toy_method.py").write_text(TOY)
    about = tmp_path / "toy_method-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[rome_explorer.methods]\ntoy = toy_method:Toy\n")
    return tmp_path


def test_a_method_of_another_package_is_offered_and_works_everywhere(package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(package / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(package)])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0 and done.stdout.endswith("all of it\n"), done.stderr[-3000:]
    assert "toy" not in METHODS  # here it is not installed


def test_a_broken_package_keeps_nobody_from_the_projects_own(caplog: pytest.LogCaptureFixture) -> None:
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint("gone", "no_such_package:Method", "rome_explorer.methods"),
        EntryPoint("odd", "pathlib:Path", "rome_explorer.methods"),
        EntryPoint("again", "rome_core.editing.methods.rome:Rome", "rome_explorer.methods"),
    ]

    assert list(collect_methods(points)) == [method.name for method in OWN]
    assert [record.args[0] for record in caplog.records if record.args] == ["again", "gone", "odd"]


def test_the_docs_have_the_table() -> None:
    assert markdown_table({method.name: method for method in OWN}) in (ROOT / "docs" / "methods.md").read_text()
