"""What SECURITY.md promises of the code itself: no pickle, no foreign code, the loopback address; all settings told."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pages.shared import public

ROOT = Path(__file__).parent.parent
PROGRAM = [ROOT / "app.py", *(path for folder in ("rome_core", "pages") for path in (ROOT / folder).rglob("*.py"))]
# Modules that make objects of bytes, or run what a text says; and calls that do so unless they are told not to.
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "pd.read_pickle", "yaml.load", "os.system"}


def named(node: ast.expr) -> str:
    """The dotted name of what is called; empty where it is none."""
    if isinstance(node, ast.Attribute):
        before = named(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> Iterator[str]:
    """What in a program could run foreign code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in FORBIDDEN)
        if not isinstance(node, ast.Call):
            continue
        name = named(node.func)
        options = {option.arg: getattr(option.value, "value", "computed") for option in node.keywords}
        if name in CALLS:
            yield f"calls {name}"
        if name in ("np.load", "numpy.load") and options.get("allow_pickle") is not False:
            yield "calls np.load that may unpickle"
        if options.get("trust_remote_code", False) is not False or options.get("allow_pickle", False) is not False:
            yield f"{name} is told to trust what it reads"
        if options.get("shell", False) is not False:
            yield f"{name} runs a shell"


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_foreign_code_is_run(path: Path) -> None:
    assert not list(faults(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=yes)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(faults(source))


def test_it_listens_to_this_machine_only_as_shipped() -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))

    assert config["server"]["address"] == "127.0.0.1"
    assert config["server"]["maxUploadSize"] == public.LIMITS["UPLOAD_MB"]
    assert config["browser"]["gatherUsageStats"] is False


def test_all_settings_stand_in_one_table() -> None:
    serving = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    asked = {name for path in PROGRAM for name in re.findall(r"ROME_EXPLORER_[A-Z]+", path.read_text(encoding="utf-8"))}
    settings = (asked - {"ROME_EXPLORER_MAX"}) | {f"ROME_EXPLORER_MAX_{name}" for name in public.LIMITS}

    assert not {name for name in settings if f"| `{name}" not in serving}
    assert "| `ROME" not in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for name, most in public.LIMITS.items():
        assert re.search(rf"\| `ROME_EXPLORER_MAX_{name}` \|.*\({most:,}\)", serving), name
