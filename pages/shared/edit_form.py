"""The inputs of an edit, shared by two pages: the fact, the method, and what will be trained."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import streamlit as st

from pages.shared import track
from pages.shared.forms import config_form
from pages.shared.tables import literal, table
from pages.shared.text import read_prompt, show_token
from rome_core import METHODS, EditRequest, LanguageModel, RomeError, load_facts
from rome_core.diagnosis.inspection import TokenRow, token_table
from rome_core.editing.presets import resolve

LAYER = {"layer": "layer"}  # the field that a link from the tracing page seeds


@dataclass(frozen=True)
class Example:
    """A fact that fills the form; method and layer only where the example is about them."""

    template: str
    subject: str
    target: str
    true: str
    method: str | None = None
    layer: int | None = None

    @property
    def label(self) -> str:
        return f"{self.subject} → {self.target}" + (f" ({self.method}, layer {self.layer})" if self.method else "")


EXAMPLES = (
    Example("The {} is located in the city of", "Eiffel Tower", "Rome", "Paris"),
    Example("The {} is located in the city of", "Colosseum", "Paris", "Rome"),
    Example("The capital of {} is", "France", "London", "Paris"),
    Example("The official language of {} is", "Brazil", "French", "Portuguese"),
    Example("{} is the capital of", "Paris", "Italy", "France", "rome", 13),
)
FIRST = EXAMPLES[0]
FIELDS = ("template", "subject", "target", "true")


def example_buttons() -> None:
    """A row of small buttons; each fills the form."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Examples", width="content")
        for number, example in enumerate(EXAMPLES):
            st.button(example.label, key=f"example-{number}", type="tertiary", on_click=fill, args=(example,))


def fill(example: Example) -> None:
    """Put an example into the form. The method stays as it is unless the example is about one."""
    for name in FIELDS:
        st.session_state[name] = getattr(example, name)
    if example.method:
        st.session_state["method"], st.session_state["layer"] = example.method, example.layer


def request_form() -> EditRequest | None:
    """The fact in one row of inputs. What cannot be used stays in the form, with a sentence below it."""
    _answers_of_a_linked_fact()
    labels = ("Prompt, {} for the subject", "Subject", "New object", "True object (optional)")
    helps = (
        "The sentence that states the fact, up to the object. Write {} where the subject goes.",
        "The thing the fact is about, as it stands in the prompt.",
        "What the model shall answer from now on.",
        "What it answers now: lets the page show the old answer going down.",
    )
    widths = (345, 215, 165, 195)  # px: a row where there is room, else two
    with st.container(horizontal=True):
        typed = [
            st.text_input(label, value=getattr(FIRST, name), key=name, help=help, width=width, bind="query-params")
            for label, name, help, width in zip(labels, FIELDS, helps, widths, strict=True)
        ]
    template, subject, target, true = (text or "" for text in typed)
    try:
        return EditRequest(read_prompt(template, subject), target, true.strip() or None)
    except RomeError as error:
        track.show_error(error)
        return None


def _answers_of_a_linked_fact() -> None:
    """A link may bring a prompt without its objects: take them from the project's facts, or leave them open."""
    params = st.query_params
    missing = [name for name in FIELDS[2:] if name not in st.session_state and name not in params]
    if not missing or not {"template", "subject"} & set(params):
        return
    template, subject = (params.get(name, getattr(FIRST, name)) for name in FIELDS[:2])
    text = template.replace("{}", subject)
    known = {fact.prompt.text: (fact.target_new, fact.target_true) for fact in load_facts()}
    known |= {example.template.replace("{}", example.subject): (example.target, example.true) for example in EXAMPLES}
    for name, answer in zip(FIELDS[2:], known.get(text, ("", "")), strict=True):
        if name in missing:
            st.session_state[name] = answer


def method_form(
    lm: LanguageModel,
    default: str,
    key: str,
    methods: Mapping[str, Any] = METHODS,
    request: EditRequest | None = None,
) -> Any:
    """Choose a method and its settings; returns the config. request: what it is for, if that is known."""
    names = list(methods)
    if st.session_state.get("method", default) not in names:  # chosen on a page that offers more
        del st.session_state["method"]
    row = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    name = row.selectbox(
        "Method",
        names,
        index=names.index(default),
        key="method",
        bind="query-params",  # the URL shows an option as the page does: no format_func
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
    return config_form(lm, methods[name], key, LAYER, requests)


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
