"""The inputs of the tracing page, and what is said about them before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.shared import address, fact_at_hand, session, track
from pages.shared.forms import carry_fields, widget
from pages.shared.text import code, guess_subject, literal, number, show_token
from rome_core import LanguageModel, Prompt, RomeError, TraceConfig, continuation_probabilities
from rome_core.errors import PromptError
from rome_core.model.scoring import next_tokens
from rome_core.model.tokens import as_target, cut_token
from rome_core.settings import about
from rome_core.tracing.runs import DEFAULT_BUDGET, TraceRequest

SHOWN_TOKENS = 4
UNSURE = 0.1  # below this clean probability there is little to restore
GIB = 2**30
MEMORY = 0.1, 64.0  # GiB, at least and at most


def example_buttons() -> None:
    """A row of facts; each fills the form."""
    fact_at_hand.example_buttons({fact.subject: partial(fact_at_hand.take, fact) for fact in fact_at_hand.EXAMPLES})


def request_form(lm: LanguageModel) -> tuple[TraceRequest | None, bool]:
    """What the form asks to be traced, None when it cannot be (a sentence says why), and whether to run it."""
    fact_at_hand.carry()
    address.carry("answer", "Answer", str)
    columns = st.columns([5, 2.5, 2])
    text = fact_at_hand.text_field(
        columns[0],
        "template",
        "Prompt",
        "A sentence up to the word it asks for. Write {} where the subject goes, or the whole sentence.",
    )
    subject = fact_at_hand.text_field(
        columns[1],
        "subject",
        "Subject",
        "The thing the fact is about; its tokens are made unreadable. Left empty, it is guessed.",
        placeholder="guessed",
    )
    answer = columns[2].text_input(
        "Answer",
        key="answer",
        persist_state="session",
        placeholder="the model's",
        help="The text whose probability is followed; by default the model's most probable next token.",
    )
    prompt = fact_at_hand.read(lm, text, subject)
    config, foil, budget = settings_form(lm)
    row = st.container(horizontal=True, vertical_alignment="center")
    place = row.empty()
    request = _read_request(prompt, answer or "", foil, config, budget) if prompt else None
    guessed = "" if "{}" in text or subject.strip() else guess_subject(text)
    ready = request is not None and _say(row, lm, request, guessed)
    run = place.button("Trace", type="primary", shortcut="Ctrl+Enter", disabled=not ready, key="run")
    return (request if ready else None), run


def settings_form(lm: LanguageModel) -> tuple[TraceConfig, str, int]:
    """Settings of the trace, drawn from the config's own description, the second answer, and bytes to work with.

    All three kinds are always traced.
    """
    described = {name: field for name, field in about(TraceConfig).items() if name != "site"}
    default, values = TraceConfig(), dict[str, Any]()
    carry_fields(default, {name: f"trace-{name}" for name in described}, lm)
    address.carry("foil", "Second answer", str)
    address.carry("trace-memory", "Memory", address.a_number(float, *MEMORY))
    with st.expander("Settings"):
        places = st.columns(4) + st.columns(4)
        for place, (name, field) in zip(places, described.items(), strict=False):
            with place:
                values[name] = widget(field, getattr(default, name), {"key": f"trace-{name}"}, lm)
        foil = places[len(described)].text_input(
            "Second answer",
            key="foil",
            persist_state="session",
            disabled=values["metric"] != "logit difference",
            help="What the logit of the answer is compared with.",
        )
        memory = places[len(described) + 1].number_input(
            "Memory (GiB)",
            *MEMORY,
            DEFAULT_BUDGET / GIB,
            0.5,
            key="trace-memory",
            persist_state="session",
            help="At most this much for the states of restored runs that share a batch. Changes speed, not numbers.",
        )
        st.caption(
            "MLP and attention are restored over a window because one layer alone moves the answer too little to see; "
            "the residual stream carries everything, so one layer of it is enough."
        )
    return TraceConfig(**values), (foil or "").strip(), int(memory * GIB)


def _read_request(prompt: Prompt, answer: str, foil: str, config: TraceConfig, budget: int) -> TraceRequest | None:
    if config.metric == "logit difference" and not foil:
        track.show_error(PromptError("The logit difference needs a second answer.", "", "Write one in the settings."))
        return None
    followed = as_target(answer, prompt.text) if answer.strip() else None
    second = as_target(foil, prompt.text) if config.metric == "logit difference" else None
    return TraceRequest(prompt, config, followed, second, session.active(), budget)


def _say(place: DeltaGenerator, lm: LanguageModel, request: TraceRequest, guessed: str) -> bool:
    """What the model answers now, and what may be wrong with the request. False if it cannot be traced at all."""
    try:
        top, p_answer = _clean_run(lm, request)
        doubts = warnings(lm, request, top, p_answer)
    except RomeError as error:
        track.show_error(error)
        return False
    continuation = ", ".join(f"{code(show_token(token))} {number(p)}" for token, p in top[:SHOWN_TOKENS])
    who = "The edited model" if request.edits else "The model"
    subject = f"Subject guessed: **{literal(guessed)}**. " if guessed else ""
    place.caption(f"{subject}{who} continues with {continuation}.")
    for sentence in doubts:
        st.warning(literal(sentence))
    return True


def warnings(lm: LanguageModel, request: TraceRequest, top: Sequence[tuple[str, float]], p_answer: float) -> list[str]:
    """What the user should know before running: each a sentence with what to do."""
    prompt, sentences = request.prompt, list[str]()
    if token := cut_token(lm.tokenizer, prompt):
        sentences.append(
            f"The subject is cut inside the token ‘{show_token(token)}’: the whole token counts as subject."
        )
    first, p_first = top[0]
    if request.answer and p_answer < p_first and not first.strip().startswith(request.answer.strip()):
        sentences.append(
            f"‘{show_token(request.answer)}’ (p {number(p_answer)}) is not the model's first choice: "
            f"that is ‘{show_token(first)}’ (p {number(p_first)})."
        )
    if p_answer < UNSURE:
        sentences.append(
            f"The model is unsure (p {number(p_answer)}): with so little to restore, heat maps say little."
        )
    return sentences


def _clean_run(lm: LanguageModel, request: TraceRequest) -> tuple[list[tuple[str, float]], float]:
    key = ("clean", lm.fingerprint, request.key)

    def run() -> tuple[list[tuple[str, float]], float]:
        top = next_tokens(lm, request.prompt.text, edits=request.edits)
        p = top[0][1]
        if request.answer:
            [p] = continuation_probabilities(lm, request.prompt.text, [request.answer], edits=request.edits)
        return top, p

    return session.compute_once(key, run)
