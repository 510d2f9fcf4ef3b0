"""The inputs of an edit, shared by two pages: the fact, the method, and what will be trained."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import streamlit as st

from pages.shared import address, fact_at_hand, recommendation, track
from pages.shared.fact_at_hand import FactAtHand
from pages.shared.forms import config_form
from pages.shared.tables import table
from pages.shared.text import literal, show_token
from rome_core import METHODS, EditRequest, LanguageModel, RomeError
from rome_core.diagnosis.inspection import TokenRow, token_table
from rome_core.editing.method import MethodConfig
from rome_core.editing.presets import preset, resolve
from rome_core.editing.published import PublishedSet, applied, published_for

LAYER = {"layer": "layer"}  # the field that a link from the tracing page seeds
FACT_FIELDS = (  # name, label, help, and a width in px: a row where there is room, else two
    (
        "template",
        "Prompt, {} for the subject",
        "The sentence that states the fact, up to the object. Write {} where the subject goes.",
        345,
    ),
    ("subject", "Subject", "The thing the fact is about, as it stands in the prompt.", 215),
    ("target", "New object", "What the model shall answer from now on.", 165),
    ("true", "True object (optional)", "What it answers now: lets the page show the old answer going down.", 195),
)


@dataclass(frozen=True)
class Example:
    """A fact that fills the form; method and layer only where the example is about them."""

    fact: FactAtHand
    method: str | None = None
    layer: int | None = None

    @property
    def label(self) -> str:
        named = f" ({self.method}, layer {self.layer})" if self.method else ""
        return f"{self.fact.subject} → {self.fact.target}{named}"

    def fill(self) -> None:
        """Put it into the form. The method stays as it is unless the example is about one."""
        fact_at_hand.take(self.fact)
        if self.method:
            st.session_state["method"], st.session_state["layer"] = self.method, self.layer


EXAMPLES = (
    *map(Example, fact_at_hand.EXAMPLES),
    Example(fact_at_hand.BREAKING, "rome", 13),
)


def example_buttons() -> None:
    """A row of small buttons; each fills the form."""
    fact_at_hand.example_buttons({example.label: example.fill for example in EXAMPLES})


def request_form(lm: LanguageModel) -> EditRequest | None:
    """The fact in one row of inputs. What cannot be used stays in the form, with a sentence below it."""
    fact_at_hand.carry()
    row = st.container(horizontal=True)
    template, subject, target, true = (
        fact_at_hand.text_field(row, name, label, help, width=width) for name, label, help, width in FACT_FIELDS
    )
    prompt = fact_at_hand.read(lm, template, subject)
    try:
        return EditRequest(prompt, target, true.strip() or None) if prompt else None
    except RomeError as error:
        track.show_error(error)
        return None


def method_form(
    lm: LanguageModel,
    default: str,
    key: str,
    methods: Mapping[str, Any] = METHODS,
    request: EditRequest | None = None,
) -> Any:
    """Choose a method and its settings; returns the config. request: what it is for, if that is known."""
    names = list(methods)
    address.carry("method", "Method", address.one_of(names))
    if st.session_state.get("method", default) not in names:  # chosen on a page that offers more
        del st.session_state["method"]
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    name = row.selectbox(
        "Method",
        names,
        index=names.index(default),
        key="method",
        persist_state="session",
        width=170,
        help="How the update is computed from the same key and value.",
    )
    with row.container(width="content", gap=None):
        st.caption(literal(methods[name].title))
        st.latex(methods[name].formula, width="content")
    requests = [request] if request else []
    usual, preset = (resolve(lm, methods[name](), which) for which in ([], requests))
    if preset != usual:
        st.caption(
            f"The subject is the prompt's first token, whose key is the attention sink's from an early layer on. Such "
            f"subjects have presets of their own: layer {preset.layer}, clamp {preset.clamp:g}, {preset.steps} steps."
        )
    chosen = _choose_published(lm, methods[name], key)
    config = config_form(lm, methods[name], key, LAYER, requests)
    if chosen:
        changed = any(getattr(config, field) != value for field, value in applied(chosen, config).items())
        st.caption(literal(f"{chosen.source}{' Changed since.' if changed else ''}"))
    if config.layers:
        st.caption(recommendation.tell(lm, config.layers[-1], request.prompt if request else None))
    return config


def _choose_published(lm: LanguageModel, method: type[MethodConfig], key: str) -> PublishedSet | None:
    """Offer what others have published for this model; to choose a set fills the fields. None: the model's preset."""
    sets = {one.label: one for one in published_for(lm, method.name)}
    if not sets:
        return None
    own, at = f"Preset: {preset(lm).source}", f"{key}-{method.name}-set"

    def fill() -> None:
        one = sets.get(st.session_state[at])
        for field in {field for each in sets.values() for field in applied(each, method())}:
            name = LAYER.get(field, f"{key}-{field}")
            if one and field in one.values:
                kind = type(getattr(resolve(lm, method()), field))
                st.session_state[name] = kind(one.values[field])
            else:
                st.session_state.pop(name, None)

    name = st.selectbox("Settings", [own, *sets], key=at, on_change=fill, persist_state="session", width=520)
    return sets.get(name)


def with_settings_of(config: Any, other: type) -> Any:
    """Another method's config with the same values in the fields that both describe in the same words."""
    if type(config) is other:
        return config
    mine = {f.name: f.metadata for f in fields(config)}
    same = [f.name for f in fields(other) if mine.get(f.name) == f.metadata]
    return other(**{name: getattr(config, name) for name in same})


def token_inspector(lm: LanguageModel, request: EditRequest) -> None:
    """The tokens as the model reads them, and which of them take part in training."""
    try:
        rows = token_table(lm, request)
    except RomeError as error:
        track.show_error(error)
        return
    st.html(token_strip(rows))
    with st.expander("What exactly is trained"):
        table([{"token": show_token(r.text), "id": r.id, "role": r.role, "what is done with it": use(r)} for r in rows])


def use(row: TokenRow) -> str:
    """What the optimisation does with a token."""
    if row.role == "subject's last":
        return "δ is added to the MLP output here; its input is the key"
    return "its probability is trained" + f" ({row.gap})" * bool(row.gap) if row.trained else ""


TOKEN = "font-family:ui-monospace,monospace;font-size:14px;padding:2px 3px;border-radius:3px;display:inline-block"


def token_strip(rows: Sequence[TokenRow]) -> str:
    """The tokens in a line, the subject's starred, the target's in the colour of after."""
    return '<p style="line-height:2;margin:0">' + "".join(map(_token, rows)) + "</p>"


def _token(row: TokenRow) -> str:
    subject = row.role.startswith("subject")
    colour = "217,130,43" if row.trained else "128,128,128"
    strength = 0.5 if row.role == "subject's last" else 0.28 if subject or row.trained else 0
    style = f"{TOKEN};background:rgba({colour},{strength})"
    return f'<span title="{row.role}" style="{style}">{html.escape(show_token(row.text))}{"*" * subject}</span>'
