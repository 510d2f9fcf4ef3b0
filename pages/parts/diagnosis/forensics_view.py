"""A changed model on the page: layer and rank of the change, what it promotes, for which subject; taking it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from pages.shared import public, session, track
from pages.shared.tables import table
from pages.shared.text import count, literal, number, show_token
from rome_core import EditRequest, LanguageModel, Prompt, RomeError
from rome_core.diagnosis.forensics import Change, Suspect, as_edit, changes_of, promoted, suspects
from rome_core.progress import Track

JOB = ("diagnosis", "forensics")
SHOWN, READ = 30, 3  # changes in the table; down projections whose factors are read


@dataclass(frozen=True, eq=False)
class Reading:
    """One changed down projection: the prompts that it answers, and the tokens that its value promotes there."""

    change: Change
    suspects: tuple[Suspect, ...]
    tokens: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Findings:
    folder: str
    base: str
    changes: tuple[Change, ...]
    readings: tuple[Reading, ...]
    compared: int
    not_compared: Mapping[str, str]
    named: str  # the base that an adapter names


def view(lm: LanguageModel) -> None:
    st.markdown(
        f"A folder on the server with an edited checkpoint or a LoRA adapter is compared with the loaded model, "
        f"{literal(lm.name)}."
    )
    folder = public.path_field(
        "Folder", key="forensics-folder", placeholder="/models/edited", help="*.safetensors, or adapter_config.json."
    )
    if st.button("Compare", key="compare-folder", type="primary", disabled=public.is_public()):
        if path := folder.strip():
            session.start_job(JOB, f"Comparing {path}", lambda job: examine(lm, path, job.track))
        else:
            st.error("The folder is empty. Write the path of an edited checkpoint or of a LoRA adapter.")
    job: track.Job[None, Findings] | None = session.find_job(JOB)
    if job is None:
        return
    if job.result is None:
        track.panel(job)
    elif job.result.base == lm.fingerprint:
        show(lm, job.result)


def examine(lm: LanguageModel, folder: str, track: Track) -> Findings:
    """Find every change, and read the factors of the largest changes of down projections."""
    found = changes_of(lm, folder, track)
    changes = tuple(sorted(found, key=lambda change: -change.relative))
    readings = []
    for change in [change for change in changes if change.layer is not None][:READ]:
        answering = suspects(lm, change, track=track)
        sign = answering[0].response if answering else 1.0
        readings.append(Reading(change, answering, tuple(promoted(lm, change, sign))))
    return Findings(folder, lm.fingerprint, changes, tuple(readings), found.compared, found.not_compared, found.base)


def show(lm: LanguageModel, findings: Findings) -> None:
    if findings.not_compared:
        st.warning(literal(unknown(findings)))
    if findings.named not in ("", lm.name, lm.source and lm.source.place):
        st.warning(literal(f"The adapter is of {findings.named}; it is compared with {lm.name}."))
    if not findings.changes:
        same = f"{count(findings.compared, 'weight')} of {findings.folder} and {lm.name} are the same."
        (st.info if findings.not_compared else st.success)(literal(same))
        return
    st.markdown(literal(summary(findings)))
    table([row(change) for change in findings.changes[:SHOWN]])
    if len(findings.changes) > SHOWN:
        st.caption(f"And {len(findings.changes) - SHOWN} more, each smaller.")
    for reading in findings.readings:
        show_reading(reading)
    if st.button("Take it as an edit of this session", key="take", help="The loaded weights are not written."):
        try:
            session.put_edit(as_edit(lm, findings.changes, request_of(findings)), f"found in {findings.folder}")
            st.rerun()
        except RomeError as error:
            track.show_error(error)
    st.caption(
        "As an edit it acts as an overlay: switched on the loaded model is the other one, switched off it is itself "
        "again. To revert an edited model, load it and compare it with its base."
        + (" What was not compared is not in it." if findings.not_compared else "")
    )


def summary(findings: Findings) -> str:
    """The finding in one sentence."""
    layers = sorted({change.layer for change in findings.changes if change.layer is not None})
    most = findings.changes[0]
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}" if layers else "no down projection"
    rank = f", of rank {most.rank}" if most.delta is not None else ""
    changed = count(len(findings.changes), "weight")
    return f"{changed} changed, in {where}; the largest is {most.weight}{rank}, {number(most.relative)} of its norm."


def unknown(findings: Findings) -> str:
    """What was not compared: how many, and which of them, each with its reason."""
    names = [f"{name} ({why})" for name, why in findings.not_compared.items()]
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    verb = "was" if len(names) == 1 else "were"
    return f"{count(len(names), 'tensor')} {verb} not compared: {'; '.join(names[:SHOWN])}{more}."


def row(change: Change) -> dict[str, str]:
    return {
        "weight": change.weight,
        "layer": "–" if change.layer is None else str(change.layer),
        "rank": str(change.rank) if change.delta is not None else "–",
        "‖Δ‖ / ‖W‖": number(change.relative),
        "in the first factor": f"{change.energy[0]:.1%}" if change.energy else "–",
    }


def show_reading(reading: Reading) -> None:
    st.markdown(f"**Layer {reading.change.layer}: what its strongest factor answers, and with what**")
    left, right = st.columns(2)
    with left:
        table([{"prompt": s.prompt, "response": f"{abs(s.response):.3f}"} for s in reading.suspects])
        st.caption("The project's facts whose key the factor answers most: |v·k| / ‖v‖‖k‖.")
    with right:
        table([{"token": show_token(token), "logit": number(value)} for token, value in reading.tokens])
        st.caption("Tokens that its value promotes for the first of them, through final norm and head.")


def request_of(findings: Findings) -> EditRequest:
    """What the change seems to be about, for the edit's name: the prompt that it answers most, and its first token."""
    for reading in findings.readings:
        if reading.suspects and reading.tokens:
            prompt = Prompt.from_text(reading.suspects[0].prompt, reading.suspects[0].subject)
            return EditRequest(prompt, reading.tokens[0][0].strip() or "?")
    return EditRequest(Prompt("{} is changed", findings.changes[0].weight), "?")
