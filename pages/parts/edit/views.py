"""A finished edit on the screen: the numbers that matter, and a tab for each way to look at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import streamlit as st

from pages.parts.edit import figures
from pages.shared import public, verdicts
from pages.shared.charts import ask_once, draw_chart, metric_row, page_theme
from pages.shared.forms import changed
from pages.shared.tables import draw_texts, table
from pages.shared.text import count, number
from rome_core import EditRequest, LanguageModel
from rome_core.editing.edit import Edit, Step
from rome_core.evaluation.answers import Change, ask_before_and_after
from rome_core.evaluation.before_after import (
    Continuation,
    Report,
    continuations,
    generation_texts,
    list_objects,
    own_questions,
)

NAMED = ("layer", "clamp", "seed")  # settings that every caption has


def caption(lm: LanguageModel, report: Report) -> str:
    return conditions(lm, report.request, report.edit.config, report.below)


def conditions(lm: LanguageModel, request: EditRequest, config: Any, below: Sequence[Edit]) -> str:
    """Everything needed to repeat what a figure shows: model, prompt, method, settings, seed."""
    settings = "".join(f", {name} {value}" for name, value in changed(lm, config).items() if name not in NAMED)
    on_top = f" · on top of {count(len(below), 'edit')}" if below else ""
    values = vars(config)
    seed = f" · seed {values['seed']}" if "seed" in values else ""
    named = "".join(f", {name} {values[name]:g}" for name in NAMED[:2] if name in values)
    return (
        f"{lm.name} · “{request.prompt.text}” → {request.target_new.strip()} · "
        f"{config.name}{named}{settings}{seed}{on_top}"
    )


def metrics(report: Report) -> None:
    """Five numbers: the answer, its rank, how far the value and the weights moved, and the verdict."""
    edit, size, d = report.edit, report.size, report.diagnosis
    before, after = report.changes[0].before.new.p_joint, report.changes[0].after.new.p_joint
    target = report.request.target_new.strip()
    norm, limit = (number(edit.history[-1].delta_norm), allowed(edit.history)) if edit.history else ("–", "clamp –")
    metric_row(
        (
            f"p({target})",
            number(after),
            f"before {number(before)}",
            "On the edited prompt.",
        ),
        (f"Rank of {target}", f"{report.rank[1]:,}", f"before {report.rank[0]:,}", "1 is the model's answer."),
        ("‖δ‖", norm, limit, "How far the value moved, and how far it was allowed to.")
        if edit.keys is not None
        else ("‖Δ‖", number(size.norm_F), limit, "How far the weights moved, and how far they were allowed to."),
        move(report),
        (
            "Verdict",
            verdicts.label(report.verdict),
            f"disabling from {d.disabling_at:.3g}" if d else "by size alone",
            d.explanation if d else "This method divides by no single denominator: the verdict is by ‖Δ‖/‖W‖.",
        ),
    )


def move(report: Report) -> tuple[str, str, str, str]:
    """How far the weights move, in the quantity that the verdict rests on."""
    size, d = report.size, report.diagnosis
    frobenius = verdicts.QUANTITIES["relative_F"]
    if d is None or d.quantity == "relative_F":
        return frobenius, number(size.relative_F), f"‖Δ‖ {number(size.norm_F)}", describe_move(report)
    below = f"{frobenius} {number(size.relative_F)}"
    return verdicts.QUANTITIES[d.quantity], verdicts.large(d.score), below, "What the verdict beside it rests on."


def allowed(steps: Sequence[Step]) -> str:
    """How far the value, or a trained Δ, may move."""
    return f"clamp {number(steps[-1].limit)}" if isfinite(steps[-1].limit) else "no clamp"


def describe_move(report: Report) -> str:
    """How far the weights move, matrix by matrix."""
    sizes = report.size.modules
    if len(sizes) == 1:
        return "How far the layer's weights move (Frobenius)."
    parts = ", ".join(f"{name} {number(value)}" for name, value in sizes.items())
    return f"How far the weights move (Frobenius), of the matrix that moves most: {parts}."


def metrics_so_far(steps: Sequence[Step], target: str) -> None:
    """The same row while the search runs: what is known of it."""
    p, rank, norm, limit = "–", "–", "–", "clamp –"
    if steps:
        last = steps[-1]
        p, rank, norm, limit = (
            number(last.p_target),
            f"{last.rank:,}",
            number(last.delta_norm),
            allowed(steps),
        )
    metric_row(
        (f"p({target})", p, "with the value in place", "Mean over the prefixed prompts, while the value is searched."),
        (f"Rank of {target}", rank, "with the value in place", "1 is the model's answer."),
        ("‖δ‖", norm, limit, "How far the value moved, and how far it was allowed to."),
        ("Weights moved", "–", "to come", "In the quantity that the verdict rests on."),
        ("Verdict", "–", "to come", "Whether the edit would break the model."),
    )


def why_no_effect(report: Report) -> str | None:
    """The reason, in words, why an edit that was solved changed little; None if it worked."""
    on_prompt, steps = report.changes[0], report.edit.history
    before, after = on_prompt.before.new.p_joint, on_prompt.after.new.p_joint
    target = report.request.target_new.strip()
    if before > 0.5:
        return f"the model answered “{target}” before the edit (p {number(before)}), so there was little to change."
    if after > 0.5 or report.rank[1] == 1:
        return None
    if not steps:
        return f"p({target}) only went from {number(before)} to {number(after)}."
    return f"p({target}) is {number(after)}. " + _what_failed(report, steps[0], steps[-1])


def _what_failed(report: Report, first: Step, last: Step) -> str:
    """Which part of the way to the new answer gave way: the update, the clamp, or the search."""
    if report.edit.keys is None:
        walled = last.delta_norm > 0.5 * last.limit
        return f"The training stopped at p {number(last.p_target)}. " + (
            "The weights stand at the walls of their box: widen ε." if walled else "Allow more steps or a higher rate."
        )
    if last.p_target > 0.5:
        key = f", whose key stands at cosine {report.diagnosis.cosine:.2f} to k*" if report.diagnosis else ""
        return (
            f"The value that was found would do (p {number(last.p_target)} where it is put in place), but the update "
            f"does not bring it about on the bare prompt{key}. Try another method or an earlier layer."
        )
    if last.delta_norm > 0.99 * last.limit:
        return f"‖δ‖ ran into its clamp of {number(last.limit)}. Raise the clamp or choose another layer."
    if last.loss > 0.8 * first.loss:
        fell = f"{number(first.loss)} → {number(last.loss)} nats"
        return f"The loss hardly fell ({fell}). Raise the learning rate or choose another layer."
    return f"The search stopped at p {number(last.p_target)}. Allow more steps."


# ------------------------------------------------------------------------------------------------------ before, after


def before_after(lm: LanguageModel, report: Report) -> None:
    """Probabilities on every kind of prompt, the user's own among them, and texts side by side."""
    changes = (*report.changes, *own_changes(lm, report))
    names = list_objects(report.request)
    draw_chart(figures.dumbbell(changes, names, caption(lm, report), page_theme()), "dumbbell", "edit")
    if not any(change.question.kind in ("paraphrase", "neighbour") for change in report.changes):
        st.caption(
            "This fact is not in the project's own set: no paraphrases and neighbours are known. Write your own."
        )
    if any(change.question.kind == "namesake" for change in report.changes):
        st.caption(
            "Namesakes are made-up subjects that end in the same words: what is said of them, too, was said of a word "
            "and not of the subject."
        )
    st.text_area(
        "Your own prompts, one a line",
        key="own",
        persist_state="session",
        height=80,
        placeholder="To see the Eiffel Tower you have to travel to",
        help="They join the figure and the table. Up to ten.",
    )
    with st.expander("The same as a table"):
        table(change_rows(changes, names))
    texts(lm, report)


def own_changes(lm: LanguageModel, report: Report) -> tuple[Change, ...]:
    lines = str(st.session_state.get("own") or "").splitlines()
    questions = own_questions(report.request, lines)
    if not questions:
        return ()

    def ask() -> tuple[Change, ...]:
        public.check_prompts(lm, [question.text for question in questions])
        return ask_before_and_after(lm, questions, [report.edit], report.below)

    return ask_once(("own", identity(report), tuple(questions)), ask) or ()


def texts(lm: LanguageModel, report: Report) -> None:
    """What the model writes, both with the same seed."""
    st.markdown("**What the model writes.** Equal seed; words that differ are marked.")
    left, right, _ = st.columns([1, 1, 2])
    temperature = left.number_input(
        "Temperature", 0.0, 2.0, 0.0, 0.1, help="0: always the likeliest token.", key="heat", persist_state="session"
    )
    seed = right.number_input(
        "Seed", 0, None, 0, help="For both texts. Unused at temperature 0.", key="text_seed", persist_state="session"
    )
    written: Sequence[Continuation] = report.continuations
    if temperature:
        openings = generation_texts(report.request)
        make = lambda: continuations(lm, report.edit, report.below, openings, temperature, int(seed))  # noqa: E731
        written = ask_once(("texts", identity(report), temperature, seed), make) or ()
    for item in written:
        draw_texts(item.text, {"before": item.before, "after": item.after})


def change_rows(changes: Sequence[Change], names: Sequence[str]) -> list[dict[str, str]]:
    """A row a prompt, with the answers' probabilities before and after; a reversed one has but one answer."""
    rows = []
    for change in changes:
        row: dict[str, str] = {"kind": change.question.kind, "prompt": figures.shown_prompt(change.question)}
        for panel, name in enumerate(names):
            for when, values in (("before", change.before.probabilities), ("after", change.after.probabilities)):
                row[f"p({name}) {when}"] = number(values[panel]) if panel < len(values) else ""
        rows.append(row)
    return rows


def identity(report: Report) -> tuple[str, ...]:
    return (report.edit.id, *(edit.id for edit in report.below))


# --------------------------------------------------------------------------------------------------------- comparison


def comparison(left: Report, right: Report) -> None:
    """Two methods on the same request: number by number, and what each writes."""
    table(comparison_rows(left, right))
    for a, b in zip(left.continuations, right.continuations, strict=True):
        draw_texts(a.text, {left.edit.method: a.after, right.edit.method: b.after})


def comparison_rows(left: Report, right: Report) -> list[dict[str, str]]:
    """A row for each number, a column for each method."""
    rows: tuple[tuple[str, Callable[[Report], str]], ...] = (
        ("p(new) on the edited prompt", lambda r: number(r.changes[0].after.new.p_joint)),
        ("mean p(new) on paraphrases", lambda r: mean_after(r, "paraphrase")),
        ("mean p(new) on neighbours", lambda r: mean_after(r, "neighbour")),
        ("mean p(new) on namesakes", lambda r: mean_after(r, "namesake")),
        ("rank of the new object", lambda r: f"{r.rank[1]:,}"),
        (verdicts.QUANTITIES["relative_F"], lambda r: number(r.relative_norm)),
        ("denominator", lambda r: verdicts.large(r.diagnosis.denominator) if r.diagnosis else "–"),
        ("verdict", lambda r: verdicts.label(r.verdict)),
        ("seconds", lambda r: f"{r.seconds:.1f}"),
    )
    return [{"": name, left.edit.method: value(left), right.edit.method: value(right)} for name, value in rows]


def mean_after(report: Report, kind: str) -> str:
    values = [change.after.new.p_joint for change in report.changes if change.question.kind == kind]
    return number(fmean(values)) if values else "–"
