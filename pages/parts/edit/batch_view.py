"""Many facts at once: a table to type or to load, one sentence for each bad row, the edit, and what came of each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import streamlit as st

from pages.parts.edit import part_views
from pages.parts.edit.files import adapter_zip, edit_file
from pages.shared import doubts, moment_panel, public, session, track, uploads, verdicts
from pages.shared.charts import download, metric_row, result_of
from pages.shared.tables import table
from pages.shared.text import count, edit_label, literal, number
from rome_core import EditRequest, LanguageModel, load_facts
from rome_core.diagnosis.verdict import Size, size_of
from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation.batch import Batch, batch_csv, batch_json, edit_batch, share_held
from rome_core.evaluation.before_after import Report
from rome_core.facts.requests import COLUMNS, Row, Table, check_table, read_table

JOB = ("batch", "job")
SOME, SHOWN_DOUBTS = 10, 10
LABELS = {
    "template": "Prompt, {} for the subject",
    "subject": "Subject",
    "target_new": "New object",
    "target_true": "True object (optional)",
}


def view(lm: LanguageModel, request: EditRequest | None, config: MethodConfig) -> None:
    st.markdown(
        f"Many facts at once, a row a fact. **{config.name}** "
        + (
            "solves them into one edit."
            if config.batches
            else "edits one fact at a time, so they are solved one after another, each on top of the former ones."
        )
    )
    reading = check_table(Table.from_rows(sheet(request)))
    requests, problems = reading.requests, reading.problems
    if problems:
        others = "the other stays" if len(requests) == 1 else "the others stay"
        st.warning(f"{count(len(problems), 'row')} cannot be used; {others} in.")
        table(uploads.by_reason(problems))
        if any(problem.sentence.startswith("The new object is empty") for problem in problems):
            st.caption("**Fact sets** can take new objects of the same relation for a file that has none.")
    below = session.active(but=requests)
    tell_doubts(lm, requests, below)
    label = f"Edit {count(len(requests), 'fact')}" if requests else "Edit"
    if st.button(label, key="batch-run", type="primary", disabled=not requests):
        start(lm, requests, config, below)
    result(lm, (tuple(requests), config))


@dataclass
class Sheet:
    """The table of facts. typed: its rows as they stand; base: those with which the editor of this version began."""

    version: int = 0
    base: list[Row] = field(default_factory=list)
    typed: list[Row] = field(default_factory=list)


def current_sheet() -> Sheet:
    """This session's table."""
    return session.keep("batch sheet", Sheet)


# -------------------------------------------------------------------------------------------------------------- table


def sheet(request: EditRequest | None) -> list[Row]:
    """The table as it is typed, with ways to fill it."""
    with st.container(horizontal=True):
        first = [] if request is None else [Row.from_request(request)]
        st.button("Add the fact above", key="batch-add", on_click=add, args=(first,), disabled=not first)
        st.button(
            f"Add {SOME} of the project's facts",
            key="batch-some",
            on_click=add_some,
            help="The next ones in an order that is shuffled with seed 0.",
        )
        st.button("Empty the table", key="batch-clear", on_click=put, args=([],))
    with st.expander("Load a file"):
        uploaded()
    current = current_sheet()
    if f"batch-{current.version}" not in st.session_state and current.typed != current.base:
        put(current.typed)  # the editor was left: what was typed into it is what it begins with now
    edited = st.data_editor(
        {column: [getattr(row, column) for row in current.base or [Row()]] for column in COLUMNS},
        num_rows="dynamic",
        key=f"batch-{current.version}",
        column_config={name: st.column_config.TextColumn(label) for name, label in LABELS.items()},
        width="stretch",
    )
    current.typed = _rows(edited)
    return current.typed


def _rows(edited: Mapping[str, Sequence[Any]]) -> list[Row]:
    columns = [list(edited[name]) for name in COLUMNS]
    return [Row.from_cells(dict(zip(COLUMNS, cells, strict=True))) for cells in zip(*columns, strict=True)]


def put(rows: list[Row]) -> None:
    """Another table: the editor starts afresh on it."""
    current = current_sheet()
    current.version, current.base, current.typed = current.version + 1, rows, list(rows)


def add(rows: list[Row]) -> None:
    typed = [row for row in current_sheet().typed if not row.empty]
    put([*typed, *(row for row in rows if row not in typed)])


def add_some() -> None:
    facts = list(load_facts())
    random.Random(0).shuffle(facts)
    typed = {(row.template, row.subject) for row in current_sheet().typed}
    new = [Row.from_request(fact.request) for fact in facts if (fact.prompt.template, fact.prompt.subject) not in typed]
    add(new[:SOME])


def uploaded() -> None:
    """Rows of a file join the table: once for each file."""
    tables = uploads.uploaded(
        "A table with the columns subject, template or relation, target_new and target_true, or facts in any other of "
        "the field's formats",
        "batch-file",
        lambda files: [read_table(data, name) for name, data in files],
    )
    if tables is None:
        return
    if problems := [problem for read in tables for problem in read.problems]:
        table(uploads.by_reason(problems))
    for note in {note for read in tables for note in read.notes}:
        st.caption(literal(note))
    if uploads.first_time("batch-file"):
        add([row for read in tables for row in read.rows.values() if not row.empty])
        st.rerun()


def tell_doubts(lm: LanguageModel, requests: Sequence[EditRequest], below: tuple[Edit, ...]) -> None:
    """The rows that ask for what is true or for what the model says, before they are run."""
    found = [(request, doubt) for request, doubt in zip(requests, doubts.of_requests(lm, requests, below), strict=True)]
    rows = [{"fact": request.prompt.text, "what is doubtful": doubt} for request, doubt in found if doubt]
    if rows:
        st.warning(f"{count(len(rows), 'fact')} of {len(requests)} may be edited to no purpose.")
        table(rows[:SHOWN_DOUBTS])
    if len(rows) > SHOWN_DOUBTS:
        st.caption(f"And {len(rows) - SHOWN_DOUBTS} more.")
    if len(requests) > doubts.AT_ONCE:
        st.caption(f"Of the first {doubts.AT_ONCE} the model was asked what it says now, of the others not.")


# --------------------------------------------------------------------------------------------------------------- work


def start(lm: LanguageModel, requests: Sequence[EditRequest], config: MethodConfig, below: tuple[Edit, ...]) -> None:
    """Queue the batch. Its edits join this session's, in place of earlier ones of the same facts."""
    public.check_prompts(lm, [request.prompt.text for request in requests])
    moments = moment_panel.moments(lm, config.layers)

    def work(job: track.Job[Batch, Batch]) -> Batch:
        publish = lambda batch: setattr(job, "partial", batch)  # noqa: E731
        return edit_batch(lm, requests, config, below, moments, job.track, publish)

    def put(batch: Batch) -> None:
        replaced: Sequence[EditRequest] = batch.done  # once: two rows may be about one prompt
        for edit, size in zip(batch.edits, sizes(lm, batch), strict=True):
            session.put_edit(edit, edit_label(edit), replaced, on=size.verdict != "disabling")
            replaced = ()

    label = f"{count(len(requests), 'fact')} by {config.name}"
    session.start_job(
        JOB,
        label,
        work,
        asked=(tuple(requests), config),
        begins_with="reading C, writing prefixes, finding keys",
        then=put,
        facts=len(requests),
    )


# ------------------------------------------------------------------------------------------------------------- result


def result(lm: LanguageModel, asked: tuple[tuple[EditRequest, ...], MethodConfig]) -> None:
    """What the last batch has brought. asked: what the table and the form ask now."""
    job: track.Job[Batch, Batch] | None = session.find_job(JOB)
    if job is None or (job.partial and job.partial.fingerprint != lm.fingerprint):
        st.info("Fill the table and press the button: each fact gets its row of probabilities before and after.")
    elif job.result is not None:
        first = job.result.requests[0]
        others = f" and {count(len(job.result.requests) - 1, 'other')}" if len(job.result.requests) > 1 else ""
        what = f"{first.prompt.subject} → {first.target_new.strip()}{others}, by {job.result.edits[0].method}"
        with result_of(what, job.asked != asked, "Edit"):
            show(lm, job.result)
    else:
        track.panel(job, so_far)


def so_far(job: track.Job[Batch, Batch]) -> None:
    if job.partial and job.partial.edits and job.live:
        st.caption(f"{count(len(job.partial.done), 'fact')} solved so far.")


def show(lm: LanguageModel, batch: Batch) -> None:
    worst = max(sizes(lm, batch), key=lambda size: size.relative_F)
    after = {kind: [o.after for row in batch.outcomes for o in row if o.kind == kind] for kind in ("new", "neighbour")}
    metric_row(
        ("Facts", f"{len(batch.done)}", f"of {len(batch.requests)}", "Solved, of those in the table."),
        ("Hold", f"{share_held(batch):.0%}", "p(new) > p(true)", "Or p(new) > 0.5, where no true object is given."),
        ("Mean p(new)", number(fmean(after["new"])), "on the edited prompts", "With all edits active."),
        (
            verdicts.QUANTITIES["relative_F"],
            number(worst.relative_F),
            verdicts.label(worst.verdict),
            "Of the matrix that moves most.",
        ),
        ("Seconds", f"{batch.seconds:.1f}", f"{batch.seconds / len(batch.done):.1f} a fact", "Without the measuring."),
    )
    if batch.stopped:
        st.caption("Stopped: what was found until then was made into edits and measured.")
    if batch.problems:
        table([{"fact": batch.requests[n].prompt.text, "why not": words} for n, words in batch.problems.items()])
    table(outcome_rows(batch))
    st.caption(literal(conditions(lm, batch)))
    parts(lm, batch)
    files(lm, batch)


def sizes(lm: LanguageModel, batch: Batch) -> list[Size]:
    """How far each edit of the batch moves the weights."""
    key = ("sizes", *(edit.id for edit in batch.edits))
    return session.compute_once(key, lambda: [size_of(lm, edit) for edit in batch.edits])


def outcome_rows(batch: Batch) -> list[dict[str, str]]:
    """A row a fact; a kind of prompt that no fact has gets no column."""
    names = {
        "new": "p(new)",
        "true": "p(true)",
        "paraphrase": "p(new), paraphrases",
        "neighbour": "p(new), neighbours",
        "namesake": "p(new), namesakes",
    }
    kinds = [kind for kind in names if any(one.kind == kind for row in batch.outcomes for one in row)]
    rows = []
    for request, outcomes in zip(batch.done, batch.outcomes, strict=True):
        by_kind = {one.kind: f"{number(one.before)} → {number(one.after)}" for one in outcomes}
        fact = f"{request.prompt.text} → {request.target_new.strip()}"
        rows.append({"fact": fact, **{names[kind]: by_kind.get(kind, "") for kind in kinds}})
    return rows


def conditions(lm: LanguageModel, batch: Batch) -> str:
    config = batch.edits[0].config
    shown = {
        name: value for name, value in asdict(config).items() if name in ("layer", "span", "clamp", "weight", "seed")
    }
    settings = ", ".join(f"{name} {value:g}" for name, value in shown.items() if value is not None)
    on_top = f" · on top of {count(len(batch.below), 'edit')}" if batch.below else ""
    return f"{lm.name} · {config.name}, {settings} · C: {batch.edits[0].corpus or 'none'}{on_top} · before → after"


def parts(lm: LanguageModel, batch: Batch) -> None:
    """The usual parts of an edit, seen from one of its facts."""
    places = [(edit, place) for edit in batch.edits for place in range(len(edit.requests))]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        at = st.selectbox(
            "Look at",
            range(len(places)),
            format_func=lambda n: f"{n + 1}. {batch.done[n].prompt.subject} → {batch.done[n].target_new.strip()}",
            key="batch-at",
            width=330,
            persist_state="session",
        )
        names = {
            "k*": part_views.key_view,
            "v*": part_views.value_view,
            "Δ": part_views.update_view,
            "Objective": part_views.objective_view,
        }
        chosen = st.segmented_control(
            "Part", list(names), default="Δ", key="batch-part", required=True, persist_state="session"
        )
    whole, place = places[at]
    edit = whole.of_request(place) if len(whole.requests) > 1 and chosen != "Objective" else whole
    below = (*batch.below, *(batch.edits[: batch.edits.index(whole)]))
    names[chosen](lm, Report(edit, below, size_of(lm, whole), None, (0, 0), (), (), batch.seconds))


def files(lm: LanguageModel, batch: Batch) -> None:
    with st.container(horizontal=True):
        download("Outcomes as CSV", lambda: batch_csv(batch), "batch.csv", "batch-csv")
        download("Outcomes as JSON, with settings", lambda: batch_json(lm, batch), "batch.json", "batch-json")
        what = "One file an edit, for this page or rome_core.load_edit, and one LoRA adapter of all."
        download("Edits (zip)", lambda: edits_zip(batch.edits), "edits.zip", "batch-edits", what)


def edits_zip(edits: Sequence[Edit]) -> bytes:
    """Every edit as a file, in order, and all of them as one adapter."""
    files = {f"edit-{n:03}-{edit.method}.safetensors": edit_file(edit) for n, edit in enumerate(edits, start=1)}
    return adapter_zip(edits, "adapter", files)
