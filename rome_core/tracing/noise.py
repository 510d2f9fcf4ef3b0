"""Noise study: how much of the answer survives how much noise, so that the level can be chosen and not guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.tracing.runs import Runs, corrupt_again

SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


@dataclass(frozen=True)
class NoiseLevel:
    """p(answer) of the corrupted run at one noise level (in σ): mean, standard deviation and range over the draws."""

    scale: float
    p: float
    spread: float
    low: float
    high: float


@torch.no_grad()
def noise_study(
    lm: LanguageModel, runs: Runs, *, scales: Sequence[float] = SCALES, track: Track = silent
) -> Iterator[NoiseLevel]:
    """One level after the other. All use the same seeded draw, so that the levels differ by their size alone."""
    for scale in track(scales, "Noise levels", len(scales)):
        p = runs.log_p_of_logits(runs.logits(lm, corrupt_again(lm, runs, scale).corrupted)).exp()
        yield NoiseLevel(scale, float(p.mean()), float(p.std(correction=0)), float(p.min()), float(p.max()))
