"""Imports run one way, between the rooms and inside them; every module has a test; only the hooks register hooks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room of the core imports from the rows above its own, and within itself without going in a circle.
ROWS = (
    ("errors",),
    ("files", "progress", "settings", "threads"),
    ("model",),
    ("facts",),
    ("tracing",),
    ("editing",),
    ("diagnosis",),
    ("evaluation",),
    ("__init__", "methods"),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
CORE = sorted((ROOT / "rome_core").rglob("*.py"))
PAGES = sorted((ROOT / "pages").rglob("*.py"))
TESTS = {str(path.relative_to(ROOT / "tests" / "core")) for path in (ROOT / "tests" / "core").rglob("test_*.py")}
# Parts of a page that show what another page is about, with the part that they take from there.
GUESTS: dict[str, set[str]] = {}


def name_of(path: Path) -> str:
    """The dotted name of a file's module or package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in (*CORE, *PAGES)}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, wherever in the file it does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {id(node) for block in ast.walk(tree) if _is_typing_only(block) for node in ast.walk(block)}
    for node in (node for node in ast.walk(tree) if id(node) not in typing_only):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: write the import in full"
            inner = [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in MODULES]
            yield from inner
            if len(inner) < len(node.names):
                yield str(node.module)


def _is_typing_only(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`: an annotation may name what comes later."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(name: str) -> str:
    """The room of a module of the core: rome_core.tracing.runs stands in tracing."""
    return name.split(".")[1] if "." in name else "__init__"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_downwards_only(path: Path) -> None:
    own = room(name_of(path))
    assert own in RANK, f"'{own}' is in no row of the table in {Path(__file__).name}: give it its place"
    for name in imported(path):
        assert name.split(".")[0] not in {"streamlit", "pages", "app"}, f"the core knows nothing of the app: {name}"
        if name.split(".")[0] == "rome_core" and room(name) != own:
            assert RANK[room(name)] < RANK[own], f"{own} may not import {name}: it stands on the same row or above"


def test_nothing_goes_in_a_circle() -> None:
    graph = {
        name: {other for other in imported(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
        if path.name != "__init__.py"  # a room's face
    }
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_is_made_of_its_own_parts_and_what_is_shared(path: Path) -> None:
    own = name_of(path).split(".")
    for name in (name for name in imported(path) if name.startswith("pages.")):
        other = name.split(".")
        if own[1] == "shared":
            assert other[1] == "shared", f"{name_of(path)} is for all pages, but imports {name}"
        elif own[1] == "parts" and other[1] == "parts" and other[2] != own[2]:
            assert name in GUESTS.get(name_of(path), ()), f"{name_of(path)} imports {name}: share it"


@pytest.mark.parametrize("path", [*CORE, *PAGES], ids=name_of)
def test_nobody_asks_for_a_single_method(path: Path) -> None:
    """A method answers for itself: whoever is not of the editing room knows the registry only."""
    own = name_of(path)
    if not own.startswith("rome_core.editing."):
        for name in imported(path):
            assert not name.startswith("rome_core.editing.methods."), f"{own} imports {name}: ask the config instead"


@pytest.mark.parametrize("name", sorted(RANK.keys() - {"__init__"}))
def test_the_table_has_no_row_for_a_room_that_is_gone(name: str) -> None:
    assert name in {room(name_of(path)) for path in CORE}


@pytest.mark.parametrize("path", [path for path in CORE if path.stem != "__init__"], ids=name_of)
def test_every_module_has_a_mirror_test(path: Path) -> None:
    place = path.relative_to(ROOT / "rome_core")
    if place.stem == "methods" and len(place.parts) == 1:  # a name of old: it only hands on
        return
    mirrors = {str(place.with_name(f"test_{place.stem}.py"))}
    if len(place.parts) > 1:  # a small room may be tested as one: evaluation/runs/*.py in evaluation/test_runs.py
        mirrors.add(str(place.parent.with_name(f"test_{place.parent.name}.py")))
    assert mirrors & TESTS, f"one of {sorted(mirrors)} is missing in tests/core"


@pytest.mark.parametrize(
    "path",
    # Structure is found before there is a model in this project's sense: nobody else has it yet.
    [*PAGES, *(path for path in CORE if path.stem not in ("hooks", "discovery"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_the_hooks_register_hooks(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert "register_forward" not in text
    assert ".lock:" not in text


def test_tensors_leave_their_device_before_they_become_float64() -> None:
    """Apple's GPUs have no float64, so that the other order raises there, and only there."""
    sources = [file for part in ("rome_core", "pages") for file in (ROOT / part).rglob("*.py")]

    assert sources and not [file.name for file in sources if ".double().cpu()" in file.read_text(encoding="utf-8")]
