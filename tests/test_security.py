"""What SECURITY.md promises of the code itself: no pickle, no foreign code, the loopback address; all settings told."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pages.shared import public
from pages.shared.worker import CLOSES_WITHIN

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


def test_the_examples_of_serving_name_settings_that_there_are() -> None:
    """No daemon builds them here: what can be read off them is."""
    serving = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    image, compose = ((ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "compose.yaml"))
    for name in re.findall(r"ROME_EXPLORER_[A-Z]+", image + compose):
        assert f"| `{name}` |" in serving, name
    steps = [line.split()[0] for line in image.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert steps[0] == "FROM" and steps[-1] == "CMD" and steps.index("USER") < steps.index("VOLUME")
    assert "STOPSIGNAL SIGTERM" in image and "/_stcore/health" in image and "ROME_EXPLORER_PUBLIC=1" in image
    services = yaml.safe_load(compose)["services"]
    app = services["app"]
    (path,) = re.findall(r"baseUrlPath=(\w+)", " ".join(app["command"]))
    assert (
        f"/{path}/_stcore/health" in app["healthcheck"]["test"][-1]
        and app["environment"]["ROME_EXPLORER_PUBLIC"] == "1"
    )
    assert "ports" not in app, "only the proxy is reached from outside"
    assert int(app["stop_grace_period"].rstrip("s")) > CLOSES_WITHIN


def test_the_audit_says_one_line_where_the_database_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)

    def answer(asked: Any, timeout: float) -> io.BytesIO:
        queries = json.loads(asked.data)["queries"]
        affected = {"vulns": [{"id": "GHSA-1"}]}
        return io.BytesIO(json.dumps({"results": [{}] * (len(queries) - 1) + [affected]}).encode())

    def silence(asked: Any, timeout: float) -> io.BytesIO:
        raise OSError("no route")

    monkeypatch.setattr(audit.urllib.request, "urlopen", silence)
    assert audit.main() == 0
    assert re.fullmatch(r"Dependencies were not audited: .* does not answer \(OSError\)\.\n", capsys.readouterr().out)
    monkeypatch.setattr(audit.urllib.request, "urlopen", answer)
    assert audit.main() == 1 and "GHSA-1\n" in capsys.readouterr().out
