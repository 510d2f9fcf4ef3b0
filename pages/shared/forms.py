"""A frozen config as widgets: its fields say what they are called and mean, where they come from, how far they go.

Nothing here knows a method. A new field with a description appears on the page by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from pages.shared import address
from rome_core import EditRequest, LanguageModel
from rome_core.editing.methods import MethodConfig
from rome_core.editing.presets import resolve
from rome_core.settings import About, about

MAIN = 4  # fields shown at once; the rest waits in an expander
COLUMNS = 4


def config_form(
    lm: LanguageModel,
    config_class: type,
    key: str,
    bound: Mapping[str, str] | None = None,
    requests: Sequence[EditRequest] = (),
) -> Any:
    """Draw the widgets of a config class and return the config that they describe.

    key: in front of every widget's key, so that two forms may stand on one page.
    bound: fields that go by another name in the page's address and on other pages.
    requests: what the config is for, where presets depend on it.
    """
    described, values = about(config_class), dict[str, Any]()
    names = {field_name: (bound or {}).get(field_name, f"{key}-{field_name}") for field_name in described}
    carry_fields(config_class(), names, lm)
    preset = _preset(lm, config_class, names.get("layer", f"{key}-layer"), requests)
    for field_name, place in _places(list(described)):
        with place:
            default = getattr(preset, field_name)
            follow(names[field_name], default)
            values[field_name] = widget(described[field_name], default, {"key": names[field_name]}, lm)
    return config_class(**values)


def carry_fields(config: Any, keys: Mapping[str, str], lm: LanguageModel) -> None:
    """Let the page's address carry the fields of a config, by the keys of their widgets."""
    described = about(config)
    presets = resolve(lm, config) if isinstance(config, MethodConfig) else config
    for name, key in keys.items():
        address.carry(key, described[name].label, _reader(described[name], getattr(presets, name), lm))


def _reader(field: About, default: Any, lm: LanguageModel) -> Callable[[str], object]:
    """How a link's text becomes a value of the field's widget."""
    if field.choices:
        return address.one_of(field.choices)
    if isinstance(default, bool):
        return address.yes_or_no
    if isinstance(default, int | float):
        return address.a_number(type(default), field.low, _highest(field, lm))
    return str


def _highest(field: About, lm: LanguageModel) -> float | None:
    return lm.n_layers - 1 if field.within == "layers" else field.high


def _preset(lm: LanguageModel, config_class: type, layer: str, requests: Sequence[EditRequest]) -> Any:
    """What the form begins with: of a method this model's presets.

    layer: the key of that field; other presets go with a layer that somebody chose.
    """
    make: Any = config_class  # a method's may have a layer, or none
    if not issubclass(config_class, MethodConfig):
        return make()
    preset = resolve(lm, make(), requests)
    usual = getattr(preset, "layer", None)
    standing = st.session_state.get("presets", {}).get(layer, usual)
    chosen = st.session_state.get(layer, standing)
    if usual is None or chosen == standing:
        return preset
    return replace(resolve(lm, make(layer=int(chosen)), requests), layer=usual)


def follow(key: str, default: Any) -> None:
    """Let a setting that stands at its preset go along when the preset becomes another one."""
    presets: dict[str, Any] = st.session_state.setdefault("presets", {})
    former = presets.get(key, default)
    if former != default and st.session_state.get(key) == former:
        st.session_state[key] = default
    presets[key] = default


def _places(names: list[str]) -> list[tuple[str, Any]]:
    """Where each field is drawn: the first ones in a row, the others in rows inside an expander."""
    main, rest = names[:MAIN], names[MAIN:]
    places = list(zip(main, st.columns(COLUMNS), strict=False))
    if rest:
        with st.expander("More settings"):
            for start in range(0, len(rest), COLUMNS):
                places += zip(rest[start : start + COLUMNS], st.columns(COLUMNS), strict=False)
    return places


def widget(field: About, default: Any, options: dict[str, Any], lm: LanguageModel) -> Any:
    """The widget that fits the field's kind of value."""
    options |= {"help": explain(field), "persist_state": "session"}
    label = f"{field.label} ({field.unit})" if field.unit else field.label
    if field.choices:
        chosen = field.choices.index(default) if default in field.choices else 0
        return st.selectbox(label, field.choices, index=chosen, **options)
    if isinstance(default, bool):
        return st.toggle(label, value=default, **options)
    if isinstance(default, int | float):
        return _number(label, field, default, options, lm)
    if isinstance(default, str):
        return st.text_input(label, value=default, **options)
    return _lines(label, default, options)


def _number(label: str, field: About, default: float, options: dict[str, Any], lm: LanguageModel) -> float:
    kind = type(default)  # a slider of whole numbers gives whole numbers back
    high = _highest(field, lm)
    step = kind(field.step) if field.step else (1 if kind is int else _fine(default))
    return st.number_input(
        label,
        min_value=None if field.low is None else kind(field.low),
        max_value=None if high is None else kind(high),
        value=default,
        step=step,
        format="%d" if kind is int else "%g",
        **options,
    )


def _fine(default: float) -> float:
    """A step of about a tenth of the value, as one digit and a power of ten."""
    return 10.0 ** math.floor(math.log10(abs(default) / 2)) if default else 0.01


def _lines(label: str, default: tuple[str, ...] | None, options: dict[str, Any]) -> tuple[str, ...] | None:
    """Several texts, one a line; none at all leaves the choice to the method."""
    text = st.text_area(label, value="\n".join(default or ()), placeholder="one a line; empty: chosen", **options)
    return tuple(line for line in text.splitlines() if line.strip()) or None


def explain(field: About) -> str:
    """A field's sentence with its source, for the small question mark beside it."""
    return f"{field.help}\n\n*{field.source}*" if field.source else field.help


def changed(lm: LanguageModel, config: Any) -> dict[str, Any]:
    """The fields of a config that differ from this model's preset, for captions and labels."""
    preset = resolve(lm, type(config)())
    values = {name: getattr(config, name) for name in about(config)}
    return {name: value for name, value in values.items() if value != getattr(preset, name)}
