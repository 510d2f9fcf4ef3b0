"""A field carries its own description, and every public config describes all that a form shows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from rome_core.editing.methods import METHODS
from rome_core.settings import About, about, setting
from rome_core.tracing.runs import TraceConfig


@dataclass(frozen=True)
class Oven:
    heat: int = setting(180, "Heat", "How hot.", bounds=(50, 250, 10), unit="°C")
    note: str = ""
    grill: str = setting("off", "Grill", "Whether it grills.", choices=("off", "on"), source="the manual")


def test_about_lists_the_described_fields_in_order() -> None:
    assert (
        about(Oven)
        == about(Oven())
        == {
            "heat": About("Heat", "How hot.", low=50, high=250, step=10, unit="°C"),
            "grill": About("Grill", "Whether it grills.", source="the manual", choices=("off", "on")),
        }
    )
    assert Oven().heat == 180 and Oven(heat=200).heat == 200


@pytest.mark.parametrize("config", [TraceConfig, *METHODS.values()], ids=lambda config: config.__name__)
def test_defaults_lie_within_their_own_ranges(config: type) -> None:
    described = about(config)
    assert described
    for field in fields(config):
        if field.name not in described or field.default is None:
            continue
        a = described[field.name]
        assert a.label and a.help.endswith(".")
        if a.choices:
            assert field.default in a.choices
        else:
            assert a.low is not None and a.high is not None and a.step is not None, field.name
            assert a.low <= field.default <= a.high, field.name
