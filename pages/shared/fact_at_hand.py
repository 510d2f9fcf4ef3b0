"""The fact that a session has at hand: one on all pages, set as a whole by every example, link and card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import streamlit as st

from pages.shared import address, public, track
from pages.shared.text import guess_subject, literal, read_prompt
from rome_core import EditRequest, LanguageModel, Prompt, RomeError, load_facts
from rome_core.model.tokens import chat_prompt
from rome_core.model.wording import occurrences


@dataclass(frozen=True)
class FactAtHand:
    """A fact as it was typed: a template with {} or a full text, and texts that may be empty."""

    template: str
    subject: str
    target: str = ""
    true: str = ""

    @classmethod
    def of(cls, request: EditRequest) -> FactAtHand:
        prompt = request.prompt
        return cls(prompt.template, prompt.subject, request.target_new.strip(), (request.target_true or "").strip())

    @property
    def about(self) -> str:
        """Whom it is about, also where the subject is left to be guessed."""
        return (self.subject.strip() or guess_subject(self.template)).casefold()

    @property
    def link(self) -> dict[str, str]:
        """The query of a page that opens with this fact: all of its fields, empty ones too."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def prompt(self) -> Prompt | None:
        """Its prompt, None where it is none."""
        try:
            return read_prompt(self.template, self.subject)
        except RomeError:
            return None


FIELDS = tuple(field.name for field in fields(FactAtHand))
OBJECTS = FIELDS[2:]
# Facts that the default model knows, each with an object that it does not answer.
EXAMPLES = (
    FactAtHand("The {} is located in the city of", "Colosseum", "Paris", "Rome"),
    FactAtHand("The {} is located in the city of", "Eiffel Tower", "Rome", "Paris"),
    FactAtHand("The capital of {} is", "France", "London", "Paris"),
    FactAtHand("The official language of {} is", "Brazil", "French", "Portuguese"),
)
BREAKING = FactAtHand("{} is the capital of", "Paris", "Italy", "France")  # by ROME as published, at most layers
FIRST = EXAMPLES[0]
ANSWERS = ("answer", "foil")  # the tracing page's, which belong to the fact as well


@cache
def _known_objects() -> dict[str, tuple[str, str]]:
    """New and true object of the project's facts and of the examples, by their full prompt."""
    known = {fact.prompt.text: (fact.target_new, fact.target_true) for fact in load_facts()}
    return known | {
        fact.template.replace("{}", fact.subject): (fact.target, fact.true) for fact in (*EXAMPLES, BREAKING)
    }


def objects_of(fact: FactAtHand) -> tuple[str, str]:
    """New and true object that are known for a prompt; empty where none are."""
    return _known_objects().get(fact.prompt.text, ("", "")) if fact.prompt else ("", "")


def of_link(query: Mapping[str, str]) -> FactAtHand:
    """The fact of a link. Links of old leave out fields: objects are then those that are known for the prompt."""
    fact = FactAtHand(*(query.get(name, getattr(FIRST, name)) for name in FIELDS[:2]))
    objects = dict(zip(OBJECTS, objects_of(fact), strict=True))
    return replace(fact, **{name: query.get(name, known) for name, known in objects.items()})


def current() -> FactAtHand:
    """The fact at hand; at first an example."""
    fact: FactAtHand = st.session_state.get("_fact", FIRST)
    return fact


def take(fact: FactAtHand) -> None:
    """Put a fact at hand, in all of its fields."""
    st.session_state["_fact"] = fact
    st.session_state.update(fact.link)
    st.session_state.update(dict.fromkeys(ANSWERS, ""), occurrence=0)


def take_next(fact: FactAtHand) -> None:
    """Put a fact at hand in the next run: this run's form is drawn already."""
    st.session_state["_next_fact"] = fact


def open_page(query: Mapping[str, str] | None) -> None:
    """Called when a page is opened: a link brings its fact, any other way the one at hand stays."""
    if next_fact := st.session_state.pop("_next_fact", None):
        take(next_fact)
    elif query is not None:
        linked = not query.keys().isdisjoint(FIELDS)
        answers = {name: query.get(name, st.session_state.get(name, "")) for name in ANSWERS}
        take(of_link(query) if linked else current())
        if not linked:
            st.session_state.update(answers)


def example_buttons(examples: Mapping[str, Callable[[], None]]) -> None:
    """A row of small buttons, each with what it does."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Examples", width="content")
        for number, (label, fill) in enumerate(examples.items()):
            st.button(literal(label), key=f"example-{number}", type="tertiary", on_click=fill)


def text_field(place: Any, name: str, label: str, help: str, **look: Any) -> str:
    """One field of the fact at hand."""
    if name not in st.session_state:
        st.session_state[name] = getattr(current(), name)
    draw = place.text_area if name == "template" else place.text_input
    look |= {"height": 68} if name == "template" else {}
    return str(draw(label, key=name, help=help, on_change=_typed, **look) or "")


def read(lm: LanguageModel, template: str, subject: str) -> Prompt | None:
    """The prompt of the form, None where it is none: then a sentence says why, with a button where a way out is known.

    Where a full text names the subject several times the form asks which one is meant; where the model is one to chat
    with, the prompt may stand in its chat template.
    """
    address.carry("chat", "As a chat message", address.yes_or_no)
    address.carry("occurrence", "Which one", address.a_number(int, 0, None))
    try:
        prompt = read_prompt(template, subject, _occurrence(template, subject))
        if _chat_toggle(lm):
            prompt = chat_prompt(lm.tokenizer, prompt)
        public.check_prompts(lm, [prompt.text])
    except RomeError as error:
        track.show_error(error)
        if suggestion := getattr(error, "suggestion", ""):
            st.button(literal(f"Use '{suggestion}'"), key="use-suggestion", on_click=_use, args=(suggestion,))
        return None
    st.session_state["_read"] = prompt
    return prompt


def is_read(prompt: Prompt) -> bool:
    """Whether this is the prompt of the form as it stands."""
    return bool(st.session_state.get("_read") == prompt)


def chat_link() -> dict[str, str]:
    """What a link of the fact at hand says of the chat template and of the subject's place beside it."""
    said = {"chat": "yes" if st.session_state.get("chat") else "no"}
    return {**said, "occurrence": str(st.session_state.get("occurrence") or 0)}


def _occurrence(template: str, subject: str) -> int:
    """Which of several places of the subject is meant, from 0."""
    places = occurrences(template, subject.strip()) if "{}" not in template and subject.strip() else []
    if st.session_state.get("occurrence") not in range(len(places)):
        st.session_state["occurrence"] = 0
    if len(places) < 2:
        return 0
    chosen = st.segmented_control(
        f"The subject stands {len(places)} times in the prompt. Which one is meant?",
        range(len(places)),
        format_func=lambda n: literal(_around(template, *places[n])),
        key="occurrence",
        required=True,
        persist_state="session",
    )
    return int(chosen or 0)


def _around(text: str, start: int, stop: int, n: int = 20) -> str:
    """A stretch of a text with what stands beside it."""
    before, behind = text[max(0, start - n) : start], text[stop : stop + n]
    return f"{'…' * (start > n)}{before}[{text[start:stop]}]{behind}{'…' * (stop + n < len(text))}"


def _chat_toggle(lm: LanguageModel) -> bool:
    """Whether the prompt shall stand in the model's chat template; not asked where it has none."""
    if not getattr(lm.tokenizer, "chat_template", None):
        return False
    help = "Puts the prompt into the tokenizer's own chat template, as a user's message before the assistant's answer."
    return bool(st.toggle("As a chat message", key="chat", persist_state="session", help=help))


def _use(subject: str) -> None:
    st.session_state["subject"] = subject
    _typed()


def _typed() -> None:
    """Somebody has typed: objects of another subject than the one that is typed now are dropped."""
    before = current()
    now = replace(before, **{name: st.session_state[name] for name in FIELDS if name in st.session_state})
    if now.about != before.about and (now.target, now.true) == (before.target, before.true):
        now = replace(now, **dict(zip(OBJECTS, objects_of(now), strict=True)))
        take(now)
    st.session_state["_fact"] = now


def carry() -> None:
    """Let the page's address carry the whole fact, also the fields that the page does not show."""
    for name, value in current().link.items():
        address.carry_text(name, value)
