"""The only code that registers hooks or takes the model's lock. Everything that runs the model goes through here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rome_core.errors import ModelError, PromptError
from rome_core.model.edits import Update, check_base
from rome_core.model.language_model import LanguageModel

Site = Literal["embed", "resid_post", "attn_out", "mlp_in", "mlp_out", "mlp_key"]


@dataclass(frozen=True)
class Point:
    """A place in the network: the token embeddings (after the model's own scaling), a block's output, the attention's
    or the MLP's output, the MLP's input (behind its norm), or the key (the down projection's input)."""

    site: Site
    layer: int = 0


Patch = Callable[[Tensor], Tensor]  # state [batch pos d] -> the state that takes its place
Overlay = tuple[str, Callable[[Tensor], Tensor]]  # a linear module's path, and input -> what is added to its output


@dataclass(frozen=True, eq=False)
class Batch:
    """Token sequences in one rectangle. mask is False on padding; `column[r]` is where row r begins."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    column: tuple[int, ...]

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Each token's own position in its text, so that padding changes nothing."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Column of each row's last token."""
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.mask * columns).amax(1)


def batch_of(lm: LanguageModel, rows: Sequence[Sequence[int]], align: Sequence[int] | None = None) -> Batch:
    """Pad token sequences; with `align`, so that token align[r] of each row r stands in one common column."""
    if not rows or not all(rows):
        raise PromptError("The text is empty.", "", "Write the beginning of a sentence.")
    if (longest := max(map(len, rows))) > lm.max_positions:
        raise PromptError(
            f"The text has {longest:,} tokens; '{lm.name}' can read {lm.max_positions:,}.", "", "Shorten the text."
        )
    embeddings = lm.module(lm.layout.embed).weight.shape[0]
    if (highest := max(map(max, rows))) >= embeddings:
        raise PromptError(
            f"'{lm.tokenizer.decode([highest])}' is a token that '{lm.name}' has no embedding for.",
            "",
            "Write the text without it.",
        )
    starts = [max(align) - at for at in align] if align else [0] * len(rows)
    width = max(start + len(row) for start, row in zip(starts, rows, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for r, (start, row) in enumerate(zip(starts, rows, strict=True)):
        ids[r, start : start + len(row)] = torch.tensor(row)
        mask[r, start : start + len(row)] = True
    return Batch(ids.to(lm.device), mask.to(lm.device), tuple(starts))


@contextmanager
def hooked(
    lm: LanguageModel,
    edits: Sequence[Update] = (),
    patches: Sequence[tuple[Point, Patch]] = (),
    keep: Callable[[Point, Tensor], None] | None = None,
    points: Collection[Point] = (),
    calls: Callable[[int, dict[str, Any]], dict[str, Any]] | None = None,
    overlays: Sequence[Overlay] = (),
) -> Iterator[None]:
    """Hold the model for one pass: edits are added first, then patches replace states, then states are handed out.

    overlays: updates that are no edit yet, such as one that is being optimised; added like edits, after them.
    calls: sees the arguments by name that each block is called with, and returns those it shall be called with.
    """
    with lm.lock:
        handles = []
        try:
            check_base(lm, edits)
            rows = list[int]()
            if lm.layout.flat:  # the MLP's states do not say how many rows they are of: their block's do
                for block in lm.blocks:
                    handles.append(block.register_forward_pre_hook(_note_rows(rows), with_kwargs=True))
            all_overlays: list[Overlay] = [(delta.module, delta) for edit in edits for delta in edit.deltas]
            for module, add in [*all_overlays, *overlays]:
                handles.append(lm.module(module).register_forward_hook(_overlay(add)))
            for point, patch in patches:
                handles.append(_attach(lm, point, patch, rows))
            for point in points:
                assert keep is not None
                handles.append(_attach(lm, point, partial(_hand_out, keep, point), rows))
            if calls is not None:
                for layer, block in enumerate(lm.blocks):
                    handles.append(block.register_forward_pre_hook(_rewrite(layer, calls), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _overlay(delta: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda module, args, output: output + delta(args[0])


def _rewrite(layer: int, calls: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        signature = inspect.signature(block.forward)
        bound = signature.bind(*args, **kwargs).arguments
        extra = next((name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), "")
        return (), calls(layer, {**bound.pop(extra, {}), **bound})

    return before


def _hand_out(keep: Callable[[Point, Tensor], None], point: Point, state: Tensor) -> Tensor | None:
    """Keep a state; some blocks add to a module's output in place, so they are given a copy."""
    keep(point, state)
    return state.clone() if point.site in ("attn_out", "mlp_out") else None


def _note_rows(rows: list[int]) -> Callable[..., None]:
    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        rows[:] = [len(states)]

    return before


def _attach(lm: LanguageModel, point: Point, change: Callable[[Tensor], Tensor | None], rows: list[int]) -> Any:
    """Hook one point. Blocks return a tensor or a tuple that begins with it, by family. rows: of the block that runs,
    where its MLP is given flat states."""

    def changed(state: Tensor) -> Tensor | None:
        if not (rows and state.dim() == 2 and point.site in ("mlp_key", "mlp_in", "mlp_out")):
            return change(state)
        found = change(state.unflatten(0, (rows[0], -1)))
        return None if found is None else found.flatten(0, 1)

    if point.site in ("mlp_key", "mlp_in"):

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            found = changed(args[0])
            return None if found is None else (found, *args[1:])

        return lm.module(_path(lm, point)).register_forward_pre_hook(before)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        found = changed(output[0] if isinstance(output, tuple) else output)
        if found is None:
            return None
        return (found, *output[1:]) if isinstance(output, tuple) else found

    return lm.module(_path(lm, point)).register_forward_hook(after)


def _path(lm: LanguageModel, point: Point) -> str:
    if point.site == "embed":
        return lm.layout.embed
    if point.site == "resid_post":
        return lm.layout.block(point.layer)
    return lm.layout.module("mlp_out" if point.site == "mlp_key" else point.site, point.layer)


class _Enough(Exception):
    """Ends a pass once the last wanted state is there."""


def activations(
    lm: LanguageModel,
    batch: Batch,
    points: Collection[Point],
    *,
    edits: Sequence[Update] = (),
    patches: Sequence[tuple[Point, Patch]] = (),
) -> dict[Point, Float[Tensor, "batch pos d"]]:
    """States at the given points. The pass stops after the last of them."""
    kept: dict[Point, Tensor] = {}

    def keep(point: Point, state: Tensor) -> None:
        kept[point] = state
        if len(kept) == len(set(points)):
            raise _Enough

    with hooked(lm, edits, patches, keep, list(dict.fromkeys(points))), suppress(_Enough):
        forward(lm, batch)
    return kept


def hidden_states(
    lm: LanguageModel,
    batch: Batch,
    *,
    edits: Sequence[Update] = (),
    patches: Sequence[tuple[Point, Patch]] = (),
    overlays: Sequence[Overlay] = (),
) -> Float[Tensor, "batch pos d_model"]:
    """States after the final norm, which `lm.unembed` turns into logits where they are wanted."""
    with hooked(lm, edits, patches, overlays=overlays):
        return forward(lm, batch)


def next_logits(
    lm: LanguageModel, batch: Batch, *, edits: Sequence[Update] = (), patches: Sequence[tuple[Point, Patch]] = ()
) -> Float[Tensor, "batch vocab"]:
    """Logits of the token after each row's last one. The head is applied to that position only."""
    hidden = hidden_states(lm, batch, edits=edits, patches=patches)
    rows = torch.arange(len(hidden), device=hidden.device)  # with several devices, where the last block is
    return lm.unembed(hidden[rows, batch.last.to(hidden.device)])


def attention_pattern(
    lm: LanguageModel, batch: Batch, layer: int, *, edits: Sequence[Update] = ()
) -> Float[Tensor, "batch heads pos pos"]:
    """Attention weights of one layer, as the model's own attention module returns them."""
    lm.require("attention patterns")
    kept: list[Tensor] = []
    attention = lm.module(lm.layout.block(layer) + "." + lm.layout.attn_out.split(".")[0])

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        pattern = next((part for part in output[1:] if isinstance(part, Tensor) and part.dim() == 4), None)
        if pattern is None:
            raise ModelError(f"The attention of '{lm.name}' returns no weights.", "", "Choose another model.")
        kept.append(pattern)
        raise _Enough

    with hooked(lm, edits), torch.no_grad():
        handle = attention.register_forward_hook(keep)
        try:
            with suppress(_Enough):
                forward(lm, batch)
        finally:
            handle.remove()
    return kept[0]


def forward(lm: LanguageModel, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
    """The pass itself, inside `hooked`: states after the final norm."""
    return lm.hf.base_model(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
    ).last_hidden_state
