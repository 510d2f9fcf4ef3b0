"""Why an edit had no effect, in words."""

from __future__ import annotations

from pages.shared.text import number
from rome_core.editing.edit import Step
from rome_core.evaluation.before_after import Report


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
