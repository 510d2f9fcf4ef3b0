"""Locate on average: the same trace over many facts, averaged by the role of the token (AIE and ATE)."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.parts.averages.figures import average_curves, average_heatmaps, effect_name
from pages.parts.averages.form import inquiry_form
from pages.shared import frame, session, track
from pages.shared.charts import choose_image_format, download, draw_chart, page_theme
from pages.shared.fact_sets import SHOWN_PROBLEMS
from pages.shared.text import count, literal, number
from pages.shared.uploads import text_of, uploaded_and_kept
from rome_core import LanguageModel, RomeError
from rome_core.tracing import average_records
from rome_core.tracing.average_records import Inquiry, Rows, Source, averages_csv, records_of, write_records
from rome_core.tracing.averages import Averages, FactEffect, average

LATEST = ("averages", "latest job")
HERE, STUDY = "This session's run", "The shipped study"
LANDMARKS = """
**GPT-2 XL, 1,000 facts** (48 layers; Meng et al. 2022, *Locating and Editing Factual Associations in GPT*, section 2.2
and figure 2, arXiv 2202.05262). Another model and other facts: for orientation, not for comparison digit by digit.

| published | value |
| --- | --- |
| average total effect | 18.6 % |
| last subject token, residual stream | 8.7 %, layer 15 |
| last subject token, MLP | 6.6 %, window centred on layer 17 |
| last subject token, attention | 1.6 % |
| last token, attention | its peak, layer 32 |
"""


def main() -> None:
    st.title("Locate on average")
    st.markdown(
        "One fact may be an accident. Traced over many facts and averaged by the role of each token: "
        "**where do facts live on average?**"
    )
    form, result = st.container(), st.empty()
    if session.loaded() is None and (shipped := shipped_study()):
        with result.container():  # something to read while the model is loaded
            figures(shipped, "early")
    with form:
        lm = session.model()
        inquiry, run = inquiry_form(lm)
    if run:
        start(lm, inquiry)
    with result.container():
        results(lm, inquiry)


# ----------------------------------------------------------------------------------------------------------------- run


def rows_of(lm: LanguageModel, inquiry: Inquiry) -> Rows:
    """This session's finished records for these settings; a run fills them, whatever facts it asks for."""
    return session.keep((lm.fingerprint, inquiry.rows_key), dict[str, FactEffect])


def start(lm: LanguageModel, inquiry: Inquiry) -> None:
    """Begin a run, or go on with it. A run under way is stopped, unless it is this one."""
    key = (lm.fingerprint, inquiry.key)
    job = session.find_job(key)
    if job is None or job.state in ("stopped", "error"):
        session.stop_job(LATEST)
        rows = rows_of(lm, inquiry)

        def work(job: track.Job[None, int]) -> int:
            return sum(1 for _ in average_records.collect(lm, inquiry, rows, track=job.track))

        job = track.submit(f"Average effects of {count(inquiry.n, 'fact')}", work, facts=inquiry.n)
        session.keep_job(key, job)
    session.keep_job(LATEST, job)
    st.session_state["average-source"] = HERE


# -------------------------------------------------------------------------------------------------------------- result


def results(lm: LanguageModel, inquiry: Inquiry) -> None:
    """What is shown: this session's run as it grows, the shipped study, or an opened file."""
    top, bottom = st.container(), st.container()
    with bottom:
        opened = opened_file()
        with st.expander("What was published for GPT-2 XL"):
            st.markdown(LANDMARKS)
    with top:
        show(lm, inquiry, opened)


def show(lm: LanguageModel, inquiry: Inquiry, opened: Source | None) -> None:
    """The choice between the sources that there are, and the chosen one."""
    job = session.find_job((lm.fingerprint, inquiry.key))
    here = bool(job or records_of(inquiry, rows_of(lm, inquiry)))
    sources = {opened.name: opened} if opened else {}
    if shipped := shipped_study():
        sources = {STUDY: shipped, **sources}
    names = [HERE, *sources]
    if st.session_state.get("average-source") not in names:
        st.session_state["average-source"] = HERE if here or not sources else names[1]
    look: dict[str, Any] = {"format_func": literal, "required": True, "persist_state": "session"}
    shown = st.segmented_control("Show", names, key="average-source", **look)
    if shown in sources:
        source = sources[shown]
        figures(source, "file")
        go_on(lm, inquiry, source)
        files(source)
    elif job:
        track.panel(job, lambda job: run_so_far(lm, inquiry, job.id, ended=not job.live))
    elif here:
        run_so_far(lm, inquiry, "kept", ended=True)
    else:
        st.caption(
            "Press **Run** (Ctrl+Enter). Three heat maps will appear here and settle as facts are added: six token "
            "groups by layers, for the residual stream, the MLPs and the attention."
        )


def run_so_far(lm: LanguageModel, inquiry: Inquiry, id: str, ended: bool) -> None:
    rows = records_of(inquiry, rows_of(lm, inquiry))
    source = Source(HERE, tuple(rows), average_records.describe(lm, inquiry))
    known = sum(not row.dropped for row in rows)
    if not rows:
        st.caption("The figures appear with the first fact.")
        return
    figures(source, id)
    if ended:
        if known < inquiry.n and len(rows) == len(inquiry.order):
            st.info(f"All {count(len(rows), 'fact')} were tried; the model knows {known} of them.")
        files(source)


def shipped_study() -> Source | None:
    try:
        return average_records.shipped_records()
    except RomeError as error:
        track.show_error(error)
        return None


def opened_file() -> Source | None:
    """Records that the user saved before."""
    with st.expander("Open saved records"):
        read = lambda files: average_records.read_records(*reversed(text_of(files[-1])))  # noqa: E731
        return uploaded_and_kept("JSON of this page, or JSONL of a study", "average-file", read, ("json", "jsonl"), "")


def go_on(lm: LanguageModel, inquiry: Inquiry, source: Source) -> None:
    """Take records of a file into this session's run, if they were made as the form says."""
    why_not = average_records.why_not_continued(source.about, source.rows, lm, inquiry)

    def take() -> None:
        rows_of(lm, inquiry).update({row.fact: row for row in source.rows})
        st.session_state["average-source"] = HERE

    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Go on from these records", on_click=take, disabled=bool(why_not), key="go-on")
        silent = "" if source.about.config else "The file does not say its settings: are they those of the form?"
        st.caption(why_not or silent or "They become part of this session's run; Run adds what is missing.")


def figures(source: Source, id: str) -> None:
    """Numbers, heat maps and curves of some records, with where they come from."""
    averages = cached_average(source)
    tried = f"{count(len(source.rows), 'fact')} tried, {averages.n} used"
    st.caption(literal(f"Source: {source.name} · {source.about.model or 'model not told'} · {tried}"))
    metrics(averages, len(source.rows))
    for reason, n in sorted(averages.dropped.items(), key=lambda item: -item[1])[:SHOWN_PROBLEMS]:
        st.caption(f"Dropped {count(n, 'fact')}: {literal(reason.rstrip('.'))}.")
    if not averages.n:
        st.caption("The figures appear with the first fact that the model knows.")
        return
    one_scale = st.toggle("One colour scale for all three kinds", True, key=f"scale-{id}") if id != "early" else True
    heat = average_heatmaps(averages, source.about, page_theme(), "one" if one_scale else "own")
    draw_chart(heat, f"average-heat-{id}", "average-heat")
    draw_chart(average_curves(averages, source.about, page_theme()), f"average-curves-{id}", "average-curves")


def cached_average(source: Source) -> Averages:
    """The bootstrap takes a moment, and a page is drawn often."""
    used = tuple((row.fact, row.clean, row.corrupted) for row in source.rows if not row.dropped)
    key = ("average", source.about, used, len(source.rows))
    return session.compute_once(key, lambda: average(source.rows))


def metrics(averages: Averages, tried: int) -> None:
    row = st.columns(4)
    row[0].metric("Facts", averages.n, help=f"Known by the model and traced; {tried} were tried.")
    if averages.n:
        mean, low, high = averages.total_effect
        row[1].metric("p(answer), clean", number(averages.clean), help="Mean over the facts.")
        row[2].metric("p(answer), corrupted", number(averages.corrupted), help="Mean over the facts and noise draws.")
        row[3].metric(
            "Average total effect (ATE)",
            number(mean),
            f"{number(low)} to {number(high)}",
            delta_color="off",
            delta_arrow="off",
            help="Clean minus corrupted, with its 95 % bootstrap interval over facts.",
        )


def files(source: Source) -> None:
    """The averages and the records to take away; the records can be opened again."""
    averages = cached_average(source)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = effect_name(source.about).removeprefix("AIE in ")
        download("CSV, one row a cell", lambda: averages_csv(averages, metric), "averages.csv")
        download("Records (JSON), to go on later", lambda: write_records(source), "average-effects.json")
        choose_image_format()


frame.require_frame()
main()
