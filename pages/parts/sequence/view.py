"""A sequential run on the screen: numbers, curves, the retention matrix, one step at a time, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from pages.parts.sequence import figures as sequence_figures
from pages.shared import probe_panel, public, session, track
from pages.shared.charts import choose_image_format, download, draw_chart, draw_tabs, metric_row, page_theme
from pages.shared.tables import table
from pages.shared.text import count, literal, number
from rome_core import LanguageModel
from rome_core.evaluation.sequence.curves import collapse, curves, own_checks, records_csv, score_held
from rome_core.evaluation.sequence.folder import Record, SequenceRun, run_json
from rome_core.evaluation.sequence.steps import load_merged


def figures(name: str, run: SequenceRun, beside: Mapping[str, SequenceRun], factor: float, id: str) -> None:
    """What is drawn again and again while a run goes on."""
    records = run.records
    if not records:
        st.caption("The figures appear once the unedited model is measured.")
        return
    metrics(run, records, factor)
    words = sequence_figures.caption(run) + f" · collapse: perplexity stays at {factor:g} times the unedited model's"
    drawn = {name: records, **{other: run.records for other, run in beside.items()}}
    if beside:
        words += f" · settings of {name}"
    figure = sequence_figures.curves_figure(drawn, words, page_theme(), factor)
    draw_chart(figure, f"sequence-curves-{id}", "sequence")
    failed = [record for record in records if record.error]
    for record in failed[:3]:
        st.warning(literal(f"Step {record.step}: {public.without_places(record.error)}"))
    if len(failed) > 3:
        st.caption(f"And {len(failed) - 3} more steps that failed; the table names them.")


def metrics(run: SequenceRun, records: Sequence[Record], factor: float) -> None:
    """Where the run stands now."""
    first, last = records[0], records[-1]
    own = score_held([check for record in records[1:] for check in own_checks(record)])
    kept = next((score for score in reversed(curves(records).retention) if score), None)
    broken = collapse(records, factor)
    metric_row(
        ("Facts edited", f"{last.edited} of {len(run.plan.facts)}", count(last.step, "step"), "Those that had a turn."),
        ("Perplexity", number(last.perplexity), f"unedited {number(first.perplexity)}", "On general text."),
        ("‖ΔW‖ / ‖W‖", number(last.norm), "all edits", "Frobenius, of the matrix that moved most."),
        (
            "Efficacy",
            number(own.value) if own else "–",
            f"{number(own.low)} to {number(own.high)}" if own else "to come",
            "Share of facts with p(new) > p(true) right after their own edit, with its 95 % bootstrap interval.",
        ),
        (
            "Retention",
            number(kept.value) if kept else "–",
            f"of {count(kept.n, 'earlier edit')}" if kept else "no earlier edits",
            "Share of the earlier edits that hold at the latest check.",
        ),
    )
    if broken:
        st.error(
            f"✖ Collapsed at fact {broken.edited} (step {broken.step}): from there on perplexity is at least "
            f"{factor:g} times the unedited model's, {number(broken.perplexity)} after that edit."
        )


# ------------------------------------------------------------------------------------------------------------- details


def details(lm: LanguageModel, run: SequenceRun, factor: float) -> None:
    """Views of a run that is not under way."""
    records = run.records
    if not records:
        return
    step = int(st.session_state.get("sequence-step", records[-1].step))
    views = {
        "Step by step": lambda: step_view(lm, run, records),
        "Retention matrix": lambda: matrix(run, records),
        "Probe texts": lambda: probe_texts(run, records),
        "Knowing or saying": lambda: probe_panel.draw_run_probes(lm, run, step),
        "Save": lambda: files(run, records, factor),
    }
    draw_tabs(views, "sequence-tab")


def matrix(run: SequenceRun, records: Sequence[Record]) -> None:
    if len(records) > 1:
        figure = sequence_figures.matrix_figure(records, sequence_figures.caption(run), page_theme())
        draw_chart(figure, "sequence-matrix", "retention")
    st.caption("A row a step, a column a fact. Between two checks only a step's own facts are asked.")


def files(run: SequenceRun, records: Sequence[Record], factor: float) -> None:
    with st.container(horizontal=True):
        download("CSV, one row a step", lambda: records_csv(records, factor), "sequence.csv")
        download("JSON, settings and records", lambda: run_json(run, records), "sequence.json")
        choose_image_format()


def step_view(lm: LanguageModel, run: SequenceRun, records: Sequence[Record]) -> None:
    """Scrub to any step: what was edited there, how the model stood, and its edits for the rest of the app."""
    last = records[-1].step
    if int(st.session_state.get("sequence-step", last)) > last:
        del st.session_state["sequence-step"]
    step = st.slider(
        "Step", 0, max(1, last), last, key="sequence-step", help="0 is the unedited model.", persist_state="session"
    )
    record = next((record for record in records if record.step == step), records[-1])
    before = {check.fact: check for check in record.before}
    after = {check.fact: check for check in own_checks(record)}
    if record.error:
        st.warning(literal(public.without_places(record.error)))
    st.caption(
        f"Perplexity {number(record.perplexity)} · ‖ΔW‖/‖W‖ {number(record.norm)}, of this edit alone "
        f"{number(record.own)} · {record.solve_seconds:.1f} s to solve, {record.measure_seconds:.1f} s to measure"
    )
    rows = [
        {
            "fact": run.plan.facts[i].prompt.text,
            "new / true": f"{run.plan.facts[i].target_new} / {run.plan.facts[i].target_true}",
            "p(new) before → after": f"{number(before[i].p_new)} → {number(after[i].p_new) if i in after else '–'}",
            "p(true) before → after": f"{number(before[i].p_true)} → {number(after[i].p_true) if i in after else '–'}",
            "holds": ("yes" if after[i].holds else "no") if i in after else "not edited",
        }
        for i in record.facts[:20]
    ]
    if rows:
        table(rows)
    if len(record.facts) > len(rows):
        st.caption(f"And {len(record.facts) - len(rows)} more facts of this step.")
    take(lm, run, step)


def take(lm: LanguageModel, run: SequenceRun, step: int) -> None:
    """The model of a step for all pages."""
    edited = any(record.edit and record.step <= step for record in run.records)
    if not edited or load_merged(lm, run, step) is None:
        return

    def use() -> None:
        with track.no_traceback():
            for edit in load_merged(lm, run, step) or ():
                session.put_edit(edit, f"{run.folder.name}, step {step} ({edit.method})")

    st.button(
        f"Use the model of step {step}",
        on_click=use,
        key="sequence-use",
        help="Its edits join the sidebar's list, merged, and act on every page.",
    )


def probe_texts(run: SequenceRun, records: Sequence[Record]) -> None:
    """What the model wrote at the checks, below each other."""
    for at, opening in enumerate(run.plan.pace.openings):
        st.markdown(f"**{literal(opening)}** …")
        table(
            [{"facts edited": record.edited, "text": record.texts[at]} for record in records if at < len(record.texts)]
        )
    if not run.plan.pace.openings:
        st.caption("This run has no probe texts.")
