"""Many diagnoses on the page: a pasted list, a file, the project's facts, or this session's edits."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import streamlit as st

from pages.shared import edit_form, moment_panel, public, session, track, uploads, verdicts
from pages.shared.charts import download, result_of
from pages.shared.tables import table
from pages.shared.text import count, literal, number
from rome_core import DEFAULT_METHOD, EditRequest, LanguageModel, RomeError, load_facts
from rome_core.diagnosis.many import Screened, diagnose_many, diagnose_sequence
from rome_core.editing.edit import Edit
from rome_core.editing.shared_search import policies
from rome_core.facts.requests import PASTED, Requests, read_requests
from rome_core.files import csv_text
from rome_core.progress import Track

JOB = ("diagnosis", "many")
LIST, FILE, FACTS, EDITS = "A list", "A file", "The project's facts", "This session's edits"
EXAMPLE = (
    "{} is the capital of | Paris | Italy | France\n"
    "{} is a company founded by | Microsoft | Einstein | Bill Gates\n"
    "{} plays the sport of | LeBron James | golf | basketball"
)
SHOWN_PROBLEMS = 5
Work = Callable[[Track], Iterable[Screened]]


@dataclass(frozen=True)
class Asked:
    """Which edits are to be diagnosed, and how: two that read the same are the same, whoever makes their work."""

    title: str
    settings: dict[str, Any]
    requests: tuple[EditRequest, ...]
    work: Work = field(compare=False)


@dataclass(frozen=True, eq=False)
class Screening:
    """The diagnoses so far, and with which settings they were made."""

    model: str
    settings: dict[str, Any]
    found: tuple[Screened, ...]


def view(lm: LanguageModel) -> None:
    source = st.segmented_control(
        "Which edits",
        [LIST, FILE, FACTS, EDITS],
        default=LIST,
        required=True,
        key="many-source",
        persist_state="session",
    )
    asked = of_edits(lm) if source == EDITS else of_requests(lm, source)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button("Diagnose all", key="diagnose-all", type="primary", disabled=asked is None)
        st.caption("Solves each by itself and applies none.", width="content")
    if pressed and asked:
        work = partial(run, lm.name, asked.settings, asked.work)
        public.check_prompts(lm, [request.prompt.text for request in asked.requests])
        session.start_job(JOB, f"Diagnosing {asked.title}", work, asked=asked, facts=len(asked.requests))
    job: track.Job[Screening, None] | None = session.find_job(JOB)
    if job is not None:
        with result_of(job.label, job.asked != asked, "Diagnose all"):
            track.panel(job, draw)
            if not job.live and job.partial:
                downloads(job.partial)


def run(model: str, settings: dict[str, Any], work: Work, job: track.Job[Screening, None]) -> None:
    """Publish every diagnosis as it is found: what a stopped run has found stays."""
    found: list[Screened] = []
    for one in work(job.track):
        found.append(one)
        job.partial = Screening(model, settings, tuple(found))


def of_edits(lm: LanguageModel) -> Asked | None:
    edits: tuple[Edit, ...] = session.active()
    if not edits:
        st.info("No edit is active. Solve one on the Edit page, or diagnose a list.")
        return None
    title = f"{count(len(edits), 'edit')} of this session"
    settings = {"edits": [edit.id for edit in edits]}
    return Asked(title, settings, (), lambda track: diagnose_sequence(lm, edits, track=track))


def of_requests(lm: LanguageModel, source: str) -> Asked | None:
    reading = Requests()
    try:
        reading = choose(source)
    except RomeError as error:
        track.show_error(error)
    requests, problems = reading.requests, reading.problems
    tell = st.warning if requests else st.error
    for problem in problems[:SHOWN_PROBLEMS]:
        tell(literal(str(problem)))
    if len(problems) > SHOWN_PROBLEMS:
        st.caption(f"And {len(problems) - SHOWN_PROBLEMS} more that cannot be read.")
    for note in reading.notes:
        st.caption(literal(note))
    config = edit_form.method_form(lm, DEFAULT_METHOD, "edit", policies())
    if not requests:
        return None
    st.caption(f"{count(len(requests), 'edit')} to diagnose.")
    below, moments = session.active(), moment_panel.moments(lm, config.layers)

    def work(track: Track) -> Iterator[Screened]:
        return diagnose_many(lm, requests, config, moments=moments, edits=below, track=track)

    first, n = requests[0].prompt.subject, len(requests) - 1
    title = (f"{first} and {count(n, 'other')}" if n else first) + f" by {config.name}"
    settings = {"method": config.name, **asdict(config), "on": [edit.id for edit in below]}
    return Asked(title, settings, tuple(requests), work)


def choose(source: str) -> Requests:
    """What is to be diagnosed: typed, uploaded, or drawn from the project's facts."""
    if source == LIST:
        return read_requests(
            st.text_area("One edit a line", EXAMPLE, key="many-list", height=120, help=PASTED, persist_state="session")
            or ""
        )
    if source == FILE:
        read = lambda files: read_requests(files[-1][1], files[-1][0])  # noqa: E731
        return uploads.uploaded_and_kept("A table, JSON, or lines of text", "many-file", read) or Requests()
    facts = list(load_facts())
    left, right = st.columns(2)
    n = left.number_input(
        "Facts", 1, len(facts), 20, key="many-n", help=f"Of {len(facts)}; each takes a while.", persist_state="session"
    )
    seed = right.number_input(
        "Seed", 0, None, 0, key="many-seed", help="Of the choice of facts.", persist_state="session"
    )
    random.Random(int(seed)).shuffle(facts)
    return Requests(tuple(fact.request for fact in facts[: int(n)]))


# ------------------------------------------------------------------------------------------------------------- result


def draw(job: track.Job[Screening, None]) -> None:
    if job.partial is None:
        return
    found = job.partial.found
    tally = Counter[str | None](one.verdict for one in found)
    parts = [f"{tally[verdict]} {verdicts.label(verdict)}" for verdict in verdicts.SHAPES if tally[verdict]]
    if tally[None]:
        parts.append(f"{tally[None]} not diagnosed")
    st.markdown(" · ".join(parts))
    if any(one.diagnosis and not one.diagnosis.calibrated for one in found):
        st.caption("Not calibrated for this model: the thresholds are provisional.")
    order = [*reversed(verdicts.SHAPES), None]
    table([row(one) for one in sorted(found, key=lambda one: order.index(one.verdict))])


def row(one: Screened) -> dict[str, str]:
    """The worst first; an edit that could not be diagnosed says why."""
    d = one.diagnosis
    return {
        "edit": f"{one.request.prompt.text} → {one.request.target_new.strip()}",
        "verdict": verdicts.label(one.verdict) if one.verdict else one.error,
        "denominator": verdicts.large(d.denominator) if d else "–",
        "k₀ᵀC⁻¹k*": verdicts.large(d.k0_kstar) if d else "–",
        verdicts.QUANTITIES["relative_F"]: number(one.relative_F) if one.relative_F is not None else "–",
        "first token": ("yes" if d.subject_first else "no") if d else "–",
    }


def downloads(screening: Screening) -> None:
    with st.container(horizontal=True):
        download("Download as CSV", lambda: as_csv(screening), "diagnoses.csv")
        download("Download as JSON", lambda: as_json(screening), "diagnoses.json")


def record(one: Screened) -> dict[str, Any]:
    """Everything about one diagnosis as plain data."""
    result: dict[str, Any] = {
        "prompt": one.request.prompt.template,
        "subject": one.request.prompt.subject,
        "target_new": one.request.target_new,
        "target_true": one.request.target_true,
        "error": one.error,
        "verdict": one.verdict,
        "relative_F": one.relative_F,
    }
    if one.diagnosis:
        names = [name.name for name in fields(one.diagnosis) if name.name not in ("reference", "verdict")]
        result |= {name: getattr(one.diagnosis, name) for name in names}
    return result


def as_json(screening: Screening) -> str:
    about = {"model": screening.model, "settings": screening.settings}
    return json.dumps({**about, "diagnoses": [record(one) for one in screening.found]}, ensure_ascii=False, indent=1)


def as_csv(screening: Screening) -> str:
    """A line an edit; model and settings in every line, so that a part of the file says what it is."""
    records = [record(one) for one in screening.found]
    about = {"model": screening.model, "settings": json.dumps(screening.settings, ensure_ascii=False)}
    names = list(dict.fromkeys(name for one in records for name in one))
    rows = ({**one, **about} for one in records)
    return csv_text([*names, *about], [[row.get(name, "") for name in (*names, *about)] for row in rows])
