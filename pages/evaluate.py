"""Evaluate: many facts edited by several methods, and every edit measured."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from pages.parts.evaluation import run as evaluation_run
from pages.parts.evaluation import views as evaluation_views
from pages.parts.evaluation.run import Shown
from pages.shared import address, fact_sets, frame, public, session, track
from pages.shared.charts import result_of
from pages.shared.forms import widget
from pages.shared.text import count
from rome_core import DEFAULT_METHOD, METHODS, LanguageModel, RomeError
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.runs.request import RunRequest
from rome_core.facts.datasets import Fact, Facts, facts_of
from rome_core.settings import about

JOB = ("evaluate", "job")
N_FACTS, MOST = 10, 10_000


def main() -> None:
    st.title("Evaluate")
    st.markdown("Does an edit hold, does it generalise, and does it leave the rest alone? Many facts, several methods.")
    name, facts = fact_sets.choose()
    lm = session.model()
    asked = form(lm, name, facts)
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            "Run", type="primary", shortcut="Ctrl+Enter", key="run-evaluate", disabled=not asked.methods
        )
        st.caption(
            "Facts come in as they finish. Stop keeps them; Run goes on, also with more facts or methods."
            if asked.methods
            else "Choose at least one method."
        )
    if pressed:
        session.stop_job(JOB)
        session.keep_job(JOB, evaluation_run.start(lm, asked))
    beside = other_run()
    result(facts, beside, asked)
    evaluation_views.published()


def form(lm: LanguageModel, name: str, facts: Facts) -> RunRequest:
    """Set, size, methods, layers in two rows; the rest waits in an expander."""
    row = st.columns([1, 1, 4])
    address.carry("evaluate-n", "Facts", address.a_number(int, 1, MOST))
    n = row[0].number_input("Facts", 1, MOST, N_FACTS, key="evaluate-n", persist_state="session")
    seed = row[1].number_input(
        "Seed", 0, 2**31 - 1, 0, key="evaluate-order", help="Of the order of the facts.", persist_state="session"
    )
    default = [method for method in dict.fromkeys((DEFAULT_METHOD, "rome", "ft-l")) if method in METHODS]
    methods = row[2].multiselect(
        "Methods", list(METHODS), default, key="evaluate-methods", placeholder="at least one", persist_state="session"
    )
    with st.expander("More settings"):
        first = st.columns(3)
        layers = first[0].multiselect(
            "Layers",
            range(lm.n_layers),
            key="evaluate-layers",
            placeholder="the preset's",
            help="Each method at each.",
            persist_state="session",
        )
        prefixes = first[1].number_input(
            "Prefixes",
            0,
            21,
            6,
            key="evaluate-prefixes",
            help="Of every method's search; 0: each method's own number.",
            persist_state="session",
        )
        group = first[2].number_input(
            "Facts edited together",
            1,
            1000,
            1,
            key="evaluate-group",
            help="1: each by itself on the untouched model. More: on top of each other, or at once, measured again at "
            "the end.",
            persist_state="session",
        )
        choice = st.container(horizontal=True)
        own = fact_sets.is_own()  # a visitor's file is taken whole unless they ask for less
        test_only = choice.toggle(
            "Test part only",
            own,
            key="evaluate-part" if own else "evaluate-part-of-a-file",
            help="Leaves out subjects that hypernetworks are trained on; of a file of yours, those whose number falls "
            "into the other parts.",
            persist_state="session",
        )
        known_only = choice.toggle(
            "Known facts only",
            key="evaluate-known",
            help="Asks the unedited model first, and takes the facts whose every token of the true object is its first "
            "choice after the prompt.",
            persist_state="session",
        )
        quick, values = replace(MeasureSettings(), generated=0, passages=2), {}
        for place, (field_name, field) in zip(st.columns(4), about(MeasureSettings).items(), strict=True):
            with place:
                key = {"key": f"evaluate-{field_name}"}
                values[field_name] = widget(field, getattr(quick, field_name), key, lm)
    pool = facts_of("test", facts) if test_only else facts
    if n > len(pool):
        st.caption(f"The set has {count(len(pool), 'fact')} to choose from.")
    return RunRequest(
        name,
        fact_sets.hash_of_set(name, facts),
        tuple(facts),
        min(int(n), len(pool)),
        int(seed),
        bool(test_only),
        bool(known_only),
        tuple(methods),
        tuple(layers),
        int(prefixes) or None,
        int(group),
        MeasureSettings(**values),
    )


def other_run() -> Shown | None:
    """A second run to stand beside the first: one of this session, a study, or any folder on the server."""
    kept = finished_runs()
    studies = evaluation_run.studies()
    with st.expander("Open another run, or compare with it"):
        name = st.selectbox(
            "A run of this session, or a study of the project",
            ["none", *kept, *studies],
            key="beside",
            persist_state="session",
        )
        path = public.path_field(
            "A run's folder on the server",
            key="beside-folder",
            help="As rome-evaluate writes it.",
            persist_state="session",
        )
        try:
            with st.spinner("Reading the run", show_time=True):
                if path and path.strip():
                    return evaluation_run.open_folder(path)
                if name in studies:
                    return evaluation_run.open_folder(str(studies[name]), str(name))
        except RomeError as error:
            track.show_error(error)
    return kept.get(str(name))


def finished_runs() -> dict[str, Shown]:
    """This session's runs, by the name that is shown."""
    return session.keep("evaluation runs", dict[str, Shown])


def result(facts: list[Fact], beside: Shown | None, asked: RunRequest) -> None:
    """What the last run has brought. asked: what the form asks now."""
    job = session.find_job(JOB)
    if job is None:
        if beside is not None:
            with result_of(beside.name, moved_on=False, again="Run"):
                evaluation_views.run_view(beside, facts, "opened", live=False)
        else:
            st.info(
                "Press Run: a table of scores with their intervals appears here and settles as facts are added. Above, "
                "finished studies can be opened."
            )
        return

    def draw(job: track.Job[Shown, Shown]) -> None:
        run = job.result if job.state == "done" else job.partial
        if run is not None:
            evaluation_views.run_view(run, facts, job.id, live=job.live, beside=beside)
            if not job.live:
                finished_runs()[f"{run.name} ({job.id})"] = run

    with result_of(job.label, job.asked != asked, "Run"):
        if job.live:
            track.panel(job, draw)
        else:
            track.panel(job)
            with track.no_traceback():
                draw(job)


frame.require_frame()
main()
