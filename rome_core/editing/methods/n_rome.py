"""n-ROME, this project's own: δ at both keys, and similar subjects and namesakes held (docs/editing.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit, PromptKeys
from rome_core.editing.method import KeyProducts
from rome_core.editing.methods.rome import RomePolicy, Terms
from rome_core.editing.second_moment import Moment
from rome_core.facts.datasets import load_facts
from rome_core.facts.namesakes import make_namesakes
from rome_core.model.language_model import Kept, LanguageModel
from rome_core.model.subjects import subject_keys
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.settings import setting

OTHERS = Kept[Tensor]("keys of all subjects in a template", limit=8)  # 4 MB each for the default model


@dataclass(frozen=True)
class NRome(RomePolicy):
    """Hyper-parameters of ROME, and the other subjects and namesakes whose keys an edit shall leave alone."""

    name: ClassVar[str] = "n-rome"
    offered_instead: ClassVar[bool] = True
    title: ClassVar[str] = (
        "N-ROME, this project's: δ is added at both keys, k_0 and k*; similar subjects and namesakes are held."
    )
    formula: ClassVar[str] = (
        r"\Delta = \delta\,\mathbf{1}^\top (K^\top C_T^{-1} K)^{-1} K^\top C_T^{-1},"
        r"\allowbreak\quad {K = [k_0\;k^*]},"
        r"\allowbreak\quad {C_T = C + \mu\,\mathbb{E}_s[k_s k_s^\top] + \nu\,\mathbb{E}_n[k_n k_n^\top]}"
    )
    objective: ClassVar[str] = (
        r"\min_{\Delta}\ \lVert\Delta\,C_T^{1/2}\rVert_F^2\quad\text{subject to}\quad"
        r"\Delta k^* = \delta,\ \Delta k_0 = \delta"
    )
    held: int = setting(
        150,
        "Other subjects",
        "The project's subjects are put into the prompt's template; so many of them, those whose keys are most like "
        "k*, are held.",
        source="measured: docs/editing.md",
        bounds=(1, 500, 1),
    )
    hold: float = setting(
        10.0,
        "Their weight μ",
        "How much the other subjects' keys count beside C.",
        source="measured: docs/editing.md",
        bounds=(0.0, 1000.0, 0.1),
    )
    namesakes: int = setting(
        40,
        "Namesakes",
        "So many made-up subjects that end in the same words are held, so that the edit is about the subject and not "
        "about its last word. A subject of one word has none.",
        source="measured: docs/editing.md",
        bounds=(0, 60, 1),
    )
    hold_namesakes: float = setting(
        0.1,
        "Their weight ν",
        "How much the namesakes' keys count beside C.",
        source="measured: docs/editing.md",
        bounds=(0.0, 1000.0, 0.1),
    )

    def key_terms(self, keys: PromptKeys, delta: Float[Tensor, " d_model"]) -> Terms:
        both = torch.stack([keys.k_0, keys.keys.mean(0)], 1)
        return Terms(both, both, delta, keys.values.mean(0))

    def metric(
        self, lm: LanguageModel, request: EditRequest, k_star: Float[Tensor, " d_mlp"], moment: Moment
    ) -> Moment:
        """C_T = C + μ E[k_s k_sᵀ] + ν E[k_n k_nᵀ]: over the keys k_s nearest to k* in direction, as C⁻¹ measures it,
        and over those of namesakes."""
        keys = other_keys(lm, request, moment.layer).cpu().double()
        solved = moment.solve(torch.cat([keys, k_star.cpu().double()[None]]).T, self.ridge)
        likeness = (keys @ solved[:, -1]).abs() / (keys * solved[:, :-1].T).sum(1).sqrt()
        nearest = keys[likeness.topk(min(self.held, len(keys))).indices]
        C = torch.addmm(moment.C.double(), nearest.T, nearest, alpha=self.hold / len(nearest))
        alike = make_namesakes(request.prompt, self.namesakes)
        if alike and self.hold_namesakes:
            keys = subject_keys(lm, alike, moment.layer).cpu().double()
            C.addmm_(keys.T, keys, alpha=self.hold_namesakes / len(keys))
        return replace(moment, C=C)

    def denominator(self, edit: Edit, products: KeyProducts) -> float:
        """What its update brings about at the bare key, whose inverse size it has: its keys are measured by C_T."""
        return float(edit.deltas[0].V[0].cpu().double() @ edit.k_0.cpu().double())

    def notes(self, edit: Edit, missed: Mapping[int, float | None]) -> list[str]:
        return [
            "C_T counts the keys of similar subjects and of namesakes beside C, and two keys are held at once, so by C "
            "alone this Δ is larger than the smallest that meets the constraint at k*. That is the price of sparing "
            "those subjects."
        ]


def other_keys(lm: LanguageModel, request: EditRequest, layer: int) -> Float[Tensor, "n d_mlp"]:
    """Keys of the other subjects of the project's facts in the request's own template, on the unedited model.

    Subjects whose facts share the request's true object are left out: they are what neighbourhood scores are measured
    on, and an edit that had seen them would flatter itself.
    """
    facts, template = load_facts(), request.prompt.template
    true = (request.target_true or "").strip()
    same = {fact.prompt.subject for fact in facts if fact.target_true.strip() == true} | {request.prompt.subject}
    subjects = sorted({fact.prompt.subject for fact in facts})
    keys = lm.remember(
        OTHERS,
        (template, layer),
        lambda: subject_keys(lm, [Prompt(template, subject) for subject in subjects], layer),
    )
    return keys[[i for i, subject in enumerate(subjects) if subject not in same]]
