"""Many requests solved into one edit or one after another, and measured without and with all of their edits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from statistics import fmean

from rome_core.editing.edit import Edit
from rome_core.editing.method import EditContext, FoundValue
from rome_core.editing.methods import MethodConfig, solve
from rome_core.editing.second_moment import Moment
from rome_core.errors import RomeError
from rome_core.evaluation.answers import Question, ask_before_and_after
from rome_core.evaluation.before_after import choose_questions
from rome_core.files import csv_text, null_if_infinite
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Stopped, Track, silent

PROMPTS = 4  # paraphrases and neighbours of a fact that the project's set has


@dataclass(frozen=True)
class Outcome:
    """One request's mean p(new) on its own prompt, on paraphrases and on neighbours, before and after; and p(true)."""

    kind: str  # new, true, paraphrase, neighbour
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Batch:
    """Requests, the edits that they became, and what came of each. edits: one of all, or one a request."""

    fingerprint: str
    config: MethodConfig
    below: tuple[Edit, ...]
    requests: tuple[EditRequest, ...]
    edits: tuple[Edit, ...] = ()
    outcomes: tuple[tuple[Outcome, ...], ...] = ()  # of the requests in `done`
    problems: Mapping[int, str] | None = None  # by place among the requests
    seconds: float = 0.0
    stopped: bool = False

    @property
    def done(self) -> tuple[EditRequest, ...]:
        """The requests that were solved, in order."""
        return tuple(request for edit in self.edits for request in edit.requests)


def edit_batch(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: MethodConfig,
    below: tuple[Edit, ...],
    moments: Mapping[int, Moment] | None,
    track: Track = silent,
    publish: Callable[[Batch], None] = lambda batch: None,
) -> Batch:
    """Solve and measure. A request that cannot be solved is a problem by its place; after a `Stopped` in the loop, what
    was found until then is made into edits and measured.

    moments: C by layer; None: the kept ones. Raises RomeError if no request could be solved, Stopped if none was yet.
    """
    batch = Batch(lm.fingerprint, config, below, tuple(requests))
    publish(batch)
    began, problems, edits = time.monotonic(), dict[int, str](), list[Edit]()
    searches, stopped = config.batches and config.adds_to is not None, False
    values: list[FoundValue] = []
    try:
        if config.batches and not searches:
            edits.append(solve(lm, requests, config, moments=moments, edits=below, track=track))
        else:
            config = config.with_prefixes(lm, below) if searches else config
            for number, request in enumerate(track(requests, "Facts", len(requests))):
                try:
                    if searches:
                        values.append(config.search(EditContext(lm, below, track=track), request))
                    else:
                        on = [*below, *edits]
                        edits.append(solve(lm, [request], config, moments=moments, edits=on, track=track))
                except RomeError as error:
                    problems[number] = str(error)
                publish(replace(batch, edits=tuple(edits), problems=problems))
    except Stopped:
        stopped = True
    track = silent if stopped else track
    if values:
        edits.append(config.update(EditContext(lm, below, moments, track), values))
    if not edits:
        if stopped:
            raise Stopped
        raise RomeError("None of the facts could be edited.", next(iter(problems.values()), ""))
    batch = replace(batch, edits=tuple(edits), problems=problems, seconds=time.monotonic() - began, stopped=stopped)
    return replace(batch, outcomes=tuple(measure_batch(lm, batch, track)))


def measure_batch(lm: LanguageModel, batch: Batch, track: Track = silent) -> Iterator[tuple[Outcome, ...]]:
    """What each solved request's prompts say without the edits and with all of them."""
    by_request = [_questions(request) for request in batch.done]
    questions_of_all = [question for questions in by_request for question in questions]
    changes = iter(ask_before_and_after(lm, questions_of_all, batch.edits, batch.below, track))
    for questions in by_request:
        values: dict[str, list[tuple[float, float]]] = {}
        for change in islice(changes, len(questions)):
            kind = "new" if change.question.kind == "edit" else change.question.kind
            answered = (change.before.probabilities, change.after.probabilities)
            for name, before, after in zip((kind, "true"), *answered, strict=False):  # the true one may be unknown
                values.setdefault(name, []).append((before, after))
        yield tuple(
            Outcome(kind, fmean(b for b, _ in pairs), fmean(a for _, a in pairs)) for kind, pairs in values.items()
        )


def _questions(request: EditRequest) -> list[Question]:
    """Both objects compete on the edited prompt; of the others, the new one's probability is enough."""
    questions = [question for question in choose_questions(request, PROMPTS) if question.kind != "reversed"]
    return [question if question.kind == "edit" else replace(question, true=None) for question in questions]


def share_held(batch: Batch) -> float:
    """The share of solved requests whose new object is likelier than the true one, or likely where none is given."""
    return fmean(float(_holds(outcomes)) for outcomes in batch.outcomes)


def _holds(outcomes: Sequence[Outcome]) -> bool:
    by_kind = {outcome.kind: outcome.after for outcome in outcomes}
    return by_kind["new"] > by_kind.get("true", 0.5)


# --------------------------------------------------------------------------------------------------------------- files

KINDS = ("new", "true", "paraphrase", "neighbour", "namesake")


WHEN = ("before", "after")


def batch_csv(batch: Batch) -> str:
    """A line a solved request; a kind of prompts that it does not have is an empty cell."""
    rows = []
    for request, outcomes in zip(batch.done, batch.outcomes, strict=True):
        by_kind = {outcome.kind: outcome for outcome in outcomes}
        values = [getattr(by_kind[kind], when) if kind in by_kind else "" for kind in KINDS for when in WHEN]
        prompt = request.prompt
        rows.append([prompt.template, prompt.subject, request.target_new, request.target_true or "", *values])
    header = [
        "template",
        "subject",
        "target_new",
        "target_true",
        *(f"{kind}_{when}" for kind in KINDS for when in WHEN),
    ]
    return csv_text(header, rows)


def batch_json(lm: LanguageModel, batch: Batch) -> str:
    """Outcomes with everything needed to make them again."""
    config = batch.edits[0].config
    record = {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "method": config.name,
        "settings": {f.name: getattr(config, f.name) for f in fields(config)},
        "second_moment": batch.edits[0].corpus,
        "on_top_of": [edit.id for edit in batch.below],
        "edits": [edit.id for edit in batch.edits],
        "seconds": batch.seconds,
        "stopped": batch.stopped,
        "rows": [
            {
                "template": request.prompt.template,
                "subject": request.prompt.subject,
                "target_new": request.target_new,
                "target_true": request.target_true,
                "p": {outcome.kind: [*map(null_if_infinite, (outcome.before, outcome.after))] for outcome in outcomes},
            }
            for request, outcomes in zip(batch.done, batch.outcomes, strict=True)
        ],
        "problems": {str(number + 1): words for number, words in (batch.problems or {}).items()},
    }
    return json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
