"""A field carries its own description, and every public config describes all that a form shows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.editing.methods import METHODS
from rome_core.settings import About, about, first_fault, read_value, setting, why_not
from rome_core.tracing.runs import TraceConfig


@dataclass(frozen=True)
class Oven:
    heat: int = setting(180, "Heat", "How hot.", bounds=(50, 250, 10), unit="°C")
    note: str = ""
    grill: str = setting("off", "Grill", "Whether it grills.", choices=("off", "on"), source="the manual")


@dataclass(frozen=True)
class Bakery:
    """A field of every type. rest: of a type that only another package knows."""

    share: float | None = setting(None, "Share", "Of the rye.", bounds=(0.0, 1.0, 0.1))
    least: int = setting(0, "Least", "Loaves.", bounds=(0, None, 1))
    open: bool = False
    kinds: tuple[str, ...] | None = None
    size: Literal["small", "large"] = setting("small", "Size", "Of a loaf.", choices=("small", "large"))
    rest: dict[str, int] = dataclasses.field(default_factory=dict)


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


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share", "0.5", 0.5),
        ("share", " 1 ", 1.0),
        ("share", "None", None),
        ("least", "7", 7),
        ("open", "True", True),
        ("kinds", "('rye',)", ("rye",)),
        ("kinds", "['rye', 'spelt']", ("rye", "spelt")),
        ("kinds", "None", None),
        ("size", "large", "large"),
        ("rest", "{'a': 1}", {"a": 1}),
        ("rest", "a word", "a word"),
    ],
)
def test_a_value_is_read_by_its_fields_type(name: str, text: str, value: object) -> None:
    found = read_value(Bakery, name, text)

    assert found == value and type(found) is type(value) and not why_not(Bakery(), name, found)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("share", "abc", "share must be a number from 0 to 1 or None, not 'abc'."),
        ("share", "1.5", "share must be a number from 0 to 1 or None, not 1.5."),
        ("share", "nan", "share must be a number from 0 to 1 or None, not nan."),
        ("least", "1e9", "least must be a whole number of 0 or more, not '1e9'."),
        ("least", "-1", "least must be a whole number of 0 or more, not -1."),
        ("least", "None", "least must be a whole number of 0 or more, not 'None'."),
        ("open", "1", "open must be True or False, not 1."),
        ("open", "perhaps", "open must be True or False, not 'perhaps'."),
        ("kinds", "'rye'", "kinds must be a list of texts, as ('', 'So it is. ') or None, not ''rye''."),
        ("kinds", "[1]", "kinds must be a list of texts, as ('', 'So it is. ') or None, not (1,)."),
        ("size", "huge", "size must be one of small, large, not 'huge'."),
    ],
)
def test_a_value_that_a_field_cannot_have_is_one_sentence(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="must be") as refused:
        read_value(Bakery, name, text)
    assert str(refused.value) == sentence


def test_the_first_wrong_field_is_named() -> None:
    assert first_fault(Bakery()) == first_fault(Oven(heat=250)) == ""
    assert first_fault(Oven(heat=251)) == "heat must be a whole number from 50 to 250, not 251."
    assert first_fault(Oven(grill="hot")) == "grill must be one of off, on, not 'hot'."
    assert why_not(Oven, "heat", True) and why_not(Oven, "heat", 180.0) and why_not(Oven, "note", None)


@given(
    st.sampled_from([Oven, Bakery, TraceConfig, *METHODS.values()]),
    st.data(),
    st.text(max_size=12) | st.floats().map(str),
)
def test_any_text_is_a_value_in_range_or_a_sentence(config: Any, data: st.DataObject, text: str) -> None:
    name, refusal = data.draw(st.sampled_from([f.name for f in fields(config)])), ""
    try:
        value = read_value(config, name, text)
    except ValueError as refused:
        refusal = str(refused)
    if refusal:
        assert refusal.startswith(f"{name} must be ") and refusal.endswith(".")
    else:
        assert not why_not(config, name, value)


def test_a_type_that_only_another_package_knows_is_not_checked() -> None:
    foreign = dataclasses.make_dataclass("Foreign", [("rest", "Unheard", 3)])

    assert read_value(foreign, "rest", "[1]") == [1] and not first_fault(foreign())


def test_what_may_be_is_said_in_words() -> None:
    assert [a.range for a in about(Bakery).values()] == ["from 0 to 1", "of 0 or more", "one of small, large"]
    assert About("x", "x.", high=3).range == "of 3 or less" and About("x", "x.").range == ""
