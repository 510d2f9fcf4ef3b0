"""Settings as frozen dataclasses whose fields carry their own range, explanation and source.

Forms are drawn from them, so a hyper-parameter is described in exactly one place: the field that it sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True)
class About:
    """What a form needs to know of one field: its name on the screen, a sentence, where it comes from, its range.

    within: what of the model ends the range, where it depends on the model.
    """

    label: str
    help: str
    source: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[Any, ...] = ()
    unit: str = ""
    within: Literal["layers"] | None = None


Bounds = tuple[float | None, float | None, float | None]  # lowest, highest, step


def setting(default: Any, label: str, help: str, bounds: Bounds = (None, None, None), **about: Any) -> Any:
    """A dataclass field with its description. `None` as default means: this model's preset."""
    low, high, step = bounds
    return field(default=default, metadata={"about": About(label, help, low=low, high=high, step=step, **about)})


def about(config: Any) -> dict[str, About]:
    """Descriptions of the fields of a config (class or instance) that a form should show, in order."""
    return {f.name: f.metadata["about"] for f in fields(config) if "about" in f.metadata}
