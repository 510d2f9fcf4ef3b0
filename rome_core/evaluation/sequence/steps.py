"""Edits solved one after another, each on the already edited model, and what is left of the earlier ones.

Gupta et al. 2024 (arXiv 2401.07453) name the two ways in which it goes wrong: gradual forgetting of earlier facts, and
then catastrophic forgetting at one edit that breaks the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rome_core.editing.edit import Edit, merge_edits
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.presets import resolve
from rome_core.editing.second_moment import Moment
from rome_core.editing.storage import load_edit
from rome_core.errors import DataError, EditError
from rome_core.evaluation.answers import ask, questions_about
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.evaluation.sequence.folder import Check, Pace, Record, SequencePlan, SequenceRun, check_of
from rome_core.evaluation.solving import FAILURES, explain
from rome_core.facts.datasets import Fact
from rome_core.facts.new_objects import require_new_objects
from rome_core.model.edits import relative_norms
from rome_core.model.generation import generate_many
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.settings import first_fault


def plan_sequence(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: MethodConfig,
    pace: Pace = Pace(),  # noqa: B008  (frozen)
    order_seed: int | None = None,
) -> SequencePlan:
    """A plan with the config resolved for the model, and prefixes sampled once from it, unedited, as the authors do.

    A config that brings its own prefixes keeps them. Raises EditError for settings that cannot be edited with and a
    batch that the method cannot take, DataError for facts without a new object.
    """
    if not facts:
        raise EditError("There is no fact to edit.", "", "Give at least one.")
    if fault := first_fault(pace):
        raise EditError(f"The sequence cannot have this setting: {fault}")
    require_new_objects(facts)
    if pace.batch > 1 and not config.batches:
        raise EditError(
            f"{config.name} edits one fact at a time, not {pace.batch}.", "", "Set the batch to 1, or choose another."
        )
    config = resolve(lm, config)
    config.check(lm, [facts[0].request])  # before a folder is begun in which every step would fail
    config = config.with_prefixes(lm, n=pace.prefixes - 1)
    return SequencePlan(config, tuple(facts), pace, order_seed)


def edit_in_sequence(
    lm: LanguageModel, run: SequenceRun, *, moments: Mapping[int, Moment] | None = None, track: Track = silent
) -> Iterator[Record]:
    """Go on with a run until all facts have had their turn: one record a step, kept before it is handed out.

    A step that fails is recorded with its reason and changes nothing. Going on after a stop or a kill gives the records
    that an undisturbed run gives. moments: C by layer; None: the kept ones, or estimated.

        run = create_run("runs/r-rome", lm, plan_sequence(lm, load_facts()[:100], METHODS["r-rome"]()))
        for record in edit_in_sequence(lm, run):
            print(record.edited, record.perplexity)
    """
    if lm.fingerprint != run.fingerprint:
        raise DataError(f"The run '{run.folder.name}' is of another model than '{lm.name}'.", "", "Load that model.")
    with run.alone():
        records, active = run.records, stack(run.edits())
        if not records:
            records.append(_unedited(lm, run.plan))
            run.append(records[0], None)
            yield records[0]
        start, batch = records[-1].edited, run.plan.pace.batch
        for at in track(range(start, len(run.plan.facts), batch), "Edits", -(-(len(run.plan.facts) - start) // batch)):
            chosen = range(at, min(at + batch, len(run.plan.facts)))
            record, edit = _step(lm, run.plan, records, active, chosen, moments, track)
            run.append(record, edit)
            records.append(record)
            if edit is not None:  # as the file has it, so that going on later rounds in the same way
                active = stack([load_edit(run.path(record.step))], active)
            yield record


def stack(edits: Iterable[Edit], active: tuple[Edit, ...] = ()) -> tuple[Edit, ...]:
    """Edits on top of merged ones, merged. Always one at a time, so that a run that was stopped rounds as one that was
    not."""
    for edit in edits:
        active = merge_edits([*active, edit])
    return active


def load_merged(lm: LanguageModel, run: SequenceRun, step: int) -> tuple[Edit, ...] | None:
    """The edits up to a step, merged; None if their files are not there or they are another model's."""
    made = [record for record in run.records if record.edit and record.step <= step]
    if run.fingerprint != lm.fingerprint or not all(run.path(record.step).exists() for record in made):
        return None
    return merge_edits(run.edits(step))


def check(
    lm: LanguageModel, plan: SequencePlan, chosen: Sequence[int], edits: Sequence[Edit] = ()
) -> tuple[Check, ...]:
    """Whether some of the plan's facts are as their edits want them."""
    answers = ask(lm, [questions_about(plan.facts[i])[0] for i in chosen], edits=edits)
    return tuple(check_of(i, answer) for i, answer in zip(chosen, answers, strict=True))


def _unedited(lm: LanguageModel, plan: SequencePlan) -> Record:
    began = time.monotonic()
    return Record(
        step=0,
        facts=(),
        edited=0,
        method="",
        edit="",
        error="",
        perplexity=perplexity(lm, general_texts()[: plan.pace.passages]),
        norms={},
        own=0.0,
        before=(),
        checks=check(lm, plan, range(len(plan.facts))),
        texts=_texts(lm, plan, ()),
        measure_seconds=time.monotonic() - began,
    )


def _step(
    lm: LanguageModel,
    plan: SequencePlan,
    records: Sequence[Record],
    active: tuple[Edit, ...],
    chosen: Sequence[int],
    moments: Mapping[int, Moment] | None,
    track: Track,
) -> tuple[Record, Edit | None]:
    """Solve some facts on top of the edits so far, and measure the model with it."""
    began, edit, error = time.monotonic(), None, ""
    try:
        requests = [plan.facts[i].request for i in chosen]
        edit = solve(lm, requests, plan.config, moments=moments, edits=active, track=track)
        if not math.isfinite(edit.delta_norm):
            raise EditError("The update is not finite, so it was not applied.", "The model may be broken already.")
        edit = replace(edit, on=tuple(record.edit for record in records if record.edit))
    except FAILURES as reason:
        edit, error = None, explain(reason)
    solved, now = time.monotonic(), stack([edit], active) if edit else active
    edited, every = chosen[-1] + 1, plan.pace.check_every
    whole = edited // every > chosen[0] // every or edited == len(plan.facts)
    made = [i for record in records if record.edit for i in record.facts] if whole else []
    record = Record(
        step=records[-1].step + 1,
        facts=tuple(chosen),
        edited=edited,
        method=plan.config.name,
        edit=edit.id if edit else "",
        error=error,
        perplexity=perplexity(lm, general_texts()[: plan.pace.passages], edits=now),
        norms=relative_norms(lm, now),
        own=max(relative_norms(lm, [edit] if edit else []).values(), default=0.0),
        before=check(lm, plan, chosen, active),
        checks=check(lm, plan, [*made, *(chosen if edit else ())], now) if made or edit else (),
        texts=_texts(lm, plan, now) if whole else (),
        solve_seconds=solved - began,
        measure_seconds=time.monotonic() - solved,
    )
    return record, edit


def _texts(lm: LanguageModel, plan: SequencePlan, edits: Sequence[Edit]) -> tuple[str, ...]:
    openings = plan.pace.openings
    return tuple(generate_many(lm, openings, plan.pace.new_tokens, edits=edits)) if openings else ()
