"""What is known of an edit before it is applied, and what came of it: data, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pages.shared import verdicts
from pages.shared.text import number, show_token
from pages.shared.verdicts import large
from rome_core import DEFAULT_METHOD, EditRequest, LanguageModel, diagnose, solve
from rome_core.diagnosis.neighbourhood import Shift, other_prompts, shifts
from rome_core.diagnosis.verdict import Diagnosis, forecast
from rome_core.editing.edit import Edit
from rome_core.evaluation import perplexity
from rome_core.evaluation.answers import Change, ask_before_and_after
from rome_core.evaluation.before_after import Continuation, choose_questions, continuations, generation_texts
from rome_core.progress import Track, silent

SAFER = ("n-rome", "h-rome", "r-rome")  # p-rome moves the key that every text's first token shares
OTHERS = 80  # prompts that are asked before and after
SEED = 0  # of the choice of other prompts
SHOWN_SHIFTS = 20


@dataclass(frozen=True, eq=False)
class Foresight:
    """An edit that is not applied yet, with its diagnosis and that of every other policy with the same δ."""

    edit: Edit
    below: tuple[Edit, ...]
    diagnosis: Diagnosis
    policies: dict[str, Diagnosis]

    @property
    def safest(self) -> str | None:
        """The policy to offer instead: the default one if it is safe here, else another one that is."""
        order = dict.fromkeys([DEFAULT_METHOD, *SAFER])
        safe = [name for name in order if name in self.policies and self.policies[name].verdict == "safe"]
        return next((name for name in safe if name != self.edit.method), None)


@dataclass(frozen=True)
class Aftermath:
    """What an edit did once it was applied, next to the model without it."""

    name: str
    target: str
    verdict: str  # what the forecast was
    perplexity: tuple[float, float]
    changes: tuple[Change, ...]
    continuations: tuple[Continuation, ...]
    shifts: tuple[Shift, ...]  # of other prompts, most moved first
    seed: int  # of their choice

    @property
    def near(self) -> list[Shift]:
        """Prompts in the same words, or with the same answer; all of them where there are none."""
        return [shift for shift in self.shifts if shift.kind != "unrelated"] or list(self.shifts)

    @property
    def neighbour_kl(self) -> float:
        """Mean KL(before ‖ after) of the next token on the near prompts, nats."""
        return fmean(shift.kl for shift in self.near) if self.near else float("nan")


def foresee(
    lm: LanguageModel, request: EditRequest, config: Any, below: tuple[Edit, ...], track: Track = silent
) -> Foresight:
    """Solve an edit without applying it, and diagnose it."""
    return examine(lm, solve(lm, [request], config, edits=below, track=track), below)


def examine(lm: LanguageModel, edit: Edit, below: tuple[Edit, ...]) -> Foresight:
    """Diagnose a solved edit, and its δ under every other policy."""
    return Foresight(edit, below, diagnose(lm, edit), forecast(lm, edit))


def try_out(
    lm: LanguageModel, edit: Edit, below: tuple[Edit, ...], diagnosis: Diagnosis, track: Track = silent
) -> Aftermath:
    """Perplexity on general text, the answers and a text, without and with the edit."""
    request = edit.requests[0]
    without, with_it = (
        perplexity(lm, edits=edits) for edits in track((below, (*below, edit)), "Measuring perplexity", 2)
    )
    return Aftermath(
        f"{request.prompt.subject} → {request.target_new.strip()}, {edit.method}",
        request.target_new.strip(),
        diagnosis.verdict,
        (without, with_it),
        ask_before_and_after(lm, choose_questions(request, 1), [edit], below, track),
        continuations(lm, edit, below, generation_texts(request)[:1], track=track),
        tuple(shifts(lm, edit, other_prompts(request, OTHERS, SEED), below, track)),
        SEED,
    )


Row = tuple[str, str, str, str]


def quantities(diagnosis: Diagnosis, edit: Edit) -> list[Row]:
    """Every number that the verdict rests on: its symbol, its value, its place among ordinary facts, its meaning."""
    d = diagnosis
    position = "yes" if d.subject_first else "no"
    places = {
        "k₀ᵀC⁻¹k*": "k0_kstar",
        "k*ᵀC⁻¹k*": "kstar_kstar",
        "k₀ᵀC⁻¹k₀": "k0_k0",
        "cos(k₀, k*)": "cosine",
        "cos(k₀, k*), whitened": "cosine_whitened",
    }
    rows = [
        (
            "denominator",
            f"{large(d.denominator)}",
            f"what {edit.method} divides by; small or negative means a huge update",
        ),
        ("k₀ᵀC⁻¹k*", f"{large(d.k0_kstar)}", "how alike the bare prompt's key and the mean key are, as C sees it"),
        ("k*ᵀC⁻¹k*", f"{large(d.kstar_kstar)}", "the size of the mean key, as C sees it"),
        ("k₀ᵀC⁻¹k₀", f"{large(d.k0_k0)}", "the size of the bare prompt's key, as C sees it"),
        ("cos(k₀, k*)", f"{d.cosine:.3f}", "1: the prefixes do not change the key; near 0: they are strangers"),
        (
            "cos(k₀, k*), whitened",
            f"{d.cosine_whitened:.3f}",
            "the same after C^(−1/2), the geometry that the update uses",
        ),
        ("subject at position 0", position, "the first token's key is an attention sink's, unlike every other"),
        ("‖δ‖ / ‖v₀‖", f"{number(d.value_ratio)}", "how far the value has to move, relative to what it was"),
        (
            "‖Δ‖ / ‖W‖",
            f"{number(d.relative_F)}",
            f"how far the weights move in all in the Frobenius norm (‖Δ‖ = {number(d.norm_F)})",
        ),
        ("‖Δ‖₂ / ‖W‖₂", f"{number(d.relative_2)}", "how far they move in the worst direction (spectral norm)"),
        ("‖ΔC^½‖ / ‖WC^½‖", f"{number(d.relative_C)}", "how far the layer's output moves on general text"),
        ("‖Δk‖ / ‖Wk‖, first tokens", f"{number(d.relative_start)}", "the same at the first token of every text"),
    ]
    return [(name, value, place(d, places[name]) if name in places else "", meaning) for name, value, meaning in rows]


def place(diagnosis: Diagnosis, quantity: str) -> str:
    """The share of ordinary facts whose quantity is smaller."""
    share = diagnosis.reference.below(quantity, getattr(diagnosis, quantity))
    return "" if share != share else f"{share:.0%}"


def shift_rows(shifts: Sequence[Shift]) -> list[dict[str, str]]:
    """The prompts that moved most, with what the model says there."""
    return [
        {
            "prompt": shift.prompt,
            "kind": shift.kind,
            "KL, nats": number(shift.kl),
            "‖Δk‖/‖Wk‖": number(shift.response),
            "answer before → after": " → ".join(map(show_token, shift.top)),
        }
        for shift in shifts[:SHOWN_SHIFTS]
    ]


def policy_rows(foresight: Foresight) -> list[dict[str, str]]:
    """A row for each policy: what it divides by, how far it would move the weights, what to expect."""
    return [
        {
            "policy": name + (" (this edit)" if name == foresight.edit.method else ""),
            "denominator": f"{large(d.denominator)}",
            "‖Δ‖ / ‖W‖": f"{number(d.relative_F)}",
            "verdict": verdicts.label(d.verdict),
        }
        for name, d in foresight.policies.items()
    ]


def damage(perplexities: Sequence[float]) -> tuple[str, str]:
    """What perplexity before and after says: a word, and by how much."""
    before, after = perplexities
    ratio = after / before
    if not ratio <= 2:  # nan counts as broken
        return "■ broken", f"perplexity {large(ratio)} times as high"
    word = "▲ hurt" if ratio > 1.1 else "● unharmed"
    return word, f"perplexity {ratio - 1:+.1%}".replace("-", "−")
