"""What the model knows before anything is edited."""

from __future__ import annotations

from collections.abc import Sequence

from rome_core.editing.edit import Edit
from rome_core.facts.datasets import Fact
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import score
from rome_core.model.tokens import as_target


def known_facts(lm: LanguageModel, facts: Sequence[Fact], *, edits: Sequence[Edit] = ()) -> list[bool]:
    """For each fact, whether every token of its true object is the model's first choice after the edit prompt."""
    pairs = [(fact.prompt.text, as_target(fact.target_true)) for fact in facts]
    return [all(scored.hits) for scored in score(lm, pairs, edits=edits)]
