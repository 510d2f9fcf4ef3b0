"""One request, every method: the button, rows as they finish, a figure, and making any row the active edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from pages.parts.edit.comparison_figure import methods_figure
from pages.shared import doubts, moment_panel, public, session, track, verdicts
from pages.shared.charts import download, draw_chart, page_theme, result_of
from pages.shared.edit_form import with_settings_of
from pages.shared.tables import draw_text, table
from pages.shared.text import count, edit_label, literal, number, word_differences
from rome_core import METHODS, EditRequest, LanguageModel
from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.editing.presets import resolve, unresolved
from rome_core.evaluation.before_after import choose_questions, find_own_fact, generation_texts
from rome_core.evaluation.comparison import COLUMNS, MethodRow, Trial, compare_methods, comparison_csv, comparison_json

JOB = ("bench", "job")
ALL = 50  # more than any fact has


@dataclass(frozen=True, eq=False)
class Run:
    """What a comparison was asked, and its rows so far."""

    fingerprint: str
    task: Trial
    below: tuple[Edit, ...]
    rows: tuple[MethodRow, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.task.request.prompt.subject} → {self.task.request.target_new.strip()}"


def view(lm: LanguageModel, request: EditRequest | None, config: MethodConfig) -> None:
    st.markdown(
        "Every method edits the fact above, each by itself. Methods that look for the same value δ share one search: "
        "then only their updates differ."
    )
    task = task_form(request) if request else None
    configs = configs_like(lm, config, request)
    below = session.active(but=[request] if request else ())
    if request:
        doubts.tell(lm, request, below)
    if st.button("Run all methods", key="bench-run", type="primary", disabled=task is None) and task:
        start(lm, task, configs, below)
    if task is None:
        st.caption("The form above says what is missing.")
    job: track.Job[Run, None] | None = session.find_job(JOB)
    if job is None or (job.partial and job.partial.fingerprint != lm.fingerprint):
        st.info(
            f"Press Run all methods: {count(len(configs), 'method')} fill a table and a figure one by one. The "
            "settings above are used by every method that shares them, the others take their own defaults."
        )
        return
    what = f"{job.partial.title} by every method" if job.partial else job.label
    with result_of(what, job.asked != (task, configs), "Run all methods"):
        track.panel(job, lambda job: show(lm, job.partial) if job.partial else None)
        if not job.live and job.partial:
            actions(lm, job.partial)


def task_form(request: EditRequest) -> Trial:
    """The prompts that test the edits: the project's own where it has the fact, else the user's."""
    prompts = choose_questions(request, ALL)
    paraphrases, neighbours = (tuple(q.text for q in prompts if q.kind == kind) for kind in ("paraphrase", "neighbour"))
    if find_own_fact(request):
        with st.expander(
            f"{count(len(paraphrases), 'paraphrase')} and {count(len(neighbours), 'neighbour')} are asked"
        ):
            rows = [("paraphrase", text) for text in paraphrases] + [("neighbour", text) for text in neighbours]
            table([{"kind": kind, "prompt": text} for kind, text in rows])
    else:
        st.caption("This fact is not in the project's own set. Prompts are optional; what has none is not measured.")
        boxes = st.columns(2)
        paraphrases = _lines(boxes[0], "Paraphrases, one a line", "bench-paraphrases", "The fact in other words.")
        neighbours = _lines(
            boxes[1], "Neighbours, one a line", "bench-neighbours", "Prompts about others, which must not change."
        )
    with st.container(horizontal=True):
        temperature = st.number_input(
            "Temperature",
            0.0,
            2.0,
            0.0,
            0.1,
            key="bench-heat",
            width=130,
            help="Of the text; 0: the likeliest token.",
            persist_state="session",
        )
        seed = st.number_input(
            "Text seed",
            0,
            None,
            0,
            key="bench-seed",
            width=130,
            help="The same for every method.",
            persist_state="session",
        )
    return Trial(
        request, paraphrases, neighbours, generation_texts(request)[0], temperature=float(temperature), seed=int(seed)
    )


def _lines(place: Any, label: str, key: str, help: str) -> tuple[str, ...]:
    text = place.text_area(label, key=key, persist_state="session", height=80, help=help)
    return tuple(line.rstrip() for line in str(text or "").splitlines() if line.strip())


def configs_like(lm: LanguageModel, config: MethodConfig, request: EditRequest | None = None) -> list[MethodConfig]:
    """A config of every method: what was set in the form where it means the same, else the method's own presets."""
    requests = [request] if request else []
    touched = unresolved(lm, config, requests)
    return [resolve(lm, with_settings_of(touched, method), requests) for method in METHODS.values()]


def start(lm: LanguageModel, task: Trial, configs: list[MethodConfig], below: tuple[Edit, ...]) -> None:
    moments = moment_panel.made_here(lm, [layer for config in configs for layer in config.layers])

    def work(job: track.Job[Run, None]) -> None:
        run = Run(lm.fingerprint, task, below)
        job.partial = run
        for row in compare_methods(lm, task, configs, moments=moments, edits=below, track=job.track):
            job.partial = run = replace(run, rows=(*run.rows, row))

    session.stop_job(JOB)
    title = f"{Run(lm.fingerprint, task, below).title} by every method"
    session.start_job(JOB, title, work, asked=(task, configs), begins_with="asking the model before any edit")


# --------------------------------------------------------------------------------------------------------------- rows


def show(lm: LanguageModel, run: Run) -> None:
    """Table, figure and texts of the rows so far."""
    if not run.rows:
        return
    table(table_rows(run.rows))
    for row in run.rows:
        if row.error:
            st.markdown(f"**{literal(row.method)}** did not run. {literal(public.without_places(row.error))}")
    if any(row.edit for row in run.rows):
        draw_chart(methods_figure(run.rows, caption(lm, run), page_theme()), "bench", "edit")
        texts(run)


SHORT = {
    "efficacy": "p(new)",
    "paraphrase": "paraphrases",
    "neighbour": "neighbours",
    "nkl": "NKL",
    "relative_norm": "‖Δ‖/‖W‖",
    "seconds": "seconds",
}


def table_rows(rows: Sequence[MethodRow]) -> list[dict[str, str]]:
    """A line a method that ran. A measure that has no prompts has no column."""
    names = [name for name in COLUMNS if any(name in row.values for row in rows)]
    return [
        {
            "method": row.method,
            **{SHORT[name]: number(row.values[name]) if name in row.values else "" for name in names},
            "verdict": verdicts.label(row.verdict) if row.verdict else "",
            "δ of": row.shared,
        }
        for row in rows
        if not row.error
    ]


def caption(lm: LanguageModel, run: Run) -> str:
    task = run.task
    on_top = f" · on top of {count(len(run.below), 'edit')}" if run.below else ""
    asked = f"{count(len(task.paraphrases), 'paraphrase')}, {count(len(task.neighbours), 'neighbour')}"
    layers = sorted({layer for row in run.rows if row.config for layer in row.config.layers})
    seeds = ", ".join(sorted({str(vars(row.config).get("seed", "–")) for row in run.rows if row.config}))
    where = f" · layers {', '.join(map(str, layers))}" if layers else ""
    return (
        f"{lm.name} · “{task.request.prompt.text}” → {task.request.target_new.strip()} · {asked}{where} · "
        f"seed {seeds or '–'}{on_top} · p(new): geometric mean over the object's tokens, on the edited prompt "
        "and as a mean over the other prompts · NKL: KL(before ‖ after) of the next token on the neighbours, nats · "
        "seconds beyond a shared search"
    )


def texts(run: Run) -> None:
    """What each model writes behind the same opening, the words that its edit changed marked."""
    task = run.task
    how = f"seed {task.seed}, temperature {task.temperature:g}" if task.temperature else "always the likeliest token"
    with st.expander(f"What each model writes ({how})"):
        before = run.rows[0].text
        for row in run.rows:
            if row.text:
                draw_text(row.method, task.opening, word_differences(before, row.text)[1])


# ------------------------------------------------------------------------------------------------------------ actions


def actions(lm: LanguageModel, run: Run) -> None:
    """Take one row over as this session's edit of the fact; take all of them away as files."""
    solved = {row.method: row for row in run.rows if row.edit}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if solved:
            name = st.selectbox("Row", list(solved), key="bench-row", width=170, persist_state="session")
            st.button(
                "Make it the active edit",
                key="bench-activate",
                on_click=activate,
                args=(solved[name],),
                help="In place of this fact's other edits in the sidebar.",
            )
        csv, json = st.columns(2, width=280)
        with csv:
            download("CSV", lambda: comparison_csv(run.rows), "methods.csv", "bench-csv")
        with json:
            make = lambda: comparison_json(lm, run.task, run.rows, run.below)  # noqa: E731
            download("JSON with settings", make, "methods.json", "bench-json")
    for row in solved.values():
        if row.edit and any(item.edit.id == row.edit.id for item in session.edits()):
            st.caption(f"Among this session's edits: {literal(edit_label(row.edit))}. {session.standing(row.edit)}")


def activate(row: MethodRow) -> None:
    """Put a row's edit among this session's, switched on, in place of another one of the same fact."""
    assert row.edit is not None
    session.put_edit(row.edit, edit_label(row.edit), replaces=row.edit.requests)
