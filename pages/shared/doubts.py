"""What is doubtful about an edit before anything runs: that it asks for what is true, or for what the model says."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.shared import session
from pages.shared.text import literal, number
from rome_core import EditRequest, LanguageModel, RomeError
from rome_core.editing.edit import Edit
from rome_core.model.scoring import Scored, score
from rome_core.model.tokens import as_target

AT_ONCE = 200  # requests whose present answers are asked for; more would keep the page waiting


def tell(lm: LanguageModel, request: EditRequest, below: tuple[Edit, ...]) -> None:
    """Say what is doubtful about a request, before it is run."""
    for sentence in filter(None, of_requests(lm, [request], below)):
        st.warning(literal(sentence))


def of_requests(lm: LanguageModel, requests: Sequence[EditRequest], below: tuple[Edit, ...]) -> list[str]:
    """A sentence for each request, empty where nothing is doubtful. below: the edits that act already."""
    asked = list(requests[:AT_ONCE])
    try:
        answers: list[Scored | None] = [*_present_answers(lm, asked, below)]
    except RomeError:  # said where the request is used
        answers = []
    answers += [None] * (len(requests) - len(answers))
    return [_doubt(request, answer) for request, answer in zip(requests, answers, strict=True)]


def _doubt(request: EditRequest, answer: Scored | None) -> str:
    target = request.target_new.strip()
    if answer is not None and all(answer.hits):
        return f"The model answers “{target}” already (p {number(answer.p_joint)}): this edit would change nothing."
    if target.casefold() == (request.target_true or "").strip().casefold():
        return f"The new object and the true one are both “{target}”: no score can tell them apart."
    return ""


def _present_answers(lm: LanguageModel, requests: Sequence[EditRequest], below: tuple[Edit, ...]) -> list[Scored]:
    """How probable each new object is now, in as few passes as hold them all; kept by prompt."""
    pairs = [(request.prompt.text, as_target(request.target_new, request.prompt.text)) for request in requests]
    acting = (lm.fingerprint, tuple(edit.id for edit in below))
    kept: dict[tuple[str, str], Scored] = session.compute_once(
        ("present answers", *acting), dict[tuple[str, str], Scored]
    )
    missing = [pair for pair in dict.fromkeys(pairs) if pair not in kept]
    if missing:
        kept.update(zip(missing, score(lm, missing, edits=below), strict=True))
    return [kept[pair] for pair in pairs]
