"""An edit as data: its update, the keys and values that it associates, and everything it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.second_moment import Moment
from rome_core.errors import EditError
from rome_core.model.edits import Delta, Update, factors
from rome_core.model.language_model import LanguageModel, Source
from rome_core.model.tokens import EditRequest

if TYPE_CHECKING:
    from rome_core.editing.method import MethodConfig

KeyRows = Float[Tensor, "*n d_mlp"]
ValueRows = Float[Tensor, "*n d_model"]


@dataclass(frozen=True)
class Step:
    """One evaluation of the loss while v* is optimised. Losses in nats; norms in units of the value space.

    Methods that train the weights themselves put ‖Δ‖_F for ‖δ‖, and an infinite limit where nothing bounds it.
    """

    index: int
    loss: float
    nll: float
    kl: float
    decay: float
    p_target: float  # mean over the prompts of the geometric-mean probability of the target's tokens
    delta_norm: float  # ‖δ‖
    limit: float  # the clamp, clamp·‖v_0‖
    rank: int  # place of the target's first token among all tokens after the bare prompt, 1 = the model's answer


@dataclass(frozen=True, eq=False)
class PromptKeys:
    """Keys and MLP outputs at the subject's last token: of every prefixed prompt, and of the bare one (k_0, v_0).

    Values are W k, without the bias that some families add.
    """

    keys: Float[Tensor, "n d_mlp"]
    values: Float[Tensor, "n d_model"]
    k_0: Float[Tensor, " d_mlp"]
    v_0: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class Keys:
    """What an edit associates, at the subject's last token; one row a request in batches.

    k_star, v_star: the key and the value that the update associates. k_0, v_0: key and MLP output (of methods that
    spread over layers: block output) of the bare prompt, before the edit.
    delta, prompts: δ and the prefixed prompts' keys, kept by methods of one key, so that others can use the search.
    by_layer: the keys of each layer's update, as columns, kept by methods for many facts.
    """

    k_star: KeyRows
    v_star: ValueRows
    k_0: KeyRows
    v_0: ValueRows
    delta: Float[Tensor, " d_model"] | None = None
    prompts: PromptKeys | None = None
    by_layer: Mapping[int, Float[Tensor, "d_mlp n"]] = field(default_factory=dict)

    def of_request(self, place: int) -> Keys:
        """One request's rows of a batch."""
        rows = slice(place, place + 1)
        return replace(self, k_star=self.k_star[rows], v_star=self.v_star[rows], k_0=self.k_0[rows], v_0=self.v_0[rows])


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit(Update):
    """A solved edit. It does nothing until it is passed to a call: `generate(lm, text, edits=[edit])`.

    keys: None of methods that know no keys. on: ids of the edits that were active when it was solved. corpus: what C
    was made from, or the hypernetwork was trained on. moment_keys: `Moment.key` of the C it was solved with, by layer.
    source: where its model can be loaded from on this machine; it is not saved with the edit.
    """

    requests: tuple[EditRequest, ...]
    config: MethodConfig
    keys: Keys | None = None
    history: tuple[Step, ...] = ()
    on: tuple[str, ...] = ()
    corpus: str = ""
    moment_keys: Mapping[int, str] = field(default_factory=dict)
    source: Source | None = None

    @property
    def method(self) -> str:
        return self.config.name

    @property
    def known_keys(self) -> Keys:
        """Its keys. Raises EditError if the method knows none."""
        if self.keys is None:
            raise EditError(f"Edits by '{self.method}' have no key and value.", "", "Choose an edit by another method.")
        return self.keys

    @property
    def k_star(self) -> KeyRows:
        return self.known_keys.k_star

    @property
    def v_star(self) -> ValueRows:
        return self.known_keys.v_star

    @property
    def k_0(self) -> KeyRows:
        return self.known_keys.k_0

    @property
    def v_0(self) -> ValueRows:
        return self.known_keys.v_0

    def of_request(self, place: int) -> Edit:
        """An edit of many facts as one of them sees it: that fact's key and value, everybody's update."""
        keys = self.keys.of_request(place) if self.keys else None
        return replace(self, requests=self.requests[place : place + 1], keys=keys)


def merge_edits(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The same model from few overlays: one edit a method, one delta a module. A forward pass under a hundred
    rank-one overlays takes a multiple of the time.

    Requests, keys and what a later edit of the method needs of the earlier ones (`by_layer`, side by side) are kept;
    the searches are not. `on` names the edits that were merged.
    """
    if len({edit.base for edit in edits}) > 1:
        raise EditError("Edits of different models cannot be merged.", "", "Merge those of one model.")
    groups: dict[str, list[Edit]] = {}
    for edit in edits:
        groups.setdefault(edit.method, []).append(edit)
    return tuple(_merge(group) if len(group) > 1 else group[0] for group in groups.values())


def _merge(edits: Sequence[Edit]) -> Edit:
    return replace(
        edits[-1],
        requests=tuple(request for edit in edits for request in edit.requests),
        deltas=tuple(factors(edits).values()),
        keys=_side_by_side([edit.keys for edit in edits if edit.keys is not None]),
        history=(),
        on=tuple(edit.id for edit in edits),
    )


def _side_by_side(keys: Sequence[Keys]) -> Keys | None:
    if not keys:
        return None
    k_star, v_star, k_0, v_0 = (
        torch.cat([torch.atleast_2d(getattr(own, name)) for own in keys]) for name in ("k_star", "v_star", "k_0", "v_0")
    )
    layers = dict.fromkeys(layer for own in keys for layer in own.by_layer)
    by_layer = {layer: torch.cat([own.by_layer[layer] for own in keys if layer in own.by_layer], 1) for layer in layers}
    return Keys(k_star, v_star, k_0, v_0, by_layer=by_layer)


def make_edit(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: MethodConfig,
    deltas: tuple[Delta, ...],
    edits: Sequence[Update],
    *,
    keys: Keys | None = None,
    history: Sequence[Step] = (),
    corpus: str = "",
    moments: Sequence[Moment] = (),
) -> Edit:
    """An edit of this model, solved on top of `edits`. moments: the C that it was solved with, the last one's source
    said. Raises EditError where an update is not finite in the model's precision."""
    for delta in deltas:
        if not delta.fits(lm.dtype):
            raise EditError(
                f"The update of '{delta.module}' is not finite in {str(lm.dtype).removeprefix('torch.')}.",
                "A loss or a key was not finite, or the numbers are too large for this precision.",
                "Choose another layer or a smaller clamp, or load the model in float32.",
            )
    return Edit(
        requests=tuple(requests),
        config=config,
        deltas=deltas,
        keys=keys,
        history=tuple(history),
        base=lm.fingerprint,
        on=tuple(edit.id for edit in edits),
        corpus=moments[-1].source if moments else corpus,
        moment_keys={moment.layer: moment.key for moment in moments},
        source=lm.source,
    )
