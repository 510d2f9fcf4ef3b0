"""Where to edit: scores of edits layer by layer, beside where tracing finds the facts."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import streamlit as st

from pages.parts.edit.layer_figure import layers_figure
from pages.shared import session, track
from pages.shared.charts import ask_once, download, draw_chart, page_theme, result_of
from pages.shared.recommendation import recommend, tell_moment
from pages.shared.text import count, literal, number
from pages.shared.winners import contenders
from rome_core import DEFAULT_METHOD, DEFAULT_MODEL, METHODS, EditRequest, LanguageModel
from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation import Score
from rome_core.evaluation.layer_sweep import Swept, as_record, by_layer, from_record, sweep
from rome_core.facts.datasets import facts_of
from rome_core.files import STUDIES
from rome_core.tracing import average_records
from rome_core.tracing.averages import Averages, average

STUDY = STUDIES / "layers.jsonl"
SHIPPED, HERE = "The shipped study", "This session's sweep"
JOB = ("sweep", "job")


@dataclass(frozen=True, eq=False)
class Records:
    """Records of a sweep with where they come from. settings: what a caption says of them."""

    source: str
    fingerprint: str
    rows: tuple[Swept, ...]
    settings: str = ""


def view(lm: LanguageModel, request: EditRequest | None, config: MethodConfig) -> None:
    st.markdown(
        "The same facts are edited in one layer after another. **Which layer holds a new fact, passes it on to other "
        "words and leaves the neighbours alone**, and is it where tracing finds the facts?"
    )
    place = st.container()
    asked = form(lm, config)
    with place:
        result(lm, asked)


def result(lm: LanguageModel, asked: tuple[object, ...]) -> None:
    """This session's sweep or the shipped study. asked: what the form asks now."""
    job: track.Job[Records, None] | None = session.find_job(JOB)
    here = job.partial if job is not None and job.partial and job.partial.fingerprint == lm.fingerprint else None
    sources = {r.source: r for r in (here, shipped(lm)) if r is not None and r.rows}
    if here is not None and job is not None and job.live:
        with result_of(job.label, job.asked != asked, "Run"):
            track.panel(job, lambda job: figure(lm, job.partial) if job.partial and job.partial.rows else None)
    elif sources:
        names = list(sources)
        chosen = st.segmented_control(
            "Show", names, default=names[0], key="sweep-source", required=True, persist_state="session"
        )
        shown = chosen if chosen in sources else names[0]
        moved_on = shown == HERE and job is not None and job.asked != asked
        with result_of(job.label if job and shown == HERE else shown, moved_on, "Run"):
            figure(lm, sources[shown])
    else:
        if job is not None and not job.live:
            track.panel(job)
        st.info(f"No sweep of {literal(lm.name)} is there yet. Run one here or on the command line.")
        if averages := effects(lm):
            words = f"{lm.name} · docs/studies/{average_records.STUDY.name}, {count(averages.n, 'fact')}"
            draw_chart(layers_figure({}, averages, words, page_theme()), "sweep-none", "edit")


def shipped(lm: LanguageModel) -> Records | None:
    """The study of the default model that ships with the project."""
    if lm.name != DEFAULT_MODEL or not STUDY.exists():
        return None
    rows = ask_once(("sweep study", STUDY.stat().st_mtime), lambda: _read(STUDY.read_text(encoding="utf-8")))
    return Records(SHIPPED, lm.fingerprint, tuple(rows or ()), f"docs/studies/{STUDY.name}")


def _read(text: str) -> list[Swept]:
    rows = []
    for line in text.splitlines():
        try:
            rows.append(from_record(json.loads(line)))
        except (json.JSONDecodeError, KeyError, TypeError):  # a last line that was cut off
            continue
    return rows


def effects(lm: LanguageModel) -> Averages | None:
    """The shipped average tracing effects, which are the default model's."""
    if lm.name != DEFAULT_MODEL:
        return None
    source = average_records.shipped_records()
    return None if source is None else ask_once(("sweep effects", len(source.rows)), lambda: average(source.rows))


def figure(lm: LanguageModel, records: Records) -> None:
    """Scores by layer of one policy, above the tracing effects, and the layer to take."""
    policies = list(dict.fromkeys(name for row in records.rows for name in row.cases))
    if not policies:
        reasons = {row.error for row in records.rows}
        st.warning(literal(f"No fact could be edited: {' '.join(sorted(reasons))}"))
        return
    default = policies.index(DEFAULT_METHOD) if DEFAULT_METHOD in policies else 0
    policy = st.selectbox(
        "Policy", policies, index=default, key=f"sweep-policy-{records.source}", width=170, persist_state="session"
    )
    scores = by_layer(records.rows, policy)
    drawn = layers_figure(scores, effects(lm), caption(lm, records, policy), page_theme())
    draw_chart(drawn, f"sweep-{records.source}", "edit")
    recommended(lm, scores, records.source)
    lines = lambda: "\n".join(json.dumps(as_record(row), ensure_ascii=False) for row in records.rows)  # noqa: E731
    download("Records (JSON lines)", lines, "layers.jsonl", f"sweep-records-{records.source}")


def recommended(lm: LanguageModel, scores: Mapping[int, Mapping[str, Score]], source: str) -> None:
    """The layer to take, which is the same on every page, and what this sweep says of it."""
    best = recommend(lm)
    with st.container(horizontal=True, vertical_alignment="center"):
        use = partial(st.session_state.update, layer=best.layer)
        st.button(f"Use layer {best.layer} (recommended)", key=f"sweep-use-{source}", on_click=use)
        st.caption(f"Because {best.reason}. {tell_moment(lm, best.layer)}")
    st.caption(compare_with_sweep(best.layer, scores))


def compare_with_sweep(layer: int, scores: Mapping[int, Mapping[str, Score]]) -> str:
    """Whether a sweep's scores speak against a layer."""
    complete = {at: by_name["S"] for at, by_name in scores.items() if "S" in by_name}
    if not complete:
        return "This sweep has no S: it needs paraphrases and neighbours."
    top, *alike = contenders(complete)
    largest = f"In this sweep S is largest at layer {top}, {number(complete[top].value)}"
    if layer == top:
        return f"{largest}: the recommended one."
    if layer not in complete:
        return f"{largest}; layer {layer} is not in it."
    own = f"layer {layer} has {number(complete[layer].value)}"
    if layer in alike:
        return f"{largest}; {own}, which its intervals do not tell apart."
    return f"{largest}; {own}, clearly less: S does not count what the recommendation does."


def caption(lm: LanguageModel, records: Records, policy: str) -> str:
    facts = len({row.fact for row in records.rows})
    clamps = sorted({row.clamp for row in records.rows if row.cases})
    failed = sum(1 for row in records.rows if row.error)
    lost = f" · {count(failed, 'edit')} failed" if failed else ""
    averages = effects(lm)
    traced = f" · tracing: docs/studies/{average_records.STUDY.name}, {count(averages.n, 'fact')}" if averages else ""
    return (
        f"{lm.name} · {policy}, clamp {', '.join(f'{c:g}' for c in clamps)}, six prefixes · {count(facts, 'fact')}, "
        f"each edited by itself, 95 % intervals over facts{lost} · {records.settings}{traced}"
    )


# ---------------------------------------------------------------------------------------------------------------- run


def form(lm: LanguageModel, config: MethodConfig) -> tuple[object, ...]:
    """The inputs of a sweep, and what they ask: one that is pressed for begins at once."""
    with st.expander("Run a sweep", expanded=False):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            n = st.number_input(
                "Facts", 2, 50, 4, key="sweep-facts", width=110, help="Of the validation part.", persist_state="session"
            )
            step = st.number_input(
                "Every n-th layer",
                1,
                lm.n_layers,
                min(4, lm.n_layers),
                key="sweep-step",
                width=140,
                persist_state="session",
            )
            seed = st.number_input(
                "Seed", 0, None, 0, key="sweep-seed", width=110, help="Of the choice of facts.", persist_state="session"
            )
            pressed = st.button("Run", key="sweep-run")
        st.caption(
            "The search's settings are those above, in the layer's place each layer in turn. On the command line:"
        )
        name = "" if lm.name == DEFAULT_MODEL else f" --model {lm.name} --out layers.jsonl"
        st.code(f"python -m studies.layers{name} --facts {n} --step {step}", language="bash")
    below = session.active()
    search = search_like(config)
    asked = (search.at_layer(0), int(n), int(step), int(seed), tuple(edit.id for edit in below))
    if pressed:
        start(lm, search, int(n), int(step), int(seed), below, asked)
        st.rerun()
    return asked


def search_like(config: MethodConfig) -> MethodConfig:
    """A key policy's config with the form's settings, where its search is the same."""
    policy = type(config) if config.single_key else METHODS[DEFAULT_METHOD]
    return config.like(policy) if config.adds_to == policy.adds_to else policy()


def start(
    lm: LanguageModel,
    config: MethodConfig,
    n: int,
    step: int,
    seed: int,
    below: Sequence[Edit],
    asked: tuple[object, ...],
) -> None:
    facts = facts_of("validation")
    random.Random(seed).shuffle(facts)
    layers = list(range(0, lm.n_layers, step))
    order = [*layers[::2], *layers[1::2]]
    settings = f"run in this session, seed {seed}" + (f", on top of {count(len(below), 'edit')}" if below else "")

    def work(job: track.Job[Records, None]) -> None:
        rows: list[Swept] = []
        for row in sweep(lm, facts[:n], config, layers=order, edits=below, track=job.track):
            rows.append(row)
            job.partial = Records(HERE, lm.fingerprint, tuple(rows), settings)

    session.stop_job(JOB)
    empty = Records(HERE, lm.fingerprint, (), settings)
    session.start_job(JOB, f"Sweep over {count(len(layers), 'layer')}", work, published=empty, asked=asked)
