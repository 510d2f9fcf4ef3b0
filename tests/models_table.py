"""What can be done with every family, as the table of docs/models.md: `python -m tests.models_table`.

A tiny random model of each is built from its configuration and put through what `rome-doctor` does; nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rome_core.cli.doctor import examine
from rome_core.model.proof import CAPABILITIES
from studies.common import markdown
from tests.families import FOUND, MIXTURES
from tests.tiny import FAMILIES, tiny_model

SHOWN = {name: name.removeprefix("trace the ") for name in CAPABILITIES}


def row(name: str) -> list[str]:
    found: dict[str, Any] = examine(tiny_model(name))
    worst = max((check["error"] for check in found["checks"] if check["passed"]), default=0.0)
    can = ["yes" if found["possible"][capability] == "yes" else "no" for capability in CAPABILITIES]
    engine = "replay" if found["resumed"] == "yes" else "hooks"
    return [name, found["layout"]["from"], found["layout"]["mlp_out"], engine, *can, f"{worst:.0e}"]


def table() -> Iterator[str]:
    rows = [row(name) for name in (*FAMILIES, *FOUND, *MIXTURES)]
    yield from markdown(["family", "parts from", "W", "engine", *SHOWN.values(), "largest error"], rows)


if __name__ == "__main__":
    print("\n".join(table()))
