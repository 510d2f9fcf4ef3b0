"""Every restored run by replay, against the same run by plain hooks on the Hugging Face model.

The oracle below is written from the paper: corrupt the subject's embeddings, set the chosen outputs at one token to
their clean values, run everything. It runs all layers' cells of one token as rows of one batch, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.model import replay
from rome_core.model.hooks import Patch, Point, batch_of
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Cell, Window, batches, plain_cell, record, replay_note, run_block, sweep
from rome_core.model.tokens import Prompt, encode
from tests.tiny import FAMILIES, plain_run, plain_states, random_edit, tiny_model, written

LAYERS, SAMPLES = 6, 2
FIRST = Prompt("{} is far", "Zürich")
MIDDLE = Prompt("The {} is far", "green dragon")
LAST = Prompt("The home of the {}", "dragon")
Site = Literal["resid_post", "attn_out", "mlp_out"]
Kind = tuple[Site, int, int]  # site, centre, width of the window
SITES: tuple[Site, ...] = ("resid_post", "attn_out", "mlp_out")
KINDS: list[Kind] = [("resid_post", layer, 1) for layer in range(LAYERS)]
KINDS += [(site, layer, w) for site in SITES[1:] for layer in range(LAYERS) for w in (1, 5, 10, 13)]
each_family = pytest.mark.parametrize("family", FAMILIES)


class Setting:
    """One prompt on one model: ids, noise, and the two recorded runs that replay starts from."""

    def __init__(self, lm: LanguageModel, prompt: Prompt, edits: Sequence[Edit] = ()) -> None:
        encoded = encode(lm.tokenizer, prompt)
        self.lm, self.ids, self.first, self.stop = lm, list(encoded.ids), *encoded.subject
        draw = torch.Generator().manual_seed(7)
        self.noise = torch.randn(SAMPLES, self.stop - self.first, lm.d_model, generator=draw).to(lm.dtype)
        self.corruption: tuple[Point, Patch] = (Point("embed"), self.corrupt)
        self.edits = tuple(edits)
        self.clean = record(lm, batch_of(lm, [self.ids]), edits=edits)
        rows = batch_of(lm, [self.ids] * SAMPLES)
        self.corrupted = record(lm, rows, edits=edits, patches=[self.corruption])

    def corrupt(self, embedded: Tensor) -> Tensor:
        changed = embedded.clone()
        changed[:, self.first : self.stop] += self.noise.repeat(len(embedded) // SAMPLES, 1, 1)
        return changed

    def cell(self, token: int, kind: Kind) -> Cell:
        site, layer, width = kind
        if site == "resid_post":
            return Cell(token, layer, resid=layer)
        return Cell(token, layer, windows=(Window(site, *span(layer, width), self.clean),))

    def by_replay(self, token: int, kinds: Sequence[Kind] = KINDS) -> Tensor:
        """Logits at the last token, [kinds samples vocab]."""
        cells = [self.cell(token, kind) for kind in kinds]
        found = {
            id(cell): self.lm.logits(state[:, -1])
            for group in batches(self.lm, self.corrupted, cells, 2**31)
            for finished in sweep(self.lm, self.clean, self.corrupted, group, 1)
            for cell, state in finished
        }
        assert len(found) == len(cells)
        return torch.stack([found[id(cell)] for cell in cells])

    def by_hooks(self, token: int, kinds: Sequence[Kind] = KINDS) -> Tensor:
        """The oracle: all cells of one token in one batch of whole runs, in which kind k has rows k·SAMPLES, …"""
        lm, places = written(self.lm, *self.edits), [(site, layer) for site in SITES for layer in range(LAYERS)]
        path = {(s, l): lm.layout.block(l) if s == "resid_post" else lm.layout.module(s, l) for s, l in places}  # noqa: E741
        clean: dict[tuple[Site, int], Tensor] = {}

        def see(place: tuple[Site, int]) -> Callable[[Tensor], None]:
            return lambda out: clean.__setitem__(place, out[0, token].clone())

        def restore(place: tuple[Site, int]) -> Callable[[Tensor], Tensor]:
            site, layer = place
            mine = [
                k for k, (s, centre, width) in enumerate(kinds) if s == site and layer in range(*span(centre, width))
            ]
            rows = [k * SAMPLES + sample for k in mine for sample in range(SAMPLES)]

            def change(out: Tensor) -> Tensor:
                out = out.clone()
                out[rows, token] = clean[place]
                return out

            return change

        plain_run(lm, [self.ids], {path[place]: see(place) for place in places})
        hooks = {lm.layout.embed: self.corrupt, **{path[place]: restore(place) for place in places}}
        logits = plain_run(lm, [self.ids] * (len(kinds) * SAMPLES), hooks)[:, -1]
        return logits.unflatten(0, (len(kinds), SAMPLES))


def span(centre: int, width: int) -> tuple[int, int]:
    """`width` layers around a layer, as many of them as there are: 10 → l−5 … l+4, 5 → l−2 … l+2."""
    wanted = [centre - width // 2 + i for i in range(width)]
    there = [layer for layer in wanted if 0 <= layer < LAYERS]
    return there[0], there[-1] + 1


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-5)


@each_family
@pytest.mark.parametrize("prompt", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
def test_every_cell_equals_the_plain_run(family: str, prompt: Prompt) -> None:
    setting = Setting(tiny_model(family, layers=LAYERS), prompt)
    for token in range(setting.first, len(setting.ids)):
        assert_same(setting.by_replay(token), setting.by_hooks(token))


@each_family
def test_every_cell_equals_the_plain_run_with_edits_active(family: str) -> None:
    lm = tiny_model(family, layers=LAYERS)
    setting = Setting(lm, MIDDLE, [random_edit(lm, 1), random_edit(lm, 4, rank=2, seed=1)])

    found = setting.by_replay(2)

    assert_same(found, setting.by_hooks(2))
    assert ((found - Setting(lm, MIDDLE).by_replay(2)).abs().amax((1, 2)) > 1e-3).all()  # the edits do something


@each_family
def test_the_plain_cell_is_the_plain_run(family: str) -> None:
    """The built-in oracle and fallback, against this file's."""
    lm = tiny_model(family, layers=LAYERS)
    setting = Setting(lm, MIDDLE, [random_edit(lm, 2)])
    kinds = KINDS[::7]

    found = [
        plain_cell(
            lm, setting.clean, setting.corrupted.batch, setting.cell(2, kind), edits=setting.edits,
            corruption=[setting.corruption],
        )
        for kind in kinds
    ]  # fmt: skip

    assert_same(lm.unembed(torch.stack(found)[:, :, -1]), setting.by_hooks(2, kinds))


@each_family
def test_a_recording_is_the_run(family: str) -> None:
    lm = tiny_model(family, layers=3)
    ids = lm.tokenizer("The home of the green dragon")["input_ids"]

    recording = record(lm, batch_of(lm, [ids]))

    assert len(recording.states) == 4 and len(recording.keys) == len(recording.values) == 3
    for layer in range(3):
        out = [plain_states(lm, ids, lm.layout.module(site, layer))[1] for site in ("attn_out", "mlp_out")]
        torch.testing.assert_close(recording.states[layer + 1][0], plain_states(lm, ids, lm.layout.block(layer))[1])
        torch.testing.assert_close(recording.outputs["attn_out"][layer][0], out[0])
        torch.testing.assert_close(recording.outputs["mlp_out"][layer][0], out[1])
    torch.testing.assert_close(lm.logits(recording.states[-1]), plain_run(lm, [ids]))


@each_family
def test_blocks_can_be_resumed_in_a_batch_with_padding(family: str) -> None:
    """Rows of different length, resumed in the middle: what optimising v* relies on."""
    lm = tiny_model(family, layers=3)
    rows = [lm.tokenizer(t)["input_ids"] for t in ("The home of the green dragon is far", "Paris is", "In the city of")]
    batch = batch_of(lm, rows, align=[5, 0, 3])
    recording = record(lm, batch)
    every = torch.arange(3)

    for token in (5, 6):
        state = recording.states[0][:, token:]
        for layer in range(3):
            state = run_block(lm, recording, layer, token, state, every)
        for r, row in enumerate(rows):
            length = batch.column[r] + len(row) - token
            if length > 0:
                expected = plain_run(lm, [row])[0][-length:]
                torch.testing.assert_close(lm.logits(state[r, :length]), expected, rtol=1e-4, atol=1e-4)


def test_resuming_runs_only_the_blocks_and_tokens_that_are_needed() -> None:
    lm = tiny_model(layers=LAYERS)
    setting = Setting(lm, MIDDLE)
    work: list[tuple[int, int, int]] = []
    for layer, block in enumerate(lm.blocks):
        block.register_forward_pre_hook(
            lambda module, args, kwargs, layer=layer: work.append((layer, *kwargs["hidden_states"].shape[:2])),
            with_kwargs=True,
        )
    tail = len(setting.ids) - 2

    setting.by_replay(2, [("resid_post", 3, 1)])
    setting.by_replay(2, [("mlp_out", 4, 3)])

    assert work == [(4, SAMPLES, tail), (5, SAMPLES, tail), (3, SAMPLES, 1), (4, SAMPLES, tail), (5, SAMPLES, tail)]


def test_a_budget_bounds_the_cells_of_a_batch() -> None:
    setting = Setting(tiny_model(layers=LAYERS), MIDDLE)
    cells = [setting.cell(token, kind) for token in (1, 3) for kind in KINDS]
    one = SAMPLES * replay._bytes_per_row(setting.lm, len(setting.ids) - 1, len(setting.ids))

    for budget, sizes in ((2**31, {len(KINDS)}), (4 * one, {4, 2, 3, 1}), (1, {1})):
        groups = batches(setting.lm, setting.corrupted, cells, budget)

        assert sorted(id(cell) for group in groups for cell in group) == sorted(map(id, cells))
        assert all(len({cell.token for cell in group}) == 1 for group in groups)
        early = [len(group) for group in groups if group[0].token == 1]
        assert set(early) <= sizes and max(early) == max(sizes)


@each_family
@pytest.mark.parametrize("layers", [4, 1])  # in a model of one block there is nothing above the restored one
def test_replay_is_found_to_agree(family: str, layers: int) -> None:
    assert replay_note(tiny_model(family, layers=layers)) == ""


def wrong_at(layer: int) -> Callable[..., Tensor]:
    """A replay that is a little off in one block, by what no norm takes away."""
    off = torch.linspace(0, 0.1, 16)
    return lambda lm, recording, at, *args: run_block(lm, recording, at, *args) + (off if at == layer else 0)


def raising(error: Exception) -> Callable[..., Tensor]:
    def run(*args: object) -> Tensor:
        raise error

    return run


@pytest.mark.parametrize(
    ("replaced", "sentence"),
    [
        (wrong_at(1), "Replay differs from plain hooks"),
        (wrong_at(3), "Replay differs from plain hooks"),
        (raising(TypeError("another argument")), "cannot be resumed (TypeError)"),
        (raising(RuntimeError("shapes do not match")), "cannot be resumed (RuntimeError)"),
    ],
)
def test_where_replay_is_wrong_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, replaced: Callable[..., Tensor], sentence: str
) -> None:
    monkeypatch.setattr(replay, "run_block", replaced)

    assert sentence in replay_note(tiny_model())


def test_the_check_runs_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    assert replay_note(lm) == ""

    monkeypatch.setattr(replay, "run_block", raising(TypeError()))

    assert replay_note(lm) == ""
    assert replay_note(tiny_model()) != ""  # another object is another model


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("of an accelerator"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_too_little_memory_is_raised_and_not_remembered(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    lm = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(replay, "run_block", raising(error))
        with pytest.raises(RuntimeError) as raised:
            replay_note(lm)

    assert raised.value is error
    assert replay_note(lm) == ""


def test_a_row_in_half_precision_counts_half() -> None:
    rows = [replay._bytes_per_row(tiny_model(dtype=dtype), 3, 9) for dtype in (torch.float32, torch.bfloat16)]

    assert rows[0] == 2 * rows[1] > 0
