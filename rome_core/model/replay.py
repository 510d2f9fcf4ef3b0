"""Replay: a recorded run is resumed at (block, token), which makes tracing and v* fast, and exact.

A change at token i of block b leaves everything below b and, by causality, everything before i as it was. So a run is
recorded once (block inputs, attention keys and values, module outputs, the arguments that each block was called with),
and a variant of it calls the blocks from b on again, for the tokens from i on, with the recorded keys and values
standing in for the earlier ones. Many variants share one batch: a processor at ten rows works at a tenth of its rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_core.errors import ModelError
from rome_core.model.edits import Update
from rome_core.model.hooks import Batch, Overlay, Patch, Point, batch_of, forward, hidden_states, hooked
from rome_core.model.language_model import Kept, LanguageModel
from rome_core.model.layout import cache_argument
from rome_core.model.tokens import text_ids

Module = Literal["attn_out", "mlp_out"]
REPLAY = Kept[str]("whether replay agrees with plain hooks", limit=1)


@dataclass(frozen=True, eq=False)
class Recording:
    """One pass, kept so that it can be resumed. `states[b]` is what block b read, the last one what came out."""

    batch: Batch
    edits: tuple[Update, ...]
    states: list[Float[Tensor, "batch pos d_model"]]
    outputs: dict[Module, list[Float[Tensor, "batch pos d_model"]]]
    keys: list[Float[Tensor, "batch heads pos d_head"]]
    values: list[Float[Tensor, "batch heads pos d_value"]]
    calls: list[dict[str, Any]]
    cache_name: str


class _Recorder:
    """Stands in for a key-value cache: keeps what a block would have cached."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys[layer], self.values[layer] = keys, values
        return keys, values


class _Earlier:
    """Stands in for a key-value cache: the tokens before the resumed one come from the recording."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)


@torch.no_grad()
def record(
    lm: LanguageModel, batch: Batch, *, edits: Sequence[Update] = (), patches: Sequence[tuple[Point, Patch]] = ()
) -> Recording:
    """Run a batch once and keep everything that resuming it needs: about 6·d_model floats a token and layer."""
    try:
        return _record(lm, batch, edits, patches, cache_argument(lm.blocks[0]))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ModelError) as error:
        if is_out_of_memory(error):
            raise
        return _record(lm, batch, edits, patches, "")


def _record(
    lm: LanguageModel, batch: Batch, edits: Sequence[Update], patches: Sequence[tuple[Point, Patch]], cache_name: str
) -> Recording:
    """cache_name: under which the blocks take a cache, for what resuming needs. Without it states and outputs are kept
    alone: what plain hooks need, on a model that cannot be resumed."""
    n = lm.n_layers
    recorder, calls, states = _Recorder(), [], []
    outputs: dict[Module, list[Tensor]] = {"attn_out": [], "mlp_out": []}

    def see_call(layer: int, arguments: dict[str, Any]) -> dict[str, Any]:
        states.append(arguments["hidden_states"])
        if not cache_name:
            return arguments
        kept = {k: v for k, v in arguments.items() if k not in (cache_name, "hidden_states")}
        calls.append(kept if not batch.mask.all() else {k: _first_row(v) for k, v in kept.items()})
        return {**arguments, cache_name: recorder}

    def keep(point: Point, state: Tensor) -> None:
        if point.site == "resid_post":
            states.append(state)
        else:
            outputs[point.site].append(state)  # type: ignore[index]

    points = [Point(site, layer) for layer in range(n) for site in ("attn_out", "mlp_out")]
    with hooked(lm, edits, patches, keep, [*points, Point("resid_post", n - 1)], see_call):
        forward(lm, batch)
    keys, values = (
        [kept[layer] for layer in range(n)] if cache_name else [] for kept in (recorder.keys, recorder.values)
    )
    return Recording(batch, tuple(edits), states, outputs, keys, values, calls, cache_name)


def _first_row(value: Any) -> Any:
    """Without padding all rows of a batch have the same mask and positions: one row of them is enough."""
    if isinstance(value, tuple):
        return tuple(_first_row(v) for v in value)
    return value[:1] if isinstance(value, Tensor) and value.dim() > 1 else value


def run_block(
    lm: LanguageModel,
    recording: Recording,
    layer: int,
    token: int,
    hidden: Float[Tensor, "rows tail d_model"],
    rows: Int[Tensor, " rows"],
    patches: Sequence[tuple[Point, Patch]] = (),
    overlays: Sequence[Overlay] = (),
) -> Float[Tensor, "rows tail d_model"]:
    """Call one block on tokens `token`, token+1, … of variants of the recorded run.

    rows: which recorded row each variant comes from. overlays: those of other blocks do nothing. Differentiable with
    respect to `hidden`, the patches and the overlays.
    """

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(cut(name, v) for v in value)
        if not isinstance(value, Tensor) or name not in ("attention_mask", "position_ids", "position_embeddings"):
            return value
        value = value if len(value) == 1 else value[rows]
        stop = token + hidden.shape[1]
        return value[:, :, token:stop, :stop] if name == "attention_mask" else value[:, token:stop]

    arguments = {name: cut(name, value) for name, value in recording.calls[layer].items()}
    earlier = (kept[layer][:, :, :token][rows] for kept in (recording.keys, recording.values))
    arguments[recording.cache_name] = _Earlier(*earlier)
    with hooked(lm, recording.edits, patches, overlays=overlays):
        output = lm.blocks[layer](hidden_states=hidden, **arguments)
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Window:
    """The outputs of one module type at the cell's token, in layers [start, stop), become those of a recording."""

    site: Module
    start: int
    stop: int
    source: Recording


@dataclass(frozen=True)
class Cell:
    """One restored run: the state after block `resid` at the token becomes the clean one, and windows apply."""

    token: int
    layer: int
    resid: int | None = None
    windows: tuple[Window, ...] = ()

    @property
    def entry(self) -> int:
        """The block at whose output the run first differs from the corrupted one."""
        return self.resid if self.resid is not None else min(window.start for window in self.windows)


def batches(lm: LanguageModel, corrupted: Recording, cells: Sequence[Cell], budget: int) -> list[list[Cell]]:
    """Cells that are run together: one token each, all layers, as many as `budget` bytes of activations allow."""
    samples, width, _ = corrupted.states[0].shape
    grouped: list[list[Cell]] = []
    for token in sorted({cell.token for cell in cells}):
        of_token = sorted((cell for cell in cells if cell.token == token), key=lambda cell: cell.entry)
        size = max(1, budget // (samples * _bytes_per_row(lm, width - token, width)))
        grouped += [of_token[at : at + size] for at in range(0, len(of_token), size)]
    return grouped


Finished = list[tuple[Cell, Float[Tensor, "samples tail d_model"]]]


@torch.no_grad()
def sweep(
    lm: LanguageModel, clean: Recording, corrupted: Recording, cells: Sequence[Cell], tail: int
) -> Iterator[Finished]:
    """States after the last block, at the last `tail` tokens, of the restored runs of one of `batches`.

    Yields after every block (n_layers − first entry times), with the finished cells the last time, so that the caller
    can show progress and stop in between. Cells are one run until the first layer where their windows differ.

    Cost in block·token·row units: a cell takes samples·(n_layers − 1 − entry)·(tokens − token), and samples more where
    its entry is a module's output; blocks that cells share count once, and of the last block's MLP only the tail is
    run. A plain run takes n_layers·tokens·samples for each cell.
    """
    token, (samples, width, _) = cells[0].token, corrupted.states[0].shape
    each = torch.arange(samples, device=corrupted.states[0].device)
    active: list[list[Cell]] = []  # runs, each with the cells that it has stood for so far
    # [run·samples, width − token, d_model]: run r has rows r·samples, …; before the first entry there is none.
    state = corrupted.states[0][:0, token:]
    last = lm.n_layers - 1
    for layer in range(cells[0].entry, lm.n_layers):
        if active:
            active, origin = _split(active, layer)
            if len(origin) > len(state) // samples:
                # [run·samples …] → [run samples …] → one copy a part, [part samples …] → [part·samples …]
                state = state.unflatten(0, (-1, samples))[origin].flatten(0, 1)
            changes = _patches(layer, token, active, samples)
            if layer == last and token < width - tail:
                changes = _tail_only(last, tail, width - token)
            state = run_block(lm, corrupted, layer, token, state, each.repeat(len(active)), changes)
        if entering := [cell for cell in cells if cell.entry == layer]:
            runs, _ = _split([entering], layer)
            own = torch.cat([_enter(lm, clean, corrupted, run, each) for run in runs])  # [run·samples, 1, d_model]
            # [samples, width − token − 1, d_model] → [run·samples, …]
            rest = corrupted.states[layer + 1][:, token + 1 :].repeat(len(runs), 1, 1)
            state = torch.cat([state, torch.cat([own, rest], 1)])  # along the tokens, then along the runs
            active += runs
        if layer < last:
            yield []
    states = state[:, -tail:].unflatten(0, (-1, samples))  # [run·samples tail d_model] → [run samples tail d_model]
    yield [(cell, run_state) for run, run_state in zip(active, states, strict=True) for cell in run]


def _split(runs: Sequence[Sequence[Cell]], layer: int) -> tuple[list[list[Cell]], list[int]]:
    """Runs whose cells restore different things in this layer become several; with the index of each one's origin."""
    parts: list[list[Cell]] = []
    origin: list[int] = []
    for index, run in enumerate(runs):
        alike: dict[object, list[Cell]] = {}
        for cell in run:
            restored = (cell.resid == layer, *((w.site, id(w.source)) for w in _windows_at(cell, layer)))
            alike.setdefault(restored, []).append(cell)
        parts += alike.values()
        origin += [index] * len(alike)
    return parts, origin


def _windows_at(cell: Cell, layer: int) -> list[Window]:
    return [window for window in cell.windows if window.start <= layer < window.stop]


def _enter(
    lm: LanguageModel, clean: Recording, corrupted: Recording, run: Sequence[Cell], each: Tensor
) -> Float[Tensor, "samples 1 d_model"]:
    """The run's own token after its entry block, where no other token has changed yet: one row to run, or none."""
    cell = run[0]
    here = slice(cell.token, cell.token + 1)
    if cell.resid is not None:
        return clean.states[cell.entry + 1][:, here].expand(len(each), -1, -1)
    patches = _patches(cell.entry, cell.token, [run], len(each))
    return run_block(lm, corrupted, cell.entry, cell.token, corrupted.states[cell.entry][:, here], each, patches)


def _bytes_per_row(lm: LanguageModel, tail: int, width: int) -> int:
    """What one variant holds at its largest: states, MLP intermediates, attention weights, keys and values."""
    config = lm.hf.config.get_text_config()
    heads = config.num_attention_heads
    return lm.dtype.itemsize * (
        tail * (6 * lm.d_model + 4 * lm.d_mlp) + 4 * heads * tail * width + 6 * lm.d_model * width
    )


def _patches(layer: int, token: int, runs: Sequence[Sequence[Cell]], samples: int) -> list[tuple[Point, Patch]]:
    """Patches that give the runs' windows, in a batch where run r has rows [r·samples, (r+1)·samples)."""
    patches: list[tuple[Point, Patch]] = []
    for site in ("attn_out", "mlp_out"):
        restored = [  # run, and what its token's output becomes, [1 or samples, d_model]
            (r, window.source.outputs[site][layer][:, token])
            for r, run in enumerate(runs)
            for window in _windows_at(run[0], layer)
            if window.site == site
        ]
        if restored:
            index = torch.cat([torch.arange(r * samples, (r + 1) * samples) for r, _ in restored])
            source = torch.cat([value.expand(samples, -1) for _, value in restored])  # [run·samples d_model]
            patches.append((Point(site, layer), _put(index.to(source.device), source)))
    return patches


def _put(index: Tensor, source: Tensor) -> Patch:
    def patch(state: Tensor) -> Tensor:
        state[index, 0] = source  # the module has just made this tensor, and nobody else has seen it
        return state

    return patch


def _tail_only(layer: int, tail: int, tokens: int) -> list[tuple[Point, Patch]]:
    """After the last block only the tail is read, and an MLP works token by token: run it on the tail alone."""
    return [
        (Point("mlp_in", layer), lambda state: state[:, -tail:]),
        (Point("mlp_out", layer), lambda state: torch.nn.functional.pad(state, (0, 0, tokens - tail, 0))),
    ]


@torch.no_grad()
def plain_cell(
    lm: LanguageModel,
    clean: Recording,
    batch: Batch,
    cell: Cell,
    *,
    edits: Sequence[Update] = (),
    corruption: Sequence[tuple[Point, Patch]] = (),
) -> Float[Tensor, "samples pos d_model"]:
    """The same restored run written from the paper: one whole forward pass with hooks. The oracle, and the fallback.

    Returns the states after the final norm at every token.
    """
    patches = list(corruption)
    if cell.resid is not None:
        patches.append((Point("resid_post", cell.resid), _restore(clean.states[cell.resid + 1], cell.token)))
    for window in cell.windows:
        for layer in range(window.start, window.stop):
            source = window.source.outputs[window.site][layer]
            patches.append((Point(window.site, layer), _restore(source, cell.token)))
    return hidden_states(lm, batch, edits=edits, patches=patches)


def _restore(source: Tensor, token: int) -> Patch:
    def patch(state: Tensor) -> Tensor:
        state = state.clone()
        state[:, token] = source[:, token]
        return state

    return patch


# ------------------------------------------------------------------------------------------------------- the self-check


def replay_note(lm: LanguageModel) -> str:
    """Empty where replay agrees with plain hooks on this model, else a sentence. Checked once a model.

    A check that runs out of memory says nothing about the model: it raises, and is made again the next time.
    """
    return lm.remember(REPLAY, (), lambda: _compare_with_hooks(lm))


@torch.no_grad()
def _compare_with_hooks(lm: LanguageModel) -> str:
    """Restore one token of two runs in which it has a neighbour's embedding, at a middle layer, in each of the ways."""
    ids = text_ids(lm.tokenizer, "The home of the green dragon is far")
    token, layer = len(ids) // 2, lm.n_layers // 2

    def corrupt(embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        embedded[:, token] = embedded[0, [token - 1, token + 1]]
        return embedded

    corruption: tuple[Point, Patch] = (Point("embed"), corrupt)
    try:
        clean = record(lm, batch_of(lm, [ids]))
        corrupted = record(lm, batch_of(lm, [ids, ids]), patches=[corruption])
        start, stop = max(0, layer - 1), layer + 1
        for cell in (
            Cell(token, layer, resid=layer),
            Cell(token, layer, windows=(Window("mlp_out", start, stop, clean),)),
            Cell(token, layer, windows=(Window("attn_out", start, stop, clean),)),
        ):
            (resumed,) = [state for finished in sweep(lm, clean, corrupted, [cell], 1) for _, state in finished]
            whole = plain_cell(lm, clean, corrupted.batch, cell, corruption=[corruption])[:, -1:]
            p_resumed, p_whole = lm.logits(resumed).softmax(-1), lm.unembed(whole).softmax(-1)
            if not torch.allclose(p_resumed, p_whole, atol=1e-5 if lm.dtype == torch.float32 else 2e-2):
                return f"Replay differs from plain hooks on this model (by {(p_resumed - p_whole).abs().max():.1e})."
    except (StopIteration, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ModelError) as error:
        if is_out_of_memory(error):
            raise
        return f"This model's blocks cannot be resumed ({type(error).__name__}), so every cell is a whole pass."
    return ""


def is_out_of_memory(error: Exception) -> bool:
    """Accelerators have a type or a sentence for it, the processor's allocator only a sentence."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate" in said
