"""Settings as frozen dataclasses whose fields carry their own range, explanation and source.

Forms are drawn from them and options of commands are read by them, so a hyper-parameter is described in exactly one
place: the field that it sets.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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

    @property
    def range(self) -> str:
        """The values that the field may have, in words; empty where all may be."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        low, high = (None if end is None else f"{end:,.12g}" for end in (self.low, self.high))
        if low is not None and high is not None:
            return f"from {low} to {high}"
        return f"of {low} or more" if low is not None else f"of {high} or less" if high is not None else ""

    def admits(self, value: Any) -> bool:
        """Whether a value of the right type is one of the choices and within the range. NaN is in no range."""
        if self.choices:
            return value in self.choices
        low, high = self.low, self.high
        return (low is None or value >= low) and (high is None or value <= high)


Bounds = tuple[float | None, float | None, float | None]  # lowest, highest, step


def setting(default: Any, label: str, help: str, bounds: Bounds = (None, None, None), **about: Any) -> Any:
    """A dataclass field with its description. `None` as default means: this model's preset."""
    low, high, step = bounds
    return field(default=default, metadata={"about": About(label, help, low=low, high=high, step=step, **about)})


def about(config: Any) -> dict[str, About]:
    """Descriptions of the fields of a config (class or instance) that a form should show, in order."""
    return {f.name: f.metadata["about"] for f in fields(config) if "about" in f.metadata}


# ------------------------------------------------------------------------------------------------ values from outside


@dataclass(frozen=True)
class _Kind:
    """A type that fields have: what it is called, how it is read from text, whether a value is of it."""

    words: str
    read: Callable[[str], Any]
    fits: Callable[[Any], bool]


def _read_anything(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _read_texts(text: str) -> tuple[Any, ...]:
    found = ast.literal_eval(text)
    if not isinstance(found, list | tuple):
        raise ValueError
    return tuple(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[Any, _Kind] = {
    int: _Kind("a whole number", int, lambda value: _is_number(value) and isinstance(value, int)),
    float: _Kind("a number", float, _is_number),
    bool: _Kind("True or False", ast.literal_eval, lambda value: isinstance(value, bool)),
    str: _Kind("a text", str, lambda value: isinstance(value, str)),
    tuple: _Kind(
        "a list of texts, as ('', 'So it is. ')",
        _read_texts,
        lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
    ),
}
_ANYTHING = _Kind("anything", _read_anything, lambda value: True)  # of a type that only another package knows


def read_value(config: Any, name: str, text: str) -> Any:
    """The value of a config's field (class or instance) from what somebody typed: of its type, within its range.

    "None" is the preset, of fields that have one. Raises ValueError with a sentence of what may be written.
    """
    kind, may_be_none = _kind_of(config, name)
    if may_be_none and text.strip() == "None":
        return None
    try:
        value = kind.read(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(_refusal(config, name, f"'{text[:80]}'")) from None
    if wrong := why_not(config, name, value):
        raise ValueError(wrong)
    return value


def why_not(config: Any, name: str, value: Any) -> str:
    """Why a field may not have this value, in a sentence; empty if it may."""
    kind, may_be_none = _kind_of(config, name)
    described = about(config).get(name)
    if may_be_none if value is None else kind.fits(value) and (described is None or described.admits(value)):
        return ""
    return _refusal(config, name, f"'{value}'"[:80] if isinstance(value, str) else f"{value}"[:80])


def first_fault(config: Any) -> str:
    """A sentence about the first field of a config that has a value which it may not have; empty if there is none."""
    return next((wrong for f in fields(config) if (wrong := why_not(config, f.name, getattr(config, f.name)))), "")


def _refusal(config: Any, name: str, got: str) -> str:
    kind, may_be_none = _kind_of(config, name)
    described = about(config).get(name)
    allowed = (
        described.range if described and described.choices else f"{kind.words} {described.range if described else ''}"
    )
    return f"{name} must be {allowed.strip()}{' or None' * may_be_none}, not {got}."


def _kind_of(config: Any, name: str) -> tuple[_Kind, bool]:
    """What a field holds, and whether it may be None."""
    try:
        hint = get_type_hints(config if isinstance(config, type) else type(config))[name]
    except NameError:  # another package names a type that is imported for its type checker only
        return _ANYTHING, True
    parts = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    own = parts - {NoneType}
    (only,) = own if len(own) == 1 else (object,)
    plain = {Literal: str, None: only}.get(get_origin(only), get_origin(only))
    return _KINDS.get(plain, _ANYTHING), NoneType in parts
