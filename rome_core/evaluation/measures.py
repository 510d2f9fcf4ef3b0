"""The table of measures: what each score is called, in which unit it is printed, which way is good, who defined it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROME = "Meng et al. 2022, arXiv 2202.05262"
ZSRE_SOURCE = "token accuracies of zsRE as Meng et al. 2022 report them, arXiv 2202.05262"
DRIFT = "Hoelscher-Obermaier et al. 2023, arXiv 2305.17553"
MIRAGE = "Yang et al. 2025, The Mirage of Model Editing"


@dataclass(frozen=True)
class Measure:
    """One score of an edit.

    unit: of a printed number, which is the value times `factor`, with so many decimals.
    better: the good direction; None where neither is good by itself.
    mean: how facts are averaged: "geometric" is as mean NLL, so that one broken model does not stand for all;
    "harmonic": not of facts at all, but of the averages of `parts`.
    scale: "log" where values differ by orders of magnitude.
    """

    name: str
    label: str
    unit: str = "× 100"
    factor: float = 100.0
    decimals: int = 1
    better: Literal["higher", "lower"] | None = "higher"
    source: str = ""
    mean: Literal["arithmetic", "geometric", "harmonic"] = "arithmetic"
    parts: tuple[str, ...] = ()
    scale: Literal["linear", "log"] = "linear"

    @property
    def title(self) -> str:
        """As an axis has it: the name with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def print(self, value: float) -> str:
        """A number as tables have it."""
        printed = self.factor * value
        return f"{printed:.{self.decimals}f}" if self.factor != 1 or value < 1e5 else f"{value:.1e}"


def _plain(name: str, label: str, decimals: int, unit: str = "", **more: object) -> Measure:
    """Printed as it is; its values differ by orders of magnitude, and less is better."""
    return Measure(name, label, unit, 1.0, decimals, "lower", scale="log", **more)  # type: ignore[arg-type]


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("S", "harmonic mean of ES, PS, NS", source=ROME, mean="harmonic", parts=("ES", "PS", "NS")),
        Measure("ES", "edit prompts with p(new) > p(true)", source=ROME),
        Measure("EM", "mean p(new) − p(true) on edit prompts", source=ROME),
        Measure("PS", "paraphrases with p(new) > p(true)", source=ROME),
        Measure("PM", "mean p(new) − p(true) on paraphrases", source=ROME),
        Measure("NS", "neighbours with p(true) > p(new)", source=ROME),
        Measure("NM", "mean p(true) − p(new) on neighbours", source=ROME),
        Measure("GE", "entropy of bi- and trigrams of sampled texts, bits", source=ROME),
        Measure("RS", "TF-IDF cosine with texts about the new object", source=ROME),
        _plain("NKL", "NKL, nats", 3, "nats", source=DRIFT),
        _plain("perplexity", "perplexity on general text", 1, mean="geometric"),
        Measure("NS+", "NS behind the edit's sentence", source=DRIFT),
        Measure("NM+", "NM behind the edit's sentence", source=DRIFT),
        Measure("exact match", "greedy decoding writes the new object", source=MIRAGE),
        Measure(
            "S (zsRE)",
            "harmonic mean of efficacy, paraphrase, specificity",
            source=ZSRE_SOURCE,
            mean="harmonic",
            parts=("efficacy", "paraphrase", "specificity"),
        ),
        Measure("efficacy", "token accuracy of the new object", source=ZSRE_SOURCE),
        Measure("paraphrase", "token accuracy of the new object on paraphrases", source=ZSRE_SOURCE),
        Measure("specificity", "token accuracy of the right answers of unrelated questions", source=ZSRE_SOURCE),
        Measure("exact match, paraphrase", "greedy decoding writes the new object on paraphrases", source=MIRAGE),
        Measure("p(new)", "p(new) on the edited prompt"),
        Measure("p(new), paraphrases", "mean p(new) on paraphrases"),
        Measure("p(new), neighbours", "mean p(new) on neighbours", better=None),
        _plain("‖Δ‖/‖W‖", "‖Δ‖ / ‖W‖", 3),
        _plain("seconds", "seconds", 1),
    )
}
# The papers' columns in their order, then what this project adds.
COUNTERFACT = ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS", "NKL", "perplexity", "NS+", "NM+", "exact match")
ZSRE = (
    *("S (zsRE)", "efficacy", "paraphrase", "specificity", "exact match", "exact match, paraphrase"),
    *("NKL", "perplexity"),
)
