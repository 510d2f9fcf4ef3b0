"""The layout of a decoder that no row of the table knows, found from its module tree, shapes and one forward pass.

What is found is a guess until it is proven (`rome_core.model.proof`); what cannot be found is said in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rome_core.errors import ModelError
from rome_core.model.layout import Layout

N_TOKENS = 6
Shape = tuple[tuple[str, str], ...]  # the module tree of a block


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module during a pass: its states, as they went in and came out."""

    path: str
    module: nn.Module
    into: Tensor | None
    out: Tensor | None


@dataclass
class Watch:
    """All calls of a pass, in the order in which they ended."""

    calls: list[Call] = field(default_factory=list)

    def of(self, module: nn.Module) -> list[Call]:
        return [call for call in self.calls if call.module is module]


@torch.no_grad()
def discover(hf: Any) -> Layout:
    """Find where a decoder keeps its parts. Raises ModelError with what was not found."""
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    kind = str(getattr(hf.config, "model_type", type(hf).__name__))
    if getattr(hf.config, "is_encoder_decoder", False):
        raise _no(kind, "it is an encoder and a decoder, and facts are followed through one stack of blocks")
    if embedding is None or head is None:
        raise _no(kind, "it has no word embedding and no language-model head")
    names = {id(module): path for path, module in hf.named_modules()}
    vocabulary = len(embedding.weight)
    ids = torch.arange(7, 7 + N_TOKENS, device=embedding.weight.device)[None] % vocabulary
    seen = _watched(hf, ids)
    _check_causal(hf, ids, kind, vocabulary)
    blocks_path, blocks = _blocks(hf, seen, kind)
    norm = _norm(seen, blocks, names, kind)
    d_model = _state_size(seen, blocks[-1])
    rows: dict[Shape, _Parts] = {}
    for layer, block in enumerate(blocks):
        shape = tuple((path, type(module).__name__) for path, module in block.named_modules())
        if shape not in rows:
            rows[shape] = _parts(hf, blocks, layer, seen, ids, d_model, kind)
    first = next(iter(rows.values()))
    if len({(row.attn_out, row.mlp_out) for row in rows.values()}) > 1:
        raise _no(kind, "its blocks are of several kinds, with their parts under different names")
    return Layout(
        embed=names[id(embedding)],
        blocks=blocks_path,
        attn_out=first.attn_out,
        mlp_out=first.mlp_out,
        norm=names[id(norm)],
        mlp_up=first.mlp_up,
        mlp_in=first.mlp_in,
        flat=_is_flat(seen, blocks[0].get_submodule(first.mlp_out)),
    )


def _is_flat(seen: Watch, module: nn.Module) -> bool:
    out = next((call.out for call in seen.of(module)), None)
    return out is not None and out.dim() == 2


def _no(kind: str, why: str) -> ModelError:
    return ModelError(
        f"Models of type '{kind}' cannot be traced or edited here: {why}.",
        "",
        "Choose a decoder of plain blocks with attention and an MLP (docs/models.md has a list).",
    )


def _watched(hf: Any, ids: Tensor, *changes: tuple[nn.Module, Any]) -> Watch:
    """One pass, with every module's states. changes: a module, and what becomes of its output."""
    watch = Watch()
    names = {id(module): path for path, module in hf.named_modules()}

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        into = next((value for value in (*args, *kwargs.values()) if _is_state(value)), None)
        out = output[0] if isinstance(output, tuple) and output else output
        watch.calls.append(Call(names[id(module)], module, into, out if _is_state(out) else None))

    handles = [module.register_forward_hook(change) for module, change in changes]
    handles += [module.register_forward_hook(after, with_kwargs=True) for module in hf.modules()]
    try:
        hf(input_ids=ids, use_cache=False)
    except Exception as error:
        kind = str(getattr(hf.config, "model_type", type(hf).__name__))
        raise _no(kind, f"it does not read a plain text ({type(error).__name__})") from error
    finally:
        for handle in handles:
            handle.remove()
    return watch


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def _check_causal(hf: Any, ids: Tensor, kind: str, vocabulary: int) -> None:
    """Logits must not depend on later tokens."""
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary
    logits = [hf(input_ids=row, use_cache=False).logits[0, :-1].float() for row in (ids, other)]
    if not torch.allclose(logits[0], logits[1], atol=1e-3 * float(logits[0].abs().max())):
        raise _no(kind, "its tokens see later ones, as an encoder's do")


def _blocks(hf: Any, seen: Watch, kind: str) -> tuple[str, nn.ModuleList]:
    """The longest list whose members run once each, one's output being the next one's input."""
    found: list[tuple[int, str, nn.ModuleList]] = []
    for path, module in hf.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and _is_chain(module, seen):
            found.append((len(module), path, module))
    if not found:
        raise _no(kind, "no list of blocks was found that pass one stream of states on from one to the next")
    _, path, blocks = max(found, key=lambda one: one[0])
    return path, blocks


def _is_chain(members: nn.ModuleList, seen: Watch) -> bool:
    calls = [seen.of(member) for member in members]
    if any(len(call) != 1 or call[0].into is None or call[0].out is None for call in calls):
        return False
    single = [call[0] for call in calls]
    return all(_same(one.out, other.into) for one, other in pairwise(single)) and all(
        call.out is not None and call.out.dim() == 3 and call.out.shape == single[0].out.shape  # type: ignore[union-attr]
        for call in single
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def _norm(seen: Watch, blocks: nn.ModuleList, names: dict[int, str], kind: str) -> nn.Module:
    """The first module after the last block that reads exactly its output."""
    last = seen.of(blocks[-1])[0]
    after = seen.calls[seen.calls.index(last) + 1 :]
    for call in after:
        if not list(call.module.children()) and _same(call.into, last.out):
            return call.module
    raise _no(kind, "no norm was found that reads what the last block puts out")


def _state_size(seen: Watch, block: nn.Module) -> int:
    out = seen.of(block)[0].out
    assert out is not None
    return int(out.shape[-1])


# --------------------------------------------------------------------------------------------------- inside one block


@dataclass(frozen=True)
class _Parts:
    """Paths within a block."""

    attn_out: str
    mlp_out: str
    mlp_up: tuple[str, ...]
    mlp_in: str


def _parts(hf: Any, blocks: nn.ModuleList, layer: int, seen: Watch, ids: Tensor, d_model: int, kind: str) -> _Parts:
    block = blocks[layer]
    branches = _branches(block, seen, d_model)
    mixing = [_mixes(hf, blocks, layer, branches, number, ids) for number in range(len(branches))]
    attention = [branch for branch, mixes in zip(branches, mixing, strict=True) if mixes]
    plain = [branch for branch, mixes in zip(branches, mixing, strict=True) if not mixes]
    if len(attention) != 1 or not plain:
        raise _no(kind, f"block {layer} is not one attention and one MLP, but holds {_listed(branches)}")
    attn_out = _last_writer(block, attention[0], seen, d_model)
    if attn_out is None:
        raise _no(kind, f"the attention of block {layer} has no output projection")
    branch = plain[-1]
    module = block.get_submodule(branch)
    if _has_experts(module):
        return _Parts(attn_out, branch, (), branch)
    mlp_out = _last_writer(block, branch, seen, d_model)
    if mlp_out is None:
        return _Parts(attn_out, branch, (), branch)
    inside = [path for path in _linears(block, seen) if not path.startswith(f"{attention[0]}.") and path != mlp_out]
    up = tuple(path for path in inside if _reads(block.get_submodule(path), d_model) and path != attention[0])
    if mlp_out == branch:  # the matrices stand in the block itself
        return _Parts(attn_out, mlp_out, up, up[-1] if up else mlp_out)
    own = tuple(path for path in up if path.startswith(f"{branch}."))
    return _Parts(attn_out, mlp_out, own, "" if mlp_out.rpartition(".")[0] == branch else branch)


def _listed(branches: Sequence[str]) -> str:
    return ", ".join(f"'{branch}'" for branch in branches) or "no such parts"


def _branches(block: nn.Module, seen: Watch, d_model: int) -> list[str]:
    """Children that hold matrices and write d_model numbers a token, in the order in which they ran."""
    ran = [call for call in seen.calls if any(call.module is child for child in block.children())]
    names = {id(child): name for name, child in block.named_children()}
    writers = []
    for call in ran:
        matrices = [p for p in call.module.parameters() if p.dim() >= 2]
        if matrices and call.out is not None and call.out.shape[-1] == d_model:
            writers.append(names[id(call.module)])
    return list(dict.fromkeys(writers))


@torch.no_grad()
def _mixes(hf: Any, blocks: nn.ModuleList, layer: int, branches: Sequence[str], number: int, ids: Tensor) -> bool:
    """Whether a branch's output at the last token depends on the other tokens' states. Branches that ran before it are
    silenced, since what they write is read by it."""
    block = blocks[layer]
    outputs: list[Tensor] = []
    for change in (0.0, 1.0):
        handles = [block.get_submodule(before).register_forward_hook(_silent) for before in branches[:number]]
        handles.append(block.register_forward_pre_hook(_disturbed(change), with_kwargs=True))
        handles.append(block.get_submodule(branches[number]).register_forward_hook(_kept(outputs)))
        try:
            hf(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    first, second = (output.reshape(N_TOKENS, -1)[-1].float() for output in outputs)
    return not torch.allclose(first, second, atol=1e-5 * max(1e-6, float(first.abs().max())))


def _silent(module: nn.Module, args: Any, output: Any) -> Any:
    first = output[0] if isinstance(output, tuple) else output
    nothing = torch.zeros_like(first)
    return (nothing, *output[1:]) if isinstance(output, tuple) else nothing


def _disturbed(size: float) -> Any:
    """Add the same noise to the states of all tokens but the last."""

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def change(state: Tensor) -> Tensor:
            noise = torch.randn(state.shape, generator=torch.Generator().manual_seed(0)).to(state)
            noise[:, -1] = 0
            return state + size * noise * state.float().std().to(state)

        if args and _is_state(args[0]):
            return (change(args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if _is_state(value))
        return args, {**kwargs, name: change(kwargs[name])}

    return before


def _kept(outputs: list[Tensor]) -> Any:
    def after(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    return after


def _linears(block: nn.Module, seen: Watch) -> Iterator[str]:
    """Paths of a block's linear modules in the order in which they ran."""
    names = {id(module): path for path, module in block.named_modules()}
    done = set[int]()
    for call in seen.calls:
        if id(call.module) in names and id(call.module) not in done and _is_linear(call.module):
            done.add(id(call.module))
            yield names[id(call.module)]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _reads(module: nn.Module, d_model: int) -> bool:
    weight: Any = module.weight
    return int(weight.shape[1] if isinstance(module, nn.Linear) else weight.shape[0]) == d_model


def _writes(module: nn.Module, d_model: int) -> bool:
    weight: Any = module.weight
    return int(weight.shape[0] if isinstance(module, nn.Linear) else weight.shape[1]) == d_model


def _last_writer(block: nn.Module, branch: str, seen: Watch, d_model: int) -> str | None:
    """The last linear module of a branch that writes d_model numbers."""
    inside = [path for path in _linears(block, seen) if path == branch or path.startswith(f"{branch}.")]
    writers = [path for path in inside if _writes(block.get_submodule(path), d_model)]
    return writers[-1] if writers else None


def _has_experts(module: nn.Module) -> bool:
    stacked = any(parameter.dim() > 2 for parameter in module.parameters())
    return stacked or any(isinstance(child, nn.ModuleList) and len(child) > 1 for child in module.modules())
