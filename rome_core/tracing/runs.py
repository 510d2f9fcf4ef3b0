"""Clean and corrupted run: a prompt as it is, and with noise on its subject's embeddings.

Steps 1 and 2 of causal tracing (Meng et al. 2022, section 2). Everything that is traced of a prompt starts from the
same two recorded runs: they are prepared once, and restored from as often as is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import ModelError, PromptError
from rome_core.facts.datasets import load_facts
from rome_core.model.edits import Update
from rome_core.model.hooks import Patch, Point, batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.proof import TRACED
from rome_core.model.replay import Recording, record
from rome_core.model.tokens import Prompt, encode, target_ids
from rome_core.settings import first_fault, setting

TracedSite = Literal["resid_post", "mlp_out", "attn_out"]
Metric = Literal["p", "log p", "logit difference"]
SITES: tuple[TracedSite, ...] = ("resid_post", "mlp_out", "attn_out")
KINDS: dict[str, str] = {"resid_post": "Residual stream", "mlp_out": "MLP", "attn_out": "Attention"}
DEFAULT_BUDGET = 2 * 2**30  # bytes of activations


@dataclass(frozen=True)
class TraceConfig:
    """What is restored, how wide, against how much noise."""

    site: TracedSite = setting("mlp_out", "Kind", "What is restored to its clean value.", choices=SITES)
    window: int = setting(
        10,
        "Window",
        "How many neighbouring layers are restored together (MLP and attention only; the residual stream is restored "
        "at one layer). Clipped at the ends of the model, not shifted. 1 is a single layer.",
        source="Meng et al. 2022, section 2.2",
        bounds=(1, 200, 1),
        unit="layers",
    )
    samples: int = setting(
        10, "Noise draws", "Corrupted runs that are averaged.", source="Meng et al. 2022", bounds=(1, 100, 1)
    )
    noise_scale: float = setting(
        3.0,
        "Noise",
        "Standard deviation of the noise on the subject's embeddings, in units of σ.",
        source="Meng et al. 2022: 3σ",
        bounds=(0.1, 20.0, 0.1),
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
    seed: int = setting(1, "Seed", "Of the one noise draw that all cells share.", bounds=(0, 2**31 - 1, 1))


@dataclass(frozen=True)
class TraceRequest:
    """What is traced: everything that the two runs depend on, besides the model.

    answer: text whose joint probability is followed, e.g. " Rome"; None is the clean run's most probable next token.
    foil: the second answer, which the logit difference needs. budget: bytes of activations that one batch of restored
    runs may take, which changes no number.
    """

    prompt: Prompt
    config: TraceConfig = TraceConfig()
    answer: str | None = None
    foil: str | None = None
    edits: tuple[Update, ...] = ()
    budget: int = DEFAULT_BUDGET

    @property
    def key(self) -> tuple[Any, ...]:
        """What the numbers depend on."""
        return ("trace", self.prompt, self.config, self.answer, self.foil, tuple(edit.id for edit in self.edits))


@dataclass(frozen=True, eq=False)
class Runs:
    """The clean and the corrupted run of one prompt, and how an answer is read off a run's last states.

    subject: its tokens [first, stop). answer, foil: token ids. sigma: NaN where the noise was ready-made.
    """

    request: TraceRequest
    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: tuple[int, ...]
    foil: int | None
    sigma: float
    clean: Recording
    corrupted: Recording
    corruption: tuple[Point, Patch]

    def logits(self, lm: LanguageModel, run: Recording) -> Float[Tensor, "samples tail vocab"]:
        """Logits of a recorded run at the answer's positions."""
        return lm.logits(run.states[-1][:, -len(self.answer) :])

    def log_p_of_logits(self, logits: Float[Tensor, "*rows tail vocab"]) -> Float[Tensor, "*rows"]:
        """log p(answer), joint over its tokens."""
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


def noise_sigma(lm: LanguageModel, source: Literal["subjects", "vocabulary"]) -> float:
    """σ: standard deviation over all entries of embeddings, after the model's own embedding scaling."""
    embed = lm.module(lm.layout.embed)
    with torch.no_grad():
        if source == "vocabulary":
            return float(embed(torch.arange(embed.weight.shape[0], device=lm.device)).cpu().double().std())
        subjects = [fact.prompt.subject for fact in load_facts()]
        ids = [i for s in subjects for i in lm.tokenizer(s, add_special_tokens=False)["input_ids"]]
        return float(embed(torch.tensor(ids, device=lm.device)).cpu().double().std())


def draw_noise(
    lm: LanguageModel, config: TraceConfig, n_tokens: int
) -> tuple[Float[Tensor, "samples n d_model"], float]:
    """The seeded draw that all cells share, scaled, and σ. The generator is the one of the authors' code."""
    sigma = noise_sigma(lm, config.noise_from)
    draw = np.random.RandomState(config.seed).randn(config.samples, n_tokens, lm.d_model)
    return torch.from_numpy(draw * (config.noise_scale * sigma)).to(lm.device, lm.dtype), sigma


@torch.no_grad()
def prepare(
    lm: LanguageModel, request: TraceRequest, *, noise: Float[Tensor, "samples n d_model"] | None = None
) -> Runs:
    """Record the clean and the corrupted run.

    noise: a ready-made draw for the subject's n tokens, already scaled. Raises PromptError.
    """
    for kind in TRACED:
        lm.require(kind)
    prompt, config = request.prompt, request.config
    if fault := first_fault(config):
        raise PromptError(f"A trace cannot have this setting: {fault}")
    encoded = encode(lm.tokenizer, prompt)
    first, stop = encoded.subject
    if request.answer is None:
        top = next_logits(lm, batch_of(lm, [encoded.ids]), edits=request.edits)[0].argmax()
        answer: tuple[int, ...] = (int(top),)
    else:
        answer = target_ids(lm.tokenizer, prompt.text, request.answer)
    foil = _foil(lm, request, answer) if config.metric == "logit difference" else None
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
    ids = encoded.ids + answer[:-1]  # a longer answer is read with its own tokens in front
    clean = record(lm, batch_of(lm, [ids]), edits=request.edits)
    corruption = _corruption(encoded.subject, noise)
    corrupted = record(lm, batch_of(lm, [ids] * len(noise)), edits=request.edits, patches=[corruption])
    for run in (clean, corrupted):
        if not bool(run.states[-1].isfinite().all()):
            raise ModelError(
                f"'{lm.name}' computes numbers that are not finite on this prompt.",
                "Nothing can be traced in them.",
                "Switch edits off if any are on; else load the model again, or in another dtype.",
            )
    return Runs(request, encoded.labels, encoded.subject, answer, foil, sigma, clean, corrupted, corruption)


@torch.no_grad()
def corrupt_again(lm: LanguageModel, runs: Runs, noise_scale: float) -> Runs:
    """The same clean run beside one that the same draw corrupts at another level (in σ)."""
    config = replace(runs.request.config, noise_scale=noise_scale)
    first, stop = runs.subject
    noise, sigma = draw_noise(lm, config, stop - first)
    corruption = _corruption(runs.subject, noise)
    rows = batch_of(lm, runs.clean.batch.ids.tolist() * len(noise))
    corrupted = record(lm, rows, edits=runs.clean.edits, patches=[corruption])
    request = replace(runs.request, config=config)
    return replace(runs, request=request, sigma=sigma, corrupted=corrupted, corruption=corruption)


def _corruption(subject: tuple[int, int], noise: Float[Tensor, "samples n d_model"]) -> tuple[Point, Patch]:
    """Noise on the subject's embeddings."""

    def corrupt(state: Tensor) -> Tensor:
        state = state.clone()
        state[:, slice(*subject)] += noise.to(state)
        return state

    return Point("embed"), corrupt


def _foil(lm: LanguageModel, request: TraceRequest, answer: tuple[int, ...]) -> int:
    if not request.foil:
        raise PromptError("The logit difference needs a second answer.", "", "Write one, e.g. ' Paris'.")
    first = target_ids(lm.tokenizer, request.prompt.text, request.foil)[0]
    if first == answer[0]:
        raise PromptError(
            f"'{request.foil}' begins with the same token as the answer.", "", "Choose another second answer."
        )
    return first
