"""The clean and the corrupted run of a prompt: steps 1 and 2 of causal tracing (Meng et al. 2022, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import PromptError
from rome_core.facts.datasets import load_facts
from rome_core.model.edits import Update
from rome_core.model.hooks import Patch, Point, batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Recording, record
from rome_core.model.tokens import Prompt, encode, target_ids
from rome_core.settings import setting

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
class Runs:
    """The clean and the corrupted run of one prompt, and how an answer is read off a run's last states.

    asked: the answer as it was given; None if it is the clean run's most probable next token.
    """

    labels: tuple[str, ...]
    subject: tuple[int, int]
    answer: tuple[int, ...]
    asked: str | None
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


def noise_sigma(lm: LanguageModel, source: Literal["subjects", "vocabulary"]) -> float:
    """σ: standard deviation over all entries of embeddings, after the model's own embedding scaling."""
    embed = lm.module(lm.layout.embed)
    with torch.no_grad():
        if source == "vocabulary":
            return float(embed(torch.arange(embed.weight.shape[0], device=lm.device)).double().std())
        subjects = [fact.prompt.subject for fact in load_facts()]
        ids = [i for s in subjects for i in lm.tokenizer(s, add_special_tokens=False)["input_ids"]]
        return float(embed(torch.tensor(ids, device=lm.device)).double().std())


def draw_noise(
    lm: LanguageModel, config: TraceConfig, n_tokens: int
) -> tuple[Float[Tensor, "samples n d_model"], float]:
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
    edits: Sequence[Update] = (),
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
    return Runs(encoded.labels, encoded.subject, answer_ids, answer, foil_id, sigma, clean, corrupted, corruption)


def _foil(lm: LanguageModel, prompt: Prompt, foil: str | None, answer_ids: tuple[int, ...]) -> int:
    if not foil:
        raise PromptError("The logit difference needs a second answer.", "", "Write one, e.g. ' Paris'.")
    first = target_ids(lm.tokenizer, prompt.text, foil)[0]
    if first == answer_ids[0]:
        raise PromptError(f"'{foil}' begins with the same token as the answer.", "", "Choose another second answer.")
    return first
