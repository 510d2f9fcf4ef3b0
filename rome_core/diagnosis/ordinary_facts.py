"""What an edit is compared with: the keys of ordinary facts, and the quantities that updates divide by for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.second_moment import Moment
from rome_core.facts.datasets import load_facts
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.language_model import Kept, LanguageModel
from rome_core.model.tokens import encode

REFERENCE_FACTS = 40
PREFIXES = 5


@dataclass(frozen=True, eq=False)
class OrdinaryKeys:
    """Keys of facts of the project's set whose subjects are not the first token: bare, mean over the prefixes, and
    those of the first token of every text."""

    k_0: Float[Tensor, "n d_mlp"]
    k_star: Float[Tensor, "n d_mlp"]
    start: Float[Tensor, "m d_mlp"]


@dataclass(frozen=True)
class Reference:
    """The quantities of a diagnosis for ordinary facts at one layer, a number a fact."""

    k0_k0: tuple[float, ...] = ()
    k0_kstar: tuple[float, ...] = ()
    kstar_kstar: tuple[float, ...] = ()
    cosine: tuple[float, ...] = ()
    cosine_whitened: tuple[float, ...] = ()

    def below(self, quantity: str, value: float) -> float:
        """Share of ordinary facts whose quantity is smaller than this value; nan without any."""
        values = getattr(self, quantity)
        return sum(other < value for other in values) / len(values) if values else float("nan")


REFERENCES = Kept[Reference]("ordinary facts", limit=32)
ORDINARY_KEYS = Kept[OrdinaryKeys]("keys of ordinary facts", limit=8)


def reference(lm: LanguageModel, moment: Moment, ridge: float, prefixes: tuple[str, ...]) -> Reference:
    """The quantities of ordinary facts under a C."""

    def measure() -> Reference:
        ordinary = ordinary_keys(lm, moment.layer, prefixes)
        k_0, k_star = ordinary.k_0, ordinary.k_star
        bare, mean = moment.solve(k_0.T, ridge).T, moment.solve(k_star.T, ridge).T
        k0_k0, k0_kstar, kstar_kstar = (a.mul(b).sum(1) for a, b in ((k_0, bare), (k_0, mean), (k_star, mean)))
        cosine, whitened = torch.cosine_similarity(k_0, k_star), k0_kstar / (k0_k0 * kstar_kstar).sqrt()
        return Reference(*(tuple(values.tolist()) for values in (k0_k0, k0_kstar, kstar_kstar, cosine, whitened)))

    return lm.remember(REFERENCES, (moment.key, ridge, prefixes), measure)


def ordinary_keys(lm: LanguageModel, layer: int, prefixes: tuple[str, ...]) -> OrdinaryKeys:
    """Keys of ordinary facts behind the first five of the prefixes."""
    prefixes = tuple(prefix for prefix in prefixes if prefix)[:PREFIXES]
    return lm.remember(ORDINARY_KEYS, (layer, prefixes), lambda: _keys(lm, layer, prefixes))


def _keys(lm: LanguageModel, layer: int, prefixes: tuple[str, ...]) -> OrdinaryKeys:
    """One pass up to the layer gives both: the subjects' last tokens, where the rows end, and the rows' first ones."""
    prompts = [fact.prompt for fact in load_facts() if fact.prompt.span[0] > 0]
    chosen = prompts[:: max(1, len(prompts) // REFERENCE_FACTS)][:REFERENCE_FACTS]
    rows = [encode(lm.tokenizer, prompt.behind(prefix)) for prompt in chosen for prefix in ("", *prefixes)]
    batch = batch_of(lm, [row.ids[: row.subject[1]] for row in rows])
    point = Point("mlp_key", layer)
    keys = activations(lm, batch, [point])[point].cpu().double()
    ends = keys[torch.arange(len(rows)), batch.last.cpu()].unflatten(0, (len(chosen), -1))
    return OrdinaryKeys(ends[:, 0], ends.mean(1), keys[:, 0].clone())  # a view would keep all tokens
