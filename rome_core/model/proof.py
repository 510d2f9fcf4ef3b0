"""What can be done with a model, proven on a short text when it is loaded.

Every part of the layout is put to the test that what is built on it would fail by. A check that fails switches off what
depends on it, and its sentence is shown where it would have been used; nothing is silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from rome_core.errors import ModelError
from rome_core.model.edits import Delta
from rome_core.model.hooks import Patch, Point, activations, attention_pattern, batch_of, hidden_states, next_logits
from rome_core.model.language_model import LanguageModel, soft_cap
from rome_core.model.layout import is_transposed
from rome_core.model.replay import is_out_of_memory

TEXT = "The Eiffel Tower is in"
TRACED = ("trace the residual stream", "trace the MLP", "trace the attention")
CAPABILITIES = (*TRACED, "attention patterns", "edit", "hypernetworks", "cache")
Logits = Float[Tensor, "batch pos vocab"]


@dataclass(frozen=True)
class Check:
    """One test. error: the largest difference of a probability, or a relative one; infinite where it could not be made.

    concerns: the capabilities that need it. reason: what is wrong, as the end of a sentence; empty where nothing is.
    """

    name: str
    error: float
    concerns: tuple[str, ...]
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


def prove(lm: LanguageModel) -> tuple[Check, ...]:
    """All checks, in a dozen passes of a few tokens."""
    return tuple(_checked(lm, *row) for row in _CHECKS)


def incapacities(checks: Sequence[Check]) -> dict[str, str]:
    """What is not possible, with the first reason."""
    found: dict[str, str] = {}
    for check in checks:
        for capability in check.concerns if not check.passed else ():
            found.setdefault(capability, check.reason)
    return found


def fit_logits(lm: LanguageModel) -> LanguageModel:
    """The model with the scale that its family multiplies logits by, found by comparing them with its own pass.

    Raises ModelError where logits are not the same after that, or not finite.
    """
    ids = lm.tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        own = lm.unembed(hidden_states(lm, batch_of(lm, [ids])))
        expected = lm.hf(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits.to(own.device)
    size, tolerance = float(expected.abs().max()), torch.finfo(lm.dtype).eps ** 0.5
    difference = float((own - expected).abs().max())
    if difference <= size * tolerance:
        return lm
    if difference == difference and soft_cap(lm.hf) is None:
        scale = float((own.double() * expected.double()).sum() / own.double().square().sum())
        if float((own * scale - expected).abs().max()) <= size * tolerance:
            return replace(lm, logit_scale=float(f"{scale:.6g}"))
    raise ModelError(
        f"'{lm.name}' gives other logits here than in transformers.",
        f"They differ by {difference:.2g}, and are at most {size:.2g}."
        if difference == difference
        else f"They are not finite in {str(lm.dtype).removeprefix('torch.')}.",
        "Load it in another dtype, or choose another model.",
    )


# ------------------------------------------------------------------------------------------------------------- checks

Row = tuple[str, tuple[str, ...], str, Callable[[LanguageModel], float]]


def _checked(
    lm: LanguageModel, name: str, concerns: tuple[str, ...], reason: str, measure: Callable[[LanguageModel], float]
) -> Check:
    tolerance = 1e-4 if lm.dtype in (torch.float32, torch.float64) else 4e-2
    try:
        with torch.no_grad():
            error = measure(lm)
    except Exception as error_:  # a family's own code, called in a way that it may not know
        if is_out_of_memory(error_):
            raise
        said = str(error_) if isinstance(error_, ModelError) else type(error_).__name__
        return Check(name, float("inf"), concerns, f"{reason} ({said.rstrip('.')[:120]})")
    by = f" (by {error:.1g})" if error < float("inf") else ""
    return Check(name, error, concerns, "" if error <= tolerance else reason + by)


def _ids(lm: LanguageModel) -> list[int]:
    return list(lm.tokenizer(TEXT)["input_ids"])[: lm.max_positions - 3]


def _apart(a: Float[Tensor, "*rows vocab"], b: Float[Tensor, "*rows vocab"]) -> float:
    """The largest difference of a probability; infinite where one is not finite."""
    difference = float((a.float().softmax(-1) - b.float().softmax(-1)).abs().max())
    return difference if difference == difference else float("inf")


def _logits(lm: LanguageModel, ids: Sequence[int], *patches: tuple[Point, Patch]) -> Logits:
    return lm.unembed(hidden_states(lm, batch_of(lm, [ids]), patches=patches))


def _padding(lm: LanguageModel) -> float:
    """A row beside a longer one, padded on its right and on its left, against the row alone."""
    ids = _ids(lm)
    short, long = ids[: -(-len(ids) // 2)], (ids + ids)[: lm.max_positions]
    alone = next_logits(lm, batch_of(lm, [short]))[0]
    right = next_logits(lm, batch_of(lm, [short, long]))[0]
    if lm.dtype == torch.float64:  # the families' softmax is in single precision, where this mask's lowest number is −∞
        return _apart(alone, right)
    left = next_logits(lm, batch_of(lm, [short, long], align=[len(short) - 1, len(long) - 1]))[0]
    return max(_apart(alone, right), _apart(alone, left))


def _self_patch(site: str) -> Callable[[LanguageModel], float]:
    """States set to what they are change nothing, and set to other ones change something."""

    def measure(lm: LanguageModel) -> float:
        ids, layer = _ids(lm), lm.n_layers // 2
        point = Point(site, layer)  # type: ignore[arg-type]
        batch = batch_of(lm, [ids])
        state = activations(lm, batch, [point])[point].clone()
        if state.shape != (1, len(ids), lm.d_model):
            raise ModelError(f"its states have the shape {tuple(state.shape)}")
        clean = _logits(lm, ids)
        same = _apart(_logits(lm, ids, (point, lambda _: state.clone())), clean)
        other = _apart(_logits(lm, ids, (point, lambda _: -2 * state)), clean)
        if other == 0:
            raise ModelError("nothing reads it")
        return same

    return measure


def _restore_all(lm: LanguageModel) -> float:
    """All states after a block set to the clean ones: the corrupted run becomes the clean one."""
    ids, layer = _ids(lm), lm.n_layers // 2
    point = Point("resid_post", layer)
    clean_state = activations(lm, batch_of(lm, [ids]), [point])[point].clone()
    turned: Patch = lambda state: state.flip(1)  # noqa: E731
    clean, corrupted = _logits(lm, ids), _logits(lm, ids, (Point("embed"), turned))
    if _apart(clean, corrupted) == 0:
        raise ModelError("other embeddings change nothing")
    return _apart(_logits(lm, ids, (Point("embed"), turned), (point, lambda _: clean_state.clone())), clean)


def _restored_outputs(lm: LanguageModel) -> float:
    """All recorded outputs of attention and MLP put back where they were: nothing changes, also where a block adds to
    what its modules give it."""
    ids = _ids(lm)
    points = [Point(site, layer) for layer in range(lm.n_layers) for site in ("attn_out", "mlp_out")]
    kept = {point: state.clone() for point, state in activations(lm, batch_of(lm, [ids]), points).items()}
    return _apart(
        _logits(lm, ids, *[(point, partial(_again, state)) for point, state in kept.items()]), _logits(lm, ids)
    )


def _again(recorded: Tensor, state: Tensor) -> Tensor:
    return recorded.clone()


def _plain(lm: LanguageModel) -> float:
    """The down projections are linear modules with plain weights."""
    for layer in range(lm.n_layers):
        try:
            is_transposed(lm.module(lm.down_projection(layer)))
        except ModelError:
            return float("inf")
    return 0.0


def _value(lm: LanguageModel) -> float:
    """Key times W is the MLP's output, bias aside, in every layer: relative."""
    ids, worst = _ids(lm), 0.0
    points = [Point(site, layer) for layer in range(lm.n_layers) for site in ("mlp_key", "mlp_out")]
    kept = activations(lm, batch_of(lm, [ids]), points)
    for layer in range(lm.n_layers):
        key, value = kept[Point("mlp_key", layer)].float(), kept[Point("mlp_out", layer)].float()
        W, bias = lm.weight(layer).float(), getattr(lm.module(lm.down_projection(layer)), "bias", None)
        expected = key @ W.T + (0 if bias is None else bias.float())
        worst = max(worst, float((value - expected).norm() / expected.norm().clamp(min=1e-12)))
    return worst


def _overlay(lm: LanguageModel) -> float:
    """An update as an overlay, against the same one written into a copy of that one matrix."""
    ids, layer = _ids(lm), lm.n_layers // 2
    path, W = lm.down_projection(layer), lm.weight(layer)
    draw = torch.Generator().manual_seed(0)
    U, V = torch.randn(lm.d_model, 1, generator=draw), torch.randn(1, W.shape[1], generator=draw)
    size = 0.3 * float(W.float().norm()) / float(U.norm() * V.norm())
    delta = Delta(path, (size * U).to(W), V.to(W))
    changed = W + delta.U @ delta.V
    stored = changed.T.contiguous() if is_transposed(lm.module(path)) else changed
    batch = batch_of(lm, [ids])
    overlaid = lm.unembed(hidden_states(lm, batch, overlays=[(path, delta)]))
    weights = {f"{path}.weight": stored}
    written = functional_call(lm.hf, weights, kwargs={"input_ids": batch.ids, "use_cache": False}).logits
    if _apart(overlaid, _logits(lm, ids)) == 0:
        raise ModelError("a change of W changes nothing")
    return _apart(overlaid, written)


def _pattern(lm: LanguageModel) -> float:
    """Rows of the attention pattern are distributions over the tokens so far."""
    ids = _ids(lm)
    pattern = attention_pattern(lm, batch_of(lm, [ids]), lm.n_layers // 2)[0].float()
    if pattern.shape[-2:] != (len(ids), len(ids)):
        raise ModelError(f"it has the shape {tuple(pattern.shape)}")
    later = float(pattern.triu(1).abs().max())
    return max(later, float((pattern.sum(-1) - 1).abs().max()) if not _has_sinks(lm) else 0.0)


def _has_sinks(lm: LanguageModel) -> bool:
    """Some families let a head attend to nothing: rows then add up to less than one."""
    return any("sink" in name for name, _ in lm.hf.named_parameters())


def _mlp_matrices(lm: LanguageModel) -> float:
    """All matrices of the MLPs are plain, and there is one that reads the states."""
    for layer in range(lm.n_layers):
        for path in lm.layout.mlp_matrices(layer):
            lm.matrix(path)
    if not lm.layout.mlp_up:
        raise ModelError("no matrix of its MLP reads the states")
    return 0.0


def _cache(lm: LanguageModel) -> float:
    """The next token's probabilities with the keys and values of the earlier ones kept, and without."""
    from rome_core.model.generation import decode

    ids = _ids(lm)
    tokens = [int(token[0]) for token in decode(replace(lm, cannot={}), [ids], 3)]
    for n, token in enumerate(tokens):
        logits = next_logits(lm, batch_of(lm, [ids + tokens[:n]]))[0]
        if float(logits.max() - logits[token]) > 1e-2 * float(logits.abs().max()):
            return float("inf")
    return 0.0


def _rows() -> Iterator[Row]:
    yield "padding changes nothing", ("edit", "hypernetworks"), "padding changes what it says", _padding
    for site, capability, name in (
        ("resid_post", TRACED[0], "a block's output"),
        ("mlp_out", TRACED[1], "the MLP's output"),
        ("attn_out", TRACED[2], "the attention's output"),
    ):
        reason = f"{name} cannot be set"
        yield f"{name} set to itself changes nothing", (capability,), reason, _self_patch(site)
    yield (
        "all states restored are the clean run",
        TRACED,
        "restoring all states does not bring the clean run back",
        _restore_all,
    )
    yield (
        "recorded outputs put back change nothing",
        TRACED[1:],
        "putting the outputs of MLP and attention back where they were changes something",
        _restored_outputs,
    )
    yield (
        "W is a plain matrix",
        ("edit", "hypernetworks"),
        "its MLP has no single matrix W; router and experts are traced as one",
        _plain,
    )
    yield "key times W is the MLP's output", ("edit", "hypernetworks"), "its MLP is no single matrix W of a key", _value
    yield (
        "an overlay is a written weight",
        ("edit", "hypernetworks"),
        "an update on top of W does not act as one written into it",
        _overlay,
    )
    yield "the MLP's matrices are plain", ("hypernetworks",), "its MLP has other matrices", _mlp_matrices
    yield "attention rows are distributions", ("attention patterns",), "its attention shows no pattern", _pattern
    yield "a cache changes nothing", ("cache",), "its text is generated without a cache", _cache


_CHECKS: tuple[Row, ...] = tuple(_rows())
