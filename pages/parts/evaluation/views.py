"""What a run shows: its table, figures, single cases, files, and beside it what others have printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import streamlit as st

from pages.parts.evaluation import figures
from pages.parts.evaluation.run import Shown, parquet
from pages.shared import public
from pages.shared.charts import choose_image_format, download, draw_chart, draw_clickable_chart, page_theme
from pages.shared.fact_sets import link_of
from pages.shared.tables import table
from pages.shared.text import count, literal, number
from rome_core.evaluation.published import PUBLISHED, SOURCE
from rome_core.evaluation.runs.store import PROMPTS_LEFT_OUT, Row
from rome_core.evaluation.runs.tables import (
    Line,
    as_latex,
    columns_for,
    common_rows,
    merge_unedited,
    present_columns,
    scores_csv,
    with_interval,
)
from rome_core.facts.datasets import Fact

# Of the measures of one fact, those that tell what a large update costs, the plainest first.
SIZES = ("NKL", "NM", "NS", "PM", "PS", "EM", "perplexity", "specificity")


def run_view(run: Shown, facts: Sequence[Fact], key: str, live: bool, beside: Shown | None = None) -> None:
    """Everything of a run; while it is live, only what can be drawn again and again."""
    failed = [row for row in run.rows if row.error]
    rows = common_rows(run.rows)
    edited = {row.position for row in rows if row.stage == "after" and not row.error}
    known = {row.position for row in rows if row.known}
    numbers(len(edited), len(known), len(failed), rows)
    known_only = st.toggle(
        "Only facts that the model knew", key=f"known-{key}", disabled=not known, persist_state="session"
    )
    if not edited:
        st.caption("The table appears with the first edited fact.")
        failures(failed)
        return
    lines = run.lines(known_only)
    names = present_columns(lines, columns_for(run.rows))
    scores(lines, names, f"scores-{key}")
    runs = {run.name: lines}
    if beside is not None:
        st.caption(literal(f"Beside it: {beside.name} ({figures.caption_of(beside.about, _n(beside), known_only)})"))
        other = beside.lines(known_only)
        scores(other, present_columns(other, columns_for(beside.rows)), f"beside-{key}")
        runs["the run beside it"] = other
    caption = figures.caption_of(run.about, len(known & edited) if known_only else len(edited), known_only)
    draw_measure(runs, run, names, caption, known_only, key, facts, live)
    failures(failed)
    if not live:
        files(run, lines, names, key)


def _n(run: Shown) -> int:
    return len({row.position for row in common_rows(run.rows) if row.stage == "after" and not row.error})


def numbers(edited: int, known: int, failed: int, rows: Sequence[Row]) -> None:
    row = st.columns(4)
    row[0].metric("Facts edited", edited)
    row[1].metric("Known before", known, help="All tokens of the true object are the unedited model's first choice.")
    row[2].metric("Failed", failed, help="Facts by methods; the reasons stand below.")
    spent = [r.solve_seconds for r in rows if r.stage == "after" and math.isfinite(r.solve_seconds)]
    row[3].metric("Seconds an edit", number(sum(spent) / len(spent)) if spent else "–", help="Mean time of solving.")


def scores(lines: Sequence[Line], names: Sequence[str], key: str) -> None:
    """The table in the papers' column order, each number with its interval."""
    rows = [
        {
            "method": line.method,
            "stage": line.stage,
            "n": line.n,
            **{name: with_interval(name, line.scores[name]) if name in line.scores else "" for name in names},
        }
        for line in merge_unedited(lines)
    ]
    st.dataframe(rows, hide_index=True, key=key, height="content")
    st.caption(
        "In brackets: 95 % bootstrap intervals over facts. Times 100, but NKL (nats) and perplexity. *before* is the "
        "same facts on the untouched model."
    )


def draw_measure(
    runs: Mapping[str, Sequence[Line]],
    run: Shown,
    names: Sequence[str],
    caption: str,
    known_only: bool,
    key: str,
    facts: Sequence[Fact],
    live: bool,
) -> None:
    """Bars of one measure, and the sizes of the edits against it."""
    theme = page_theme()
    measure = st.segmented_control(
        "Measure", names, default=names[0], key=f"measure-{key}", required=True, persist_state="session"
    )
    draw_chart(figures.bars(runs, str(measure), caption, theme), f"bars-{key}", "evaluation")
    points = [row for row in common_rows(run.rows) if row.known or not known_only]
    choices = [name for name in SIZES if any(figures.has(row, name) for row in points)]
    if not choices:
        return
    against = st.segmented_control(
        "‖Δ‖ against", choices, default=choices[0], key=f"against-{key}", required=True, persist_state="session"
    )
    figure = figures.scatter(points, str(against), caption, theme)
    if live:
        draw_chart(figure, f"sizes-{key}", "sizes")
        return
    clicked = draw_clickable_chart(figure, f"sizes-{key}", "sizes")
    chosen = [point["customdata"] for point in clicked if "customdata" in point]
    if chosen:
        case(run, str(chosen[0][0]), int(chosen[0][1]), facts)
    else:
        st.caption("Click a point to see the case and to open it on the Edit page.")


def case(run: Shown, method: str, position: int, facts: Sequence[Fact]) -> None:
    """One fact by one method: its prompts before and after, and the way to the Edit page."""
    mine = {row.stage: row for row in run.rows if (row.method, row.position) == (method, position)}
    after = mine["after"]
    st.subheader(literal(f"{after.subject}, {method}"))
    fact = next((fact for fact in facts if fact.id == after.fact and fact.prompt.subject == after.subject), None)
    if fact is not None:
        link = {**link_of(fact), "method": method.partition("@")[0]}
        st.page_link("pages/edit.py", label="Open on the Edit page", query_params=link)
    elif run.about.get("prompts") == PROMPTS_LEFT_OUT:
        st.caption("A public file's prompts are no part of this study: docs/results.md has the command that makes it.")
    else:
        st.caption(literal(f"To open it on the Edit page, choose the run's facts above: {run.about.get('facts')}."))
    before = {answer["text"]: answer for answer in mine["before"].answers} if "before" in mine else {}
    table(
        [
            {
                "kind": answer["kind"],
                "prompt": answer["text"],
                "p(new) before": _p(before.get(answer["text"], {}).get("new")),
                "after": _p(answer["new"]),
                "p(true) before": _p(before.get(answer["text"], {}).get("true")),
                "after ": _p(answer["true"]),
            }
            for answer in after.answers
        ]
    )


def _p(log_p: Sequence[float] | None) -> str:
    """Geometric-mean token probability."""
    return number(math.exp(sum(log_p) / len(log_p))) if log_p else "–"


def failures(failed: Sequence[Row]) -> None:
    if not failed:
        return
    with st.expander(f"{count(len(failed), 'failure')}, each with its reason"):
        table(
            [
                {"method": row.method, "subject": row.subject, "reason": public.without_places(row.error)}
                for row in failed[:50]
            ]
        )


def files(run: Shown, lines: Sequence[Line], names: Sequence[str], key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        download("CSV", lambda: scores_csv(lines), "scores.csv", f"csv-{key}")
        download("Parquet, with settings", lambda: parquet(lines, run.about), "scores.parquet", f"parquet-{key}")
        download("LaTeX", lambda: as_latex(merge_unedited(lines), names), "scores.tex", f"tex-{key}")
        choose_image_format()


def published() -> None:
    """What was printed for larger models, apart from everything that is measured here."""
    with st.expander("What was published for GPT-2 XL and GPT-J"):
        st.caption(f"{SOURCE}. Other models and other records: for orientation, not for comparison digit by digit.")
        for paper in PUBLISHED:
            st.markdown(f"**{paper.model}, {paper.dataset}**")
            rows = [
                {"method": name} | dict(zip(paper.columns, map("{:.1f}".format, values), strict=True))
                for name, values in paper.rows.items()
            ]
            st.dataframe(rows, hide_index=True, height="content", key=f"published-{paper.model}-{paper.dataset}")
