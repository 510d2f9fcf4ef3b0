"""Causal tracing: which states carry a fact (Meng et al. 2022, section 2; arXiv 2202.05262)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.datasets import load_facts
from rome_core.edits import Edit
from rome_core.errors import PromptError
from rome_core.hooks import Batch, Patch, Point, attention_pattern, batch_of, next_logits
from rome_core.model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.replay import Cell, Recording, Window, batches, plain_cell, record, sweep
from rome_core.settings import setting
from rome_core.tokens import Prompt, encode, labels, target_ids

TracedSite = Literal["resid_post", "mlp_out", "attn_out"]
Metric = Literal["p", "log p", "logit difference"]


@dataclass(frozen=True)
class TraceConfig:
    """What is restored, how wide, against how much noise."""

    site: TracedSite = setting(
        "mlp_out", "Kind", "What is restored to its clean value.", choices=("resid_post", "mlp_out", "attn_out")
    )
    window: int = setting(
        10,
        "Window",
        "How many neighbouring layers are restored together (MLP and attention only; the residual stream is restored "
        "at one layer). Clipped at the ends of the model, not shifted. 1 is a single layer.",
        source="Meng et al. 2022, section 2.2",
        low=1,
        high=200,
        step=1,
        unit="layers",
    )
    samples: int = setting(
        10, "Noise draws", "Corrupted runs that are averaged.", source="Meng et al. 2022", low=1, high=100, step=1
    )
    noise_scale: float = setting(
        3.0,
        "Noise",
        "Standard deviation of the noise on the subject's embeddings, in units of σ.",
        source="Meng et al. 2022: 3σ",
        low=0.1,
        high=20.0,
        step=0.1,
        unit="σ",
    )
    noise_from: Literal["subjects", "vocabulary"] = setting(
        "subjects",
        "σ of",
        "Over which embeddings σ is taken: the tokens of the fact set's subjects, or the whole table.",
        source="Meng et al. 2022: subjects",
        choices=("subjects", "vocabulary"),
    )
    metric: Metric = setting(
        "p",
        "Effect in",
        "Probability as in the paper; log p shows small effects; the logit difference against a second answer does "
        "not saturate.",
        choices=("p", "log p", "logit difference"),
    )
    seed: int = setting(1, "Seed", "Of the one noise draw that all cells share.", low=0, high=2**31 - 1, step=1)


@dataclass(frozen=True, eq=False)
class Trace:
    """A heat map. Cells are NaN until they are computed; rows before the subject are the corrupted run (causality).

    clean, corrupted, probabilities: p(answer), averaged over the draws after the softmax. spread: its standard
    deviation over the draws. indirect_effect: restored minus corrupted in the config's metric; clean_score and
    corrupted_score are the two ends of that scale.
    """

    prompt: Prompt
    config: TraceConfig
    model: str
    fingerprint: str
    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: str
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
    engine: Literal["replay", "plain", "attribution"] = "replay"
    note: str = ""

    @property
    def total_effect(self) -> float:
        """p(clean) − p(corrupted)."""
        return self.clean - self.corrupted

    @property
    def complete(self) -> bool:
        return not bool(self.indirect_effect.isnan().any())

    @property
    def approximate(self) -> bool:
        return self.engine == "attribution"


@dataclass(frozen=True, eq=False)
class Runs:
    """The clean and the corrupted run of one prompt, and how an answer is read off a run's last states."""

    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: tuple[int, ...]
    foil: int | None
    sigma: float
    clean: Recording
    corrupted: Recording
    corruption: tuple[Point, Patch]

    def log_p(self, lm: LanguageModel, resid: Float[Tensor, "*rows tail d_model"]) -> Float[Tensor, "*rows"]:
        """log p(answer), joint over its tokens, from states after the last block."""
        return self.log_p_of_logits(lm.logits(resid))

    def log_p_of_logits(self, logits: Float[Tensor, "*rows tail vocab"]) -> Float[Tensor, "*rows"]:
        index = torch.tensor(self.answer, device=logits.device)
        chosen = logits.gather(-1, index.expand(*logits.shape[:-2], -1).unsqueeze(-1)).squeeze(-1)
        return (chosen - logits.logsumexp(-1)).sum(-1)

    def scores(self, metric: Metric, logits: Float[Tensor, "*rows tail vocab"]) -> Float[Tensor, "*rows"]:
        """The runs' values in the metric of the heat map."""
        if metric == "p":
            return self.log_p_of_logits(logits).exp()
        if metric == "log p":
            return self.log_p_of_logits(logits)
        assert self.foil is not None
        return logits[..., 0, self.answer[0]] - logits[..., 0, self.foil]


def window_of(layer: int, width: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) that a window centred on `layer` restores: clipped at the ends, as the authors' code does."""
    return max(0, layer - width // 2), min(n_layers, layer + width - width // 2)


def noise_sigma(lm: LanguageModel, source: Literal["subjects", "vocabulary"]) -> float:
    """σ: standard deviation over all entries of embeddings, after the model's own embedding scaling."""
    embed = lm.module(lm.layout.embed)
    with torch.no_grad():
        if source == "vocabulary":
            return float(embed(torch.arange(embed.weight.shape[0], device=lm.device)).double().std())
        ids = [i for fact in load_facts() for i in lm.tokenizer(fact.prompt.subject)["input_ids"]]
        return float(embed(torch.tensor(ids, device=lm.device)).double().std())


def draw_noise(lm: LanguageModel, config: TraceConfig, n_tokens: int) -> tuple[Float[Tensor, "samples n d_model"], float]:
    """The seeded draw that all cells share, scaled, and σ. The generator is the one of the authors' code."""
    sigma = noise_sigma(lm, config.noise_from)
    draw = np.random.RandomState(config.seed).randn(config.samples, n_tokens, lm.d_model)
    return torch.from_numpy(draw * (config.noise_scale * sigma)).to(lm.device, lm.dtype), sigma


@torch.no_grad()
def prepare(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig,
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Edit] = (),
) -> Runs:
    """The clean and the corrupted run. Without `answer` it is the clean run's most probable next token."""
    encoded = encode(lm.tokenizer, prompt)
    first, stop = encoded.subject
    if answer is None:
        top = next_logits(lm, batch_of(lm, [encoded.ids]), edits=edits)[0].argmax()
        answer_ids: tuple[int, ...] = (int(top),)
    else:
        answer_ids = target_ids(lm.tokenizer, prompt.text, answer)
    foil_id = _foil(lm, prompt, foil, answer_ids) if config.metric == "logit difference" else None
    if noise is None:
        noise, sigma = draw_noise(lm, config, stop - first)
    else:
        sigma = float("nan")
        if noise.shape[1:] != (stop - first, lm.d_model):
            raise PromptError(
                f"The noise has shape {tuple(noise.shape)}; (samples, {stop - first}, {lm.d_model}) is needed.",
                f"The subject '{prompt.subject}' has {stop - first} token{'s' if stop - first > 1 else ''} here.",
                "",
            )

    def corrupt(state: Tensor) -> Tensor:
        state = state.clone()
        state[:, first:stop] += noise.to(state)
        return state

    ids = encoded.ids + answer_ids[:-1]  # a longer answer is read with its own tokens in front
    corruption: tuple[Point, Patch] = (Point("embed"), corrupt)
    clean = record(lm, batch_of(lm, [ids]), edits=edits)
    corrupted = record(lm, batch_of(lm, [ids] * len(noise)), edits=edits, patches=[corruption])
    return Runs(encoded.labels, encoded.subject, answer_ids, foil_id, sigma, clean, corrupted, corruption)


def _foil(lm: LanguageModel, prompt: Prompt, foil: str | None, answer_ids: tuple[int, ...]) -> int:
    if not foil:
        raise PromptError("The logit difference needs a second answer.", "", "Write one, e.g. ' Paris'.")
    first = target_ids(lm.tokenizer, prompt.text, foil)[0]
    if first == answer_ids[0]:
        raise PromptError(f"'{foil}' begins with the same token as the answer.", "", "Choose another second answer.")
    return first


def cells_of(lm: LanguageModel, runs: Runs, config: TraceConfig) -> list[Cell]:
    """All cells that can differ from the corrupted run: every layer at every token from the subject's first on."""
    cells = []
    for token in range(runs.subject[0], len(runs.labels)):
        for layer in range(lm.n_layers):
            if config.site == "resid_post":
                cells.append(Cell(token, layer, resid=layer))
            else:
                start, stop = window_of(layer, config.window, lm.n_layers)
                cells.append(Cell(token, layer, windows=(Window(config.site, start, stop, runs.clean),)))
    return cells


def restored_states(
    lm: LanguageModel, runs: Runs, cells: Sequence[Cell], budget: int
) -> Iterator[list[tuple[Cell, Float[Tensor, "samples tail vocab"]]]]:
    """Logits at the answer's positions of the restored runs, by replay where it was found to agree with plain hooks."""
    tail = len(runs.answer)
    if replay_note(lm):
        for cell in cells:
            hidden = plain_cell(
                lm, runs.clean, runs.corrupted.batch, cell, edits=runs.corrupted.edits, corruption=[runs.corruption]
            )
            yield [(cell, lm.unembed(hidden[:, -tail:]))]
        return
    for group in batches(lm, runs.corrupted, cells, budget):
        for finished in sweep(lm, runs.clean, runs.corrupted, group, tail):
            yield [(cell, lm.logits(state)) for cell, state in finished]


def n_steps(lm: LanguageModel, runs: Runs, cells: Sequence[Cell], budget: int) -> int:
    """How often `restored_states` yields."""
    if replay_note(lm):
        return len(cells)
    return sum(lm.n_layers - group[0].entry for group in batches(lm, runs.corrupted, cells, budget))


def replay_note(lm: LanguageModel) -> str:
    """Empty where replay agrees with plain hooks on this model, else a sentence. Checked once a model."""
    if "replay" not in lm.memo:
        lm.memo["replay"] = _check_replay(lm)
    return lm.memo["replay"]


@torch.no_grad()
def _check_replay(lm: LanguageModel) -> str:
    prompt = Prompt("The home of the {} is far", "green dragon")
    config = TraceConfig(samples=2, noise_from="vocabulary")
    try:
        runs = prepare(lm, prompt, config)
        token, middle = runs.subject[1] - 1, lm.n_layers // 2
        window = window_of(middle, 2, lm.n_layers)
        cells = [
            Cell(token, middle, resid=middle),
            Cell(token, middle, windows=(Window("mlp_out", *window, runs.clean),)),
            Cell(token, middle, windows=(Window("attn_out", *window, runs.clean),)),
        ]
        for cell in cells:
            (fast,) = [state for done in sweep(lm, runs.clean, runs.corrupted, [cell], 1) for _, state in done]
            plain = plain_cell(lm, runs.clean, runs.corrupted.batch, cell, corruption=[runs.corruption])[:, -1:]
            p_fast, p_plain = lm.logits(fast).softmax(-1), lm.unembed(plain).softmax(-1)
            if not torch.allclose(p_fast, p_plain, atol=1e-5 if lm.dtype == torch.float32 else 2e-2):
                return f"Replay differs from plain hooks on this model (by {(p_fast - p_plain).abs().max():.1e})."
    except (StopIteration, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return f"This model's blocks cannot be resumed ({type(error).__name__}), so every cell is a whole pass."
    return ""


DEFAULT_BUDGET = 2 * 2**30  # bytes of activations


def trace_steps(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig = TraceConfig(),
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Edit] = (),
    budget: int = DEFAULT_BUDGET,
    track: Track = silent,
) -> Iterator[Trace]:
    """The heat map as it fills, at least once a second on a laptop. The last one is complete."""
    runs = prepare(lm, prompt, config, noise=noise, answer=answer, foil=foil, edits=edits)
    cells = cells_of(lm, runs, config)
    result = empty_trace(lm, prompt, config, runs, foil)
    yield result
    steps = restored_states(lm, runs, cells, budget)
    for finished in track(steps, _KIND[config.site], n_steps(lm, runs, cells, budget)):
        if finished:
            result = _filled(result, runs, finished)
        yield result


_KIND = {"resid_post": "Residual stream", "mlp_out": "MLP", "attn_out": "Attention"}


@torch.no_grad()
def empty_trace(lm: LanguageModel, prompt: Prompt, config: TraceConfig, runs: Runs, foil: str | None) -> Trace:
    """The frame of a heat map: both ends of its scale, the rows before the subject, and NaN elsewhere."""
    tail = len(runs.answer)
    clean, corrupted = (lm.logits(run.states[-1][:, -tail:]) for run in (runs.clean, runs.corrupted))
    shape = len(runs.labels), lm.n_layers
    before = torch.full(shape, torch.nan)
    p = runs.log_p_of_logits(corrupted).exp()
    grid = {"probabilities": before.clone(), "spread": before.clone(), "indirect_effect": before.clone()}
    for name, value in (("probabilities", p.mean()), ("spread", p.std(correction=0)), ("indirect_effect", 0.0)):
        grid[name][: runs.subject[0]] = float(value)
    return Trace(
        prompt=prompt,
        config=config,
        model=lm.name,
        fingerprint=lm.fingerprint,
        labels=runs.labels,
        subject=runs.subject,
        answer="".join(labels(lm.tokenizer, runs.answer)),
        foil=foil,
        clean=float(runs.log_p_of_logits(clean).exp()[0]),
        corrupted=float(p.mean()),
        clean_score=float(runs.scores(config.metric, clean)[0]),
        corrupted_score=float(runs.scores(config.metric, corrupted).mean()),
        sigma=runs.sigma,
        edits=tuple(edit.id for edit in runs.clean.edits),
        engine="plain" if replay_note(lm) else "replay",
        note=replay_note(lm),
        **grid,
    )


def _filled(trace: Trace, runs: Runs, finished: Sequence[tuple[Cell, Tensor]]) -> Trace:
    grids = {n: getattr(trace, n).clone() for n in ("probabilities", "spread", "indirect_effect")}
    for cell, logits in finished:
        p = runs.log_p_of_logits(logits).exp()
        at = cell.token, cell.layer
        grids["probabilities"][at], grids["spread"][at] = p.mean(), p.std(correction=0)
        grids["indirect_effect"][at] = runs.scores(trace.config.metric, logits).mean() - trace.corrupted_score
    return replace(trace, **grids)


def trace(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig = TraceConfig(),
    *,
    noise: Float[Tensor, "samples n d_model"] | None = None,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Edit] = (),
    budget: int = DEFAULT_BUDGET,
    track: Track = silent,
) -> Trace:
    """The indirect effect of every state on the answer (Meng et al. 2022, equation 4 and section 2.1).

    noise: a ready-made draw, already scaled. answer: text whose joint probability is followed, e.g. " Rome"; by
    default the clean run's most probable next token. budget: bytes of activations that one batch may take.

        t = trace(lm, Prompt("The {} is located in the city of", "Colosseum"), TraceConfig(site="mlp_out"))
        t.indirect_effect      # [pos, layer]
    """
    options = {"noise": noise, "answer": answer, "foil": foil, "edits": edits, "budget": budget, "track": track}
    *_, last = trace_steps(lm, prompt, config, **options)
    return last


@torch.no_grad()
def restored_top_tokens(
    lm: LanguageModel,
    prompt: Prompt,
    config: TraceConfig,
    token: int,
    layer: int,
    *,
    answer: str | None = None,
    foil: str | None = None,
    edits: Sequence[Edit] = (),
    k: int = 5,
) -> dict[str, list[tuple[str, float]]]:
    """The k most probable next tokens of the clean, the corrupted and one cell's restored run."""
    runs = prepare(lm, prompt, config, answer=answer, foil=foil, edits=edits)
    found = {
        "clean": lm.logits(runs.clean.states[-1][:, -len(runs.answer)]),
        "corrupted": lm.logits(runs.corrupted.states[-1][:, -len(runs.answer)]),
    }
    wanted = [cell for cell in cells_of(lm, runs, config) if (cell.token, cell.layer) == (token, layer)]
    found["restored"] = found["corrupted"]  # before the subject nothing can differ
    for finished in restored_states(lm, runs, wanted, DEFAULT_BUDGET):
        for _, logits in finished:
            found["restored"] = logits[:, 0]
    tops = {name: logits.softmax(-1).mean(0).topk(k) for name, logits in found.items()}
    return {
        name: list(zip(labels(lm.tokenizer, tuple(top.indices.tolist())), top.values.tolist(), strict=True))
        for name, top in tops.items()
    }


def attention(
    lm: LanguageModel, prompt: Prompt, layer: int, *, edits: Sequence[Edit] = ()
) -> tuple[tuple[str, ...], Float[Tensor, "heads pos pos"]]:
    """Token labels and the attention pattern of one layer on the clean prompt."""
    encoded = encode(lm.tokenizer, prompt)
    return encoded.labels, attention_pattern(lm, batch_of(lm, [encoded.ids]), layer, edits=edits)[0]


def snippet(result: Trace) -> str:
    """Python that makes the same numbers again."""
    answer = "" if result.answer is None else f", answer={result.answer!r}"
    foil = f", foil={result.foil!r}" if result.foil else ""
    edited = "  # made with edits active: pass edits=[load_edit(path), ...]" if result.edits else ""
    return (
        "from rome_core import Prompt, TraceConfig, load_model, trace\n\n"
        f"lm = load_model({result.model!r})  # fingerprint {result.fingerprint}\n"
        f"t = trace(lm, {result.prompt!r},\n          {result.config!r}{answer}{foil}){edited}\n"
        "print(t.clean, t.corrupted)\nprint(t.indirect_effect)  # [pos, layer]\n"
    )
