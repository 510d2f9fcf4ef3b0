"""Causal tracing: which states carry a fact (Meng et al. 2022, section 2; arXiv 2202.05262).

The subject is made unreadable, and one state at a time is restored to its clean value. By how much that brings the
answer back is the state's indirect effect; a heat map holds it for every token and layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rome_core.model.edits import Update
from rome_core.model.hooks import attention_pattern, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell, Window, replay_note
from rome_core.model.scoring import top_tokens
from rome_core.model.tokens import Prompt, encode, labels
from rome_core.progress import Track, silent
from rome_core.tracing.restoration import n_steps, restored_states, window_of
from rome_core.tracing.runs import DEFAULT_BUDGET, KINDS, Runs, TraceConfig, TracedSite, TraceRequest, prepare

GRIDS = ("probabilities", "spread", "indirect_effect")  # of a heat map, [pos layer]


@dataclass(frozen=True, eq=False)
class Trace:
    """A heat map. Cells are NaN until they are computed; rows before the subject are the corrupted run (causality).

    clean, corrupted, probabilities: p(answer), averaged over the draws after the softmax. spread: its standard
    deviation over the draws. indirect_effect: restored minus corrupted in the config's metric; clean_score and
    corrupted_score are the two ends of that scale. asked: the answer as it was given, None where it is the clean run's
    most probable next token. A preview holds estimates beside exact cells: their spread is NaN.
    """

    prompt: Prompt
    config: TraceConfig
    model: str
    fingerprint: str
    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
    asked: str | None
    foil: str | None
    clean: float
    corrupted: float
    clean_score: float
    corrupted_score: float
    probabilities: Float[Tensor, "pos layer"]
    spread: Float[Tensor, "pos layer"]
    indirect_effect: Float[Tensor, "pos layer"]
    sigma: float
    edits: tuple[str, ...] = ()
    engine: Literal["replay", "plain", "preview"] = "replay"
    note: str = ""

    @property
    def total_effect(self) -> float:
        """p(clean) − p(corrupted)."""
        return self.clean - self.corrupted

    @property
    def complete(self) -> bool:
        """Whether every cell is exact."""
        return bool(self.exact[self.subject[0] :].all())

    @property
    def exact(self) -> Bool[Tensor, "pos layer"]:
        """Which cells from the subject on are measured with all draws; the others are estimates, or not there yet."""
        measured = ~(self.indirect_effect.isnan() | self.spread.isnan())
        measured[: self.subject[0]] = False
        return measured


def cells_of(lm: LanguageModel, runs: Runs, site: TracedSite) -> list[Cell]:
    """All cells that can differ from the corrupted run: every layer at every token from the subject's first on."""
    cells = []
    for token in range(runs.subject[0], len(runs.labels)):
        for layer in range(lm.n_layers):
            if site == "resid_post":
                cells.append(Cell(token, layer, resid=layer))
            else:
                start, stop = window_of(layer, runs.request.config.window, lm.n_layers)
                cells.append(Cell(token, layer, windows=(Window(site, start, stop, runs.clean),)))
    return cells


def trace_steps(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig = TraceConfig(),
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Update] = (),
    budget: int = DEFAULT_BUDGET,
    track: Track = silent,
) -> Iterator[Trace]:
    """The heat map as it fills, at least once a second on a laptop. The last one is complete."""
    request = TraceRequest(prompt, config, answer, foil, tuple(edits), budget)
    yield from heat_map_steps(lm, prepare(lm, request, noise=noise), config.site, track=track)


def heat_map_steps(lm: LanguageModel, runs: Runs, site: TracedSite, *, track: Track = silent) -> Iterator[Trace]:
    """The heat map of one kind as it fills, from runs that are prepared once for all kinds."""
    cells = cells_of(lm, runs, site)
    heat_map = empty_trace(lm, runs, site)
    yield heat_map
    for finished in track(restored_states(lm, runs, cells), KINDS[site], n_steps(lm, runs, cells)):
        if finished:
            heat_map = fill(heat_map, runs, finished)
        yield heat_map


@torch.no_grad()
def empty_trace(lm: LanguageModel, runs: Runs, site: TracedSite) -> Trace:
    """The frame of a heat map: both ends of its scale, the rows before the subject, and NaN elsewhere."""
    request, config = runs.request, replace(runs.request.config, site=site)
    clean, corrupted = runs.logits(lm, runs.clean), runs.logits(lm, runs.corrupted)
    p = runs.log_p_of_logits(corrupted).exp()
    grids = {name: torch.full((len(runs.labels), lm.n_layers), torch.nan) for name in GRIDS}
    for grid, value in zip(grids.values(), (float(p.mean()), float(p.std(correction=0)), 0.0), strict=True):
        grid[: runs.subject[0]] = value
    return Trace(
        prompt=request.prompt,
        config=config,
        model=lm.name,
        fingerprint=lm.fingerprint,
        labels=runs.labels,
        subject=runs.subject,
        answer="".join(labels(lm.tokenizer, runs.answer)),
        asked=request.answer,
        foil=request.foil,
        clean=float(runs.log_p_of_logits(clean).exp()[0]),
        corrupted=float(p.mean()),
        clean_score=float(runs.scores(config.metric, clean)[0]),
        corrupted_score=float(runs.scores(config.metric, corrupted).mean()),
        sigma=runs.sigma,
        edits=tuple(edit.id for edit in runs.clean.edits),
        engine="plain" if replay_note(lm) else "replay",
        note=replay_note(lm),
        **grids,
    )


def fill(trace: Trace, runs: Runs, finished: Sequence[tuple[Cell, Tensor]]) -> Trace:
    """The heat map with restored runs in it. finished: cells and their logits at the answer's positions."""
    """The heat map with the restored runs of these cells in it. finished: cells with their logits."""
    grids = {name: getattr(trace, name).clone() for name in GRIDS}
    for cell, logits in finished:
        p = runs.log_p_of_logits(logits).exp()
        effect = runs.scores(trace.config.metric, logits).mean() - trace.corrupted_score
        for grid, value in zip(grids.values(), (p.mean(), p.std(correction=0), effect), strict=True):
            grid[cell.token, cell.layer] = value
    return replace(trace, **grids)


def lay_over(measured: Trace, estimated: Trace) -> Trace:
    """The exact cells of one heat map, and what another one of the same runs says about the rest."""
    here = measured.exact
    grids: dict[str, Any] = {
        name: torch.where(here, getattr(measured, name), getattr(estimated, name)) for name in GRIDS
    }
    return replace(estimated, **grids)


def trace(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig = TraceConfig(),
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Update] = (),
    budget: int = DEFAULT_BUDGET,
    track: Track = silent,
) -> Trace:
    """The indirect effect of every state on the answer (Meng et al. 2022, equation 4 and section 2.1).

    noise: a ready-made draw, already scaled. answer: text whose joint probability is followed, e.g. " Rome"; by
    default the clean run's most probable next token. budget: bytes of activations that one batch may take.

        t = trace(lm, Prompt("The {} is located in the city of", "Colosseum"), TraceConfig(site="mlp_out"))
        t.indirect_effect      # [pos, layer]
    """
    *_, last = trace_steps(
        lm, prompt, config, noise=noise, answer=answer, foil=foil, edits=edits, budget=budget, track=track
    )
    return last


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


@torch.no_grad()
def restored_top_tokens(
    lm: LanguageModel, runs: Runs, site: TracedSite, token: int, layer: int, *, k: int = 5
) -> dict[str, list[tuple[str, float]]]:
    """The k most probable next tokens of the clean, the corrupted and one cell's restored run."""
    clean, corrupted = runs.logits(lm, runs.clean)[:, 0], runs.logits(lm, runs.corrupted)[:, 0]
    logits = {"clean": clean, "corrupted": corrupted, "restored": corrupted}  # before the subject nothing can differ
    cells = [cell for cell in cells_of(lm, runs, site) if (cell.token, cell.layer) == (token, layer)]
    for finished in restored_states(lm, runs, cells):
        for _, of_cell in finished:
            logits["restored"] = of_cell[:, 0]
    return {name: top_tokens(lm, of_run.softmax(-1).mean(0), k) for name, of_run in logits.items()}


def attention(
    lm: LanguageModel, prompt: Prompt, layer: int, *, edits: Sequence[Update] = ()
) -> tuple[tuple[str, ...], Float[Tensor, "heads pos pos"]]:
    """Token labels and the attention pattern of one layer on the clean prompt."""
    encoded = encode(lm.tokenizer, prompt)
    return encoded.labels, attention_pattern(lm, batch_of(lm, [encoded.ids]), layer, edits=edits)[0]


def snippet(result: Trace) -> str:
    """Python that makes the same numbers again."""
    answer = "" if result.asked is None else f", answer={result.asked!r}"
    foil = f", foil={result.foil!r}" if result.foil else ""
    edited = "  # made with edits active: pass edits=[load_edit(path), ...]" if result.edits else ""
    return (
        "from rome_core import Prompt, TraceConfig, load_model, trace\n\n"
        f"lm = load_model({result.model!r})  # fingerprint {result.fingerprint}\n"
        f"t = trace(lm, {result.prompt!r},\n          {result.config!r}{answer}{foil}){edited}\n"
        "print(t.clean, t.corrupted)\nprint(t.indirect_effect)  # [pos, layer]\n"
    )
