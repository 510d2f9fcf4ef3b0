"""The tracing page's work without its widgets: three heat maps as they fill, checks of the input, files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pages.shared.text import number, show_token
from rome_core import LanguageModel, Prompt, Trace
from rome_core.model.edits import Update
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.tokens import encode, labels
from rome_core.progress import Track
from rome_core.tracing.attribution import previews
from rome_core.tracing.heat_map import heat_map_steps
from rome_core.tracing.restoration import window_of
from rome_core.tracing.runs import SITES, TraceRequest, prepare

UNSURE = 0.1  # below this clean probability there is little to restore


@dataclass(frozen=True, eq=False)
class TraceRun:
    """The three heat maps so far: approximate ones at first, exact ones as their cells are finished."""

    request: TraceRequest
    preview: Mapping[str, Trace] = field(default_factory=dict)
    exact: Mapping[str, Trace] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.exact) == len(SITES) and all(trace.complete for trace in self.exact.values())

    @property
    def first(self) -> Trace | None:
        """Any of the heat maps, for what they have in common."""
        return next(iter([*self.exact.values(), *self.preview.values()]), None)

    def best(self, site: str) -> Trace | None:
        """The exact heat map of a kind if it has begun, else the approximate one."""
        return self.exact.get(site) or self.preview.get(site)


def run_steps(lm: LanguageModel, request: TraceRequest, track: Track) -> Iterator[TraceRun]:
    """The run as it grows: previews of all kinds at once, then the exact cells of each kind."""
    runs = prepare(lm, request)
    run = TraceRun(request, previews(lm, runs))
    yield run
    for site in track(SITES, "Heat maps", len(SITES)):
        for heat_map in heat_map_steps(lm, runs, site, track=track):
            run = replace(run, exact={**run.exact, site: heat_map})
            yield run


# ------------------------------------------------------------------------------------------------------- input checks


@torch.no_grad()
def next_tokens(lm: LanguageModel, text: str, edits: Sequence[Update] = (), k: int = 10) -> list[tuple[str, float]]:
    """The k most probable next tokens of a text."""
    ids = lm.tokenizer(text)["input_ids"]
    top = next_logits(lm, batch_of(lm, [ids]), edits=edits)[0].softmax(-1).topk(k)
    return list(zip(labels(lm.tokenizer, tuple(top.indices.tolist())), top.values.tolist(), strict=True))


def warnings(lm: LanguageModel, request: TraceRequest, top: Sequence[tuple[str, float]], p_answer: float) -> list[str]:
    """What the user should know before running: each a sentence with what to do."""
    prompt, found = request.prompt, []
    if prompt.text != prompt.text.rstrip():
        found.append("The prompt ends with a space. Words carry their own space in front, so leave it out.")
    if piece := split_subject(lm, prompt):
        found.append(f"The subject is cut inside the token ‘{show_token(piece)}’: the whole token counts as subject.")
    first, p_first = top[0]
    if request.answer and p_answer < p_first and not first.strip().startswith(request.answer.strip()):
        found.append(
            f"‘{show_token(request.answer)}’ (p {number(p_answer)}) is not the model's first choice: "
            f"that is ‘{show_token(first)}’ (p {number(p_first)})."
        )
    if p_answer < UNSURE:
        found.append(f"The model is unsure (p {number(p_answer)}): with so little to restore, heat maps say little.")
    return found


def split_subject(lm: LanguageModel, prompt: Prompt) -> str:
    """The token that holds both a part of the subject and a letter beside it, if there is one."""
    encoded = encode(lm.tokenizer, prompt)
    offsets = lm.tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    start, stop = prompt.span
    for token in (encoded.subject[0], encoded.subject[1] - 1):
        a, b = offsets[token]
        if (prompt.text[a:start] + prompt.text[stop:b]).strip():
            return encoded.labels[token]
    return ""


# -------------------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Agreement:
    """How well a preview foretold the exact effects: rank correlation, and the cells it missed by most."""

    correlation: float
    worst: tuple[tuple[int, int, float, float], ...]  # token, layer, approximate, exact


def agreement(approximate: Trace, exact: Trace, n: int = 3) -> Agreement:
    """Spearman's correlation over the cells that were computed, and the n worst of them."""
    first = exact.subject[0]
    a, b = approximate.indirect_effect[first:].double(), exact.indirect_effect[first:].double()
    order = (a - b).abs().flatten().argsort(descending=True)[:n].tolist()
    cells = [divmod(at, a.shape[1]) for at in order]
    worst = tuple((first + i, layer, float(a[i, layer]), float(b[i, layer])) for i, layer in cells)
    return Agreement(float(torch.corrcoef(torch.stack([_ranks(a.flatten()), _ranks(b.flatten())]))[0, 1]), worst)


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.argsort().argsort().double()


def peak(trace: Trace) -> tuple[int, int]:
    """Token and layer of the largest indirect effect computed so far.

    In the residual stream only within the subject: at the last token the last layer is the answer itself.
    """
    effects = trace.indirect_effect.nan_to_num(nan=-torch.inf)
    if trace.config.site == "resid_post":
        effects = effects[: trace.subject[1]]
    token, layer = divmod(int(effects.argmax()), effects.shape[1])
    return token, layer


def restored_layers(trace: Trace, layer: int) -> tuple[int, int]:
    """First and last layer that the cell restores."""
    if trace.config.site == "resid_post":
        return layer, layer
    start, stop = window_of(layer, trace.config.window, trace.indirect_effect.shape[1])
    return start, stop - 1


# --------------------------------------------------------------------------------------------------------------- files


COLUMNS = (
    *("kind", "position", "token", "in_subject", "layer", "first_restored", "last_restored"),
    *("p", "spread", "indirect_effect", "p_clean", "p_corrupted", "answer"),
)


def as_csv(run: TraceRun) -> str:
    """One row a finished cell."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(COLUMNS)
    for site, trace in run.exact.items():
        for token, layer in torch.argwhere(~trace.indirect_effect.isnan()).tolist():
            place = (site, token, trace.labels[token], int(trace.subject[0] <= token < trace.subject[1]), layer)
            grids = (trace.probabilities, trace.spread, trace.indirect_effect)
            values = (float(grid[token, layer]) for grid in grids)
            rows.writerow([*place, *restored_layers(trace, layer), *values, trace.clean, trace.corrupted, trace.answer])
    return out.getvalue()


def as_npz(run: TraceRun) -> bytes:
    """The arrays [pos, layer] of each kind, and everything else as JSON under "about"."""
    arrays: dict[str, Any] = {}
    for site, trace in run.exact.items():
        for name in ("probabilities", "spread", "indirect_effect"):
            arrays[f"{site}.{name}"] = getattr(trace, name).cpu().numpy()
    arrays["about"] = np.array(json.dumps(description(run), ensure_ascii=False))
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def description(run: TraceRun) -> dict[str, Any]:
    """What the numbers were made from."""
    trace = run.first
    assert trace is not None
    names = ("model", "fingerprint", "labels", "subject", "answer", "foil", "clean", "corrupted", "edits")
    return {
        "template": trace.prompt.template,
        "subject": trace.prompt.subject,
        **{f"trace.{name}": getattr(trace, name) for name in names},
        "config": {**asdict(trace.config), "site": list(run.exact)},
    }
