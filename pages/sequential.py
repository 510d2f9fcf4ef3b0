"""Edit in sequence: facts one after another, or in batches, on the already edited model, until it forgets or breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import streamlit as st

from pages.parts.sequence import view as sequence_view
from pages.parts.sequence.jobs import all_runs, folder, go_on, work
from pages.shared import edit_form, fact_sets, frame, public, session, track
from pages.shared.charts import result_of
from pages.shared.forms import config_form
from pages.shared.text import count
from rome_core import DEFAULT_METHOD, LanguageModel
from rome_core.evaluation.runs.execution import choose_facts
from rome_core.evaluation.sequence.curves import COLLAPSED
from rome_core.evaluation.sequence.folder import Pace, SequenceRun
from rome_core.evaluation.sequence.start import SequenceStart, branch_facts
from rome_core.facts.datasets import Fact

N_FACTS = 20
OWN_RUNS = "sequences"  # the runs that this session has worked on
Work = Callable[[track.Job[None, int]], int]
PUBLISHED = """
Yang et al. 2024 (*The Fall of ROME*, arXiv 2406.11263) and Gupta et al. 2024 (arXiv 2401.07453, 2403.07175): edited one
after another, ROME forgets earlier facts gradually and then breaks the model at one edit; r-ROME takes many more. In
batches MEMIT and EMMET hold far longer (arXiv 2403.14236). Other models and facts: for orientation only.
"""


def main() -> None:
    st.title("Edit in sequence")
    st.markdown(
        "Facts are edited one after another, each on top of the former ones. **What is left of the earlier edits, and "
        "when does the model break?**"
    )
    lm = session.model()
    wish = form(lm)
    if wish:
        row = st.container(horizontal=True, vertical_alignment="center")
        if row.button("Run", type="primary", shortcut="Ctrl+Enter", key="run-sequence"):
            start(lm, wish)
        note = "Starts from the original model" + (
            "; the sidebar's edits take no part." if session.active() else ", which stays as it is."
        )
        row.caption(f"{note} Every step is kept: after a Stop, Run goes on where it was.")
    results(lm, wish)
    with st.expander("What was published"):
        st.markdown(PUBLISHED)


# ---------------------------------------------------------------------------------------------------------------- form


def form(lm: LanguageModel) -> SequenceStart | None:
    """What the form asks; None if it cannot be asked."""
    config = edit_form.method_form(lm, DEFAULT_METHOD, "sequencing")
    top = st.columns(4)
    n = top[0].number_input(
        "Facts", 1, 5000, N_FACTS, key="sequence-facts", help="How many have their turn.", persist_state="session"
    )
    seed = top[1].number_input(
        "Order seed", 0, 2**31 - 1, 0, key="sequence-seed", help="Of the order of the facts.", persist_state="session"
    )
    with st.expander("What is measured, and how often"):
        pace: Pace = config_form(lm, Pace, "sequence-pace")
        lines = st.text_area(
            "Probe texts: openings that the model continues at every check, one a line",
            "\n".join(Pace().openings),
            key="sequence-openings",
            persist_state="session",
        )
    facts = fact_sets.choose_or_upload()
    pace = replace(pace, openings=tuple(line for line in str(lines).splitlines() if line.strip()))
    if pace.batch > 1 and not config.batches:
        st.warning(
            f"{config.name} edits one fact at a time. Set 'Facts an edit' to 1, or choose a method that takes several."
        )
        return None
    return SequenceStart(choose_facts(facts, int(n), int(seed)), config, pace, int(seed))


# ---------------------------------------------------------------------------------------------------------------- jobs


def job_of(name: str) -> track.Job[None, int] | None:
    """This session's job of a run."""
    return session.find_job(("sequence", name))


def submit(lm: LanguageModel, name: str, label: str, work: Work, facts: Sequence[Fact], pace: Pace) -> None:
    """Queue the work on a run that has these facts to go."""
    public.check_prompts(lm, [fact.prompt.text for fact in facts])
    checks = len(facts) // pace.check_every + 2
    generated = checks * len(pace.openings) * pace.new_tokens
    job = track.submit(label, work, outlives=True, facts=len(facts), generated=generated)
    session.keep_job(("sequence", name), job)
    session.keep(OWN_RUNS, set[str]).add(name)
    st.session_state["sequence-shown"] = name


def runs_to_see() -> dict[str, SequenceRun]:
    """The runs by name; on a public address a session sees its own and the project's."""
    mine = session.keep(OWN_RUNS, set[str])
    return {name: run for name, run in all_runs().items() if not public.is_public() or not own(run) or name in mine}


def start(lm: LanguageModel, wish: SequenceStart) -> None:
    """Begin a run or go on with it, unless it is under way."""
    name, job = wish.name(lm), job_of(wish.name(lm))
    if job is None or not job.live:
        label = f"{count(len(wish.facts), 'fact')} by {wish.config.name}"
        submit(lm, name, label, partial(work, lm, wish), wish.facts, wish.pace)
    st.session_state["sequence-shown"] = name


# -------------------------------------------------------------------------------------------------------------- result


def results(lm: LanguageModel, wish: SequenceStart | None) -> None:
    """The chosen run, beside others if wanted."""
    runs = runs_to_see()
    chosen = st.session_state.get("sequence-shown")
    under_way = job_of(chosen) if chosen else None
    if chosen and under_way and chosen not in runs:  # prefixes are being sampled
        track.panel(under_way, lambda job: poll_for(chosen, job))
        return
    if not runs:
        st.info(
            "Press **Run** (Ctrl+Enter). Perplexity, the size of the change, efficacy and retention will be drawn here "
            "edit by edit."
        )
        return
    names = list(runs)
    if chosen not in names:
        st.session_state["sequence-shown"] = names[0]
    row = st.columns([2, 1], vertical_alignment="bottom")
    name = row[0].selectbox("Run", names, key="sequence-shown", persist_state="session")
    others = st.multiselect(
        "Compare with",
        [other for other in names if other != name],
        key="sequence-others",
        placeholder="no other run",
        persist_state="session",
    )
    factor = row[1].number_input(
        "Collapse at (× perplexity)",
        1.5,
        1000.0,
        COLLAPSED,
        1.0,
        key="sequence-factor",
        help="The model counts as collapsed at the first edit from which on perplexity stays at or above so many times "
        "the unedited model's. A peak that later edits make good again is no collapse.",
        persist_state="session",
    )
    run, beside = runs[name], {other: runs[other] for other in others}
    job = job_of(name)
    moved_on = own(run) and (wish is None or wish.name(lm) != name)
    with result_of(name, moved_on, "Run"):
        if job is not None and (job.live or job.state in ("error", "stopped")):
            track.panel(job, lambda job: sequence_view.figures(name, run, beside, float(factor), job.id))
        else:
            sequence_view.figures(name, run, beside, float(factor), "kept")
        if job is None or not job.live:
            unfinished(lm, name, run)
            sequence_view.details(lm, run, float(factor))
            continuing(lm, run, wish)


def poll_for(name: str, under_way: track.Job[None, int]) -> None:
    if (folder() / name / "run.json").exists():
        st.rerun()
    if under_way.state == "running":
        st.caption("The prefixes are sampled from the unedited model.")


def unfinished(lm: LanguageModel, name: str, run: SequenceRun) -> None:
    """A run that was stopped is gone on with as it was begun, whatever the form says."""
    records = run.records
    rest = run.plan.facts[records[-1].edited if records else 0 :]
    left = len(rest)
    if left and own(run) and run.fingerprint == lm.fingerprint:

        def resume() -> None:
            label = f"{count(left, 'fact')} left of {name}"
            with track.no_traceback():
                submit(lm, name, label, partial(go_on, lm, run), rest, run.plan.pace)

        st.button(f"Go on with the {count(left, 'fact')} left", on_click=resume, key="sequence-resume")


def own(run: SequenceRun) -> bool:
    """Whether the page may write to the run's folder."""
    return run.folder.parent == folder()


def continuing(lm: LanguageModel, run: SequenceRun, wish: SequenceStart | None) -> None:
    """Branch off at the step that is shown, with the form's method and facts."""
    step = int(st.session_state.get("sequence-step", 0))
    if not own(run) or run.fingerprint != lm.fingerprint or not any(record.step == step for record in run.records):
        return

    def branch(wish: SequenceStart) -> None:
        facts = branch_facts(run, step, wish.facts)
        with track.no_traceback():
            start(lm, replace(wish, facts=facts, branch=(run.folder.name, step)))

    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Continue from step {step}",
            key="sequence-branch",
            disabled=wish is None,
            on_click=branch,
            args=(wish,),
        )
        st.caption(
            "A new run: these steps, then the facts above that had no turn yet, by the method and the settings above."
        )


frame.require_frame()
main()
