"""Imports run one way. The table says who stands on whom; a module may import only from rows above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = (
    ("assets", "errors", "progress", "settings"),
    ("default_model", "layout", "tokens"),
    ("model",),
    ("calibration", "corpora", "datasets", "edits"),
    ("hooks", "namesakes", "requests"),
    ("generation", "inspection", "replay", "scoring"),
    ("moment", "presets", "runs"),
    ("noise", "reference", "restoring"),
    ("severed", "tracing"),
    ("attribution", "averages", "methods"),
    ("diagnostics", "forensics", "interference", "lessons", "neighbourhood", "storage"),
    ("evaluation", "screening", "training"),
    ("bench", "objective", "cli", "sweep"),
    ("__init__",),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
CORE = sorted((ROOT / "rome_core").rglob("*.py"))
APP = [*ROOT.glob("app.py"), *sorted((ROOT / "pages").rglob("*.py"))]
TESTS = {path.stem for path in (ROOT / "tests" / "core").glob("test_*.py")}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: write the import in full"
            # `from rome_core import tracing` may mean a module or a name: try it as a module.
            yield from (
                [f"rome_core.{a.name}" for a in node.names] if node.module == "rome_core" else [str(node.module)]
            )


def part(path: Path) -> str:
    """The module of the core, or its package, that a file belongs to: methods/rome.py belongs to methods."""
    return path.relative_to(ROOT / "rome_core").with_suffix("").parts[0]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_downwards_only(path: Path) -> None:
    importer = part(path)
    assert importer in RANK, f"'{importer}' is in no row of the table in {Path(__file__).name}: give it its place"
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top not in {"streamlit", "pages", "app"}, f"the core knows nothing of the app, but imports {name}"
        target = rest.split(".")[0]
        if top == "rome_core" and target != importer:
            assert target in RANK, f"{importer} imports {name}: write the module that it comes from"
            assert RANK[target] < RANK[importer], (
                f"{importer} may not import {target}: it stands on the same row or above"
            )


@pytest.mark.parametrize("name", sorted(RANK.keys() - {"__init__"}))
def test_the_table_has_no_row_for_a_module_that_is_gone(name: str) -> None:
    assert name in {part(path) for path in CORE}


@pytest.mark.parametrize(
    "path", [path for path in CORE if path.stem not in {"__init__", "assets"}], ids=lambda path: path.stem
)
def test_every_module_has_a_mirror_test(path: Path) -> None:
    # A package may be tested as one: evaluation/scores.py in test_evaluation.py.
    assert {f"test_{path.stem}", f"test_{part(path)}"} & TESTS


@pytest.mark.parametrize(
    "path", [*APP, *(path for path in CORE if path.stem != "hooks")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_only_the_hooks_register_hooks(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert "register_forward" not in text
    assert ".lock:" not in text
