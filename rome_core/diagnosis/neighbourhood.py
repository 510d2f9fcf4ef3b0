"""What else an edit moves: the next token of many other prompts, against how strongly the update answers their keys."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.facts.datasets import load_facts
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import kl_divergence
from rome_core.model.subjects import subject_keys
from rome_core.model.tokens import EditRequest, Prompt, text_ids
from rome_core.progress import Track, silent

BATCH = 32


@dataclass(frozen=True)
class Shift:
    """One prompt before and after an edit.

    kl: KL(before ‖ after) of the next token, nats. response: ‖Δk‖/‖Wk‖ at the subject's last token, in the module that
    the edit changes first. top: the likeliest next token before and after.
    """

    prompt: str
    kind: str
    kl: float
    response: float
    top: tuple[str, str]

    @property
    def changed(self) -> bool:
        return self.top[0] != self.top[1]


def other_prompts(request: EditRequest, n: int = 80, seed: int = 0) -> list[tuple[str, Prompt]]:
    """Prompts of the project's facts that are not about the request's subject, nearest kind first: "same words" with
    other subjects, then other "same answer" facts, then "unrelated" ones; at most n, about a third of each."""
    facts = [fact for fact in load_facts() if request.prompt.subject not in fact.prompt.text]
    random.Random(seed).shuffle(facts)
    true = (request.target_true or "").strip()
    answering = [fact for fact in facts if true and fact.target_true == true]
    relations = {fact.relation for fact in facts if fact.prompt.template == request.prompt.template}
    relations |= {fact.relation for fact in answering}
    same = [fact for fact in facts if fact.relation in relations]
    far = [fact for fact in facts if fact.relation not in relations]
    words = [("same words", Prompt(request.prompt.template, f.prompt.subject)) for f in (same or far)[: n // 3]]
    answer = [("same answer", fact.prompt) for fact in answering][: n // 3]
    rest = [("unrelated", f.prompt) for f in far][: n - len(words) - len(answer)]
    return list({prompt.text: (kind, prompt) for kind, prompt in [*rest, *answer, *words]}.values())[::-1]


def shifts(
    lm: LanguageModel,
    edit: Edit,
    prompts: Sequence[tuple[str, Prompt]],
    below: Sequence[Edit] = (),
    track: Track = silent,
) -> list[Shift]:
    """How each (kind, prompt) moves when the edit joins those below it, most moved first."""
    found: list[Shift] = []
    starts = range(0, len(prompts), BATCH)
    for at in track(starts, "Asking other prompts", len(starts)):
        some = prompts[at : at + BATCH]
        rows = batch_of(lm, [text_ids(lm.tokenizer, prompt.text) for _, prompt in some])
        before, after = (next_logits(lm, rows, edits=edits) for edits in (below, [*below, edit]))
        kl = kl_divergence(*(logits.cpu().double().log_softmax(-1) for logits in (before, after))).tolist()
        answers = responses(lm, edit, [prompt for _, prompt in some], below).tolist()
        tops = [
            [str(lm.tokenizer.decode([token])) for token in logits.argmax(-1).tolist()] for logits in (before, after)
        ]
        found += [
            Shift(prompt.text, kind, kl[i], answers[i], (tops[0][i], tops[1][i]))
            for i, (kind, prompt) in enumerate(some)
        ]
    return sorted(found, key=lambda shift: -shift.kl if shift.kl == shift.kl else -float("inf"))


def responses(
    lm: LanguageModel, edit: Edit, prompts: Sequence[Prompt], below: Sequence[Edit] = ()
) -> Float[Tensor, " n"]:
    """‖Δk‖/‖Wk‖ at the subjects' last tokens, in the module of the edit's first update."""
    delta = edit.deltas[0]
    layer = next(layer for layer in range(lm.n_layers) if lm.down_projection(layer) == delta.module)
    keys = subject_keys(lm, prompts, layer, edits=below).cpu().double()
    W = lm.matrix(delta.module).detach().cpu().double()
    return delta(keys).norm(dim=1) / (keys @ W.T).norm(dim=1)
