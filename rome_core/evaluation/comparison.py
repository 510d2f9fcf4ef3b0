"""One request, every method, side by side; methods that look for the same δ share one search for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rome_core.diagnosis.verdict import size_of
from rome_core.editing.edit import Edit
from rome_core.editing.methods import MethodConfig
from rome_core.editing.second_moment import Moment
from rome_core.evaluation.measures import MEASURES
from rome_core.evaluation.solving import FAILURES, explain, solve_by_each
from rome_core.files import csv_text, null_if_infinite
from rome_core.model.generation import generate
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import kl_divergence, score
from rome_core.model.tokens import EditRequest, as_target, text_ids
from rome_core.progress import Track, silent

COLUMNS = {
    "efficacy": MEASURES["p(new)"],
    "paraphrase": MEASURES["p(new), paraphrases"],
    "neighbour": MEASURES["p(new), neighbours"],
    "nkl": MEASURES["NKL"],
    "relative_norm": MEASURES["‖Δ‖/‖W‖"],
    "seconds": MEASURES["seconds"],
}


@dataclass(frozen=True)
class Trial:
    """What every method is asked: the request, prompts that test it, and a text to go on with.

    Without paraphrases or neighbours their measures are absent. temperature 0 is greedy; seed: of the text.
    """

    request: EditRequest
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    opening: str = ""
    new_tokens: int = 30
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method's outcome, or the reason why there is none. The row named "before" is the model without an edit.

    values: by the names of COLUMNS, probabilities as geometric means over the new object's tokens. shared: the method
    whose δ was taken over; `seconds` is then what was spent beyond its search.
    """

    method: str
    config: MethodConfig | None = None
    edit: Edit | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    verdict: str = ""  # by ‖Δ‖/‖W‖: "safe", "caution" or "disabling"
    shared: str = ""
    error: str = ""


def compare_methods(
    lm: LanguageModel,
    task: Trial,
    configs: Sequence[MethodConfig],
    *,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
    track: Track = silent,
) -> Iterator[MethodRow]:
    """The row of the unedited model, then one a method as they finish, each solved by itself on top of `edits`.

    moments: C by layer; a layer that is not among them takes the shipped or cached one, or estimates it.
    """
    before = _next_log_probs(lm, task.neighbours, edits) if task.neighbours else None
    yield MethodRow("before", values=_values(lm, task, edits), text=_text(lm, task, edits))
    for solved in solve_by_each(lm, task.request, configs, moments=moments, edits=edits, track=track):
        row, edit = MethodRow(solved.config.name, solved.config, shared=solved.shared, error=solved.error), solved.edit
        if edit is None:
            yield row
            continue
        try:
            values, size = _values(lm, task, [*edits, edit]), size_of(lm, edit)
            if before is not None:
                after = _next_log_probs(lm, task.neighbours, [*edits, edit])
                values["nkl"] = float(kl_divergence(before, after).mean())
            values |= {"relative_norm": size.relative_F, "seconds": solved.seconds}
            text = _text(lm, task, [*edits, edit])
            yield replace(row, edit=edit, values=values, text=text, verdict=size.verdict)
        except FAILURES as error:
            yield replace(row, shared="", error=explain(error))


def _values(lm: LanguageModel, task: Trial, edits: Sequence[Edit]) -> dict[str, float]:
    """Mean geometric-mean probability of the new object on each kind of prompt that there is."""
    kinds = {"efficacy": (task.request.prompt.text,), "paraphrase": task.paraphrases, "neighbour": task.neighbours}
    asked = [(text, as_target(task.request.target_new, text)) for texts in kinds.values() for text in texts]
    scored = iter(score(lm, asked, edits=edits))
    return {kind: sum(next(scored).p_mean for _ in texts) / len(texts) for kind, texts in kinds.items() if texts}


def _text(lm: LanguageModel, task: Trial, edits: Sequence[Edit]) -> str:
    if not task.opening.strip():
        return ""
    return generate(lm, task.opening, task.new_tokens, edits=edits, temperature=task.temperature, seed=task.seed)


def _next_log_probs(lm: LanguageModel, texts: Sequence[str], edits: Sequence[Edit]) -> Float[Tensor, "n vocab"]:
    return next_logits(lm, batch_of(lm, [text_ids(lm.tokenizer, text) for text in texts]), edits=edits).log_softmax(-1)


# --------------------------------------------------------------------------------------------------------------- files


def comparison_csv(rows: Sequence[MethodRow]) -> str:
    """One line a method; a measure without prompts has no column."""
    names = [name for name in COLUMNS if any(name in row.values for row in rows)]
    return csv_text(
        ["method", *names, "delta_of", "text", "error"],
        [[row.method, *(row.values.get(name, "") for name in names), row.shared, row.text, row.error] for row in rows],
    )


def comparison_json(lm: LanguageModel, task: Trial, rows: Sequence[MethodRow], edits: Sequence[Edit] = ()) -> str:
    """The rows with everything needed to make them again: model, request, prompts, seeds, every method's settings."""
    record = {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "task": asdict(task),
        "on_top_of": [edit.id for edit in edits],
        "measures": {name: measure.label for name, measure in COLUMNS.items()},
        "rows": [_record(row) for row in rows],
    }
    return json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)


def _record(row: MethodRow) -> dict[str, Any]:
    used = row.edit.config if row.edit else row.config
    return {
        "method": row.method,
        "settings": {f.name: getattr(used, f.name) for f in fields(used)} if used else None,
        "second_moment": row.edit.corpus if row.edit else None,
        "edit": row.edit.id if row.edit else None,
        "values": {name: null_if_infinite(value) for name, value in row.values.items()},
        "verdict": row.verdict or None,
        "delta_of": row.shared or None,
        "text": row.text,
        "error": row.error or None,
    }
