"""What is known of an edit before it is applied, and what came of it once it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from rome_core.diagnosis.neighbourhood import Shift, other_prompts, shifts
from rome_core.diagnosis.verdict import Diagnosis, diagnose, forecast
from rome_core.editing.edit import Edit
from rome_core.editing.methods import DEFAULT_METHOD, MethodConfig, solve
from rome_core.editing.second_moment import Moment
from rome_core.editing.shared_search import policies
from rome_core.evaluation.answers import Change, ask_before_and_after
from rome_core.evaluation.before_after import Continuation, choose_questions, continuations, generation_texts
from rome_core.evaluation.perplexity import perplexity
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent

OTHERS = 80  # prompts that are asked before and after
SEED = 0  # of the choice of other prompts


Moments = Mapping[int, Moment] | None


@dataclass(frozen=True, eq=False)
class Foresight:
    """An edit that is not applied yet, with its diagnosis and that of every other policy with the same δ.

    moments: the C that judged it, by layer; None: the kept ones.
    """

    edit: Edit
    below: tuple[Edit, ...]
    moments: Moments
    diagnosis: Diagnosis
    policies: dict[str, Diagnosis]

    @property
    def safest(self) -> str | None:
        """The policy to offer instead: the default one if it is safe here, else another one that is."""
        others = [name for name, method in policies().items() if method.offered_instead]
        order = dict.fromkeys([DEFAULT_METHOD, *reversed(others)])
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
    lm: LanguageModel,
    request: EditRequest,
    config: MethodConfig,
    below: tuple[Edit, ...],
    moments: Moments = None,
    track: Track = silent,
) -> Foresight:
    """Solve an edit without applying it, and diagnose it by the same C."""
    return examine(lm, solve(lm, [request], config, moments=moments, edits=below, track=track), below, moments)


def examine(lm: LanguageModel, edit: Edit, below: tuple[Edit, ...], moments: Moments = None) -> Foresight:
    """Diagnose a solved edit, and its δ under every other policy."""
    return Foresight(edit, below, moments, diagnose(lm, edit, moments), forecast(lm, edit, moments))


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
