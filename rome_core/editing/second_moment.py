"""The second moment C = E[k kᵀ] of the keys of a layer, without a download: from text the model writes itself."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from cachetools import LRUCache
from jaxtyping import Float
from torch import Tensor

from rome_core.errors import MomentError
from rome_core.files import ASSETS, cache_dir, write_whole
from rome_core.model.edits import Update
from rome_core.model.generation import sample_texts
from rome_core.model.hooks import Point, activations, batch_of
from rome_core.model.language_model import Kept, LanguageModel
from rome_core.model.scoring import BATCH_TOKENS, chunks
from rome_core.model.tokens import text_ids
from rome_core.progress import Track, silent

SHIPPED = ASSETS / "moments"
MOMENTS = Kept["Moment"]("second moments", limit=8)
TEXT_TOKENS = 128  # length of a text the model writes
TEXTS_AT_ONCE = 128
TEXT_CACHE = 2**30  # bytes of keys and values that the texts written at once may take
ROWS_AT_ONCE = 256  # of C, where it is looked at in pieces
DEFAULT_TOKENS = 20_000  # 13 × d_mlp of the default model
ENOUGH = 10  # tokens in units of d_mlp; 2 to 10 are enough (arXiv 2506.04226)
SETTLED = 2  # fewer than so many are said to be few. Moved ordinary outputs: docs/scale.md


@dataclass(frozen=True, eq=False)
class Moment:
    """C of one layer: uncentred, padding excluded, float64, with what it was made from.

    Can be built from a matrix of one's own: Moment(layer=5, C=matrix, n_tokens=26_362, corpus="mine",
    fingerprint=lm.fingerprint). `replace(moment, C=matrix)` begins without factors, so that none is of another matrix.
    """

    layer: int
    C: Float[Tensor, "d_mlp d_mlp"]
    n_tokens: int
    corpus: str
    fingerprint: str
    seed: int | None = None
    _factors: LRUCache[float, Tensor] = field(default_factory=lambda: LRUCache(2), init=False, repr=False)  # by ridge
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __reduce__(self) -> tuple[type[Moment], tuple[object, ...]]:
        """Factors stay behind: who gets a copy computes those that it needs."""
        return Moment, (self.layer, self.C, self.n_tokens, self.corpus, self.fingerprint, self.seed)

    @cached_property
    def key(self) -> str:
        """A short hash of everything that this C is, its entries in single precision: the same after save and load."""
        about = (self.fingerprint, self.layer, self.n_tokens, self.corpus, self.seed)
        digest = hashlib.blake2b(repr(about).encode(), digest_size=8)
        for rows in self.C.detach().split(ROWS_AT_ONCE):
            digest.update(rows.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def source(self) -> str:
        """What it was made from, in words, and whether that is little."""
        made = f"{self.corpus}, {self.n_tokens:,} tokens"
        return f"{made} ({self.warning})" if self.warning else made

    @property
    def warning(self) -> str:
        """That it was made from fewer tokens than are enough; empty where they are enough."""
        times = self.n_tokens / len(self.C)
        return f"only {times:.1f} × d_mlp: edits disturb more than they need to" if times < SETTLED else ""

    def solve(self, keys: Float[Tensor, "d_mlp *n"], ridge: float) -> Float[Tensor, "d_mlp *n"]:
        """(C + ridge·tr(C)/d_mlp·I)⁻¹ keys in float64, by a Cholesky factor and never by an inverse."""
        keys = keys.cpu().double()
        columns = keys if keys.dim() == 2 else keys[:, None]
        solved = torch.cholesky_solve(columns, self.factor(ridge))
        return solved if keys.dim() == 2 else solved[:, 0]

    def factor(self, ridge: float) -> Float[Tensor, "d_mlp d_mlp"]:
        """Lower Cholesky factor of C + ridge·tr(C)/d_mlp·I, computed once. Raises MomentError if C is singular."""
        with self._lock:
            if ridge not in self._factors:
                C = self.C.double().clone()
                C.diagonal().add_(ridge * float(C.trace()) / len(C))
                # In place: C is symmetric, so its transpose is itself in the memory order that the factor needs.
                factor, failed = torch.linalg.cholesky_ex(C.mT, out=(C.mT, torch.empty(0, dtype=torch.int32)))
                if int(failed) or not bool(factor.sum().isfinite()):
                    raise MomentError(
                        f"C of layer {self.layer} is singular (made from {self.n_tokens:,} tokens, ridge {ridge:g}).",
                        "",
                        f"Use more than {len(C):,} tokens or a larger ridge.",
                    )
                self._factors[ridge] = factor
            return self._factors[ridge]

    @cached_property
    def eigen(self) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, "d_mlp d_mlp"]]:
        """Eigenvalues of C in ascending order and its eigenvectors as columns, float64."""
        values, vectors = torch.linalg.eigh(self.C.double())
        return values, vectors

    def check(self, lm: LanguageModel) -> None:
        """Raise MomentError unless this is a sound C of this very model."""
        if self.fingerprint != lm.fingerprint:
            raise MomentError(f"This C belongs to another model than '{lm.name}'.", "", "Compute it for this model.")
        if not 0 <= self.layer < lm.n_layers:
            raise MomentError(f"This C is of layer {self.layer}; '{lm.name}' has {lm.n_layers} layers.")
        if self.C.shape != (lm.d_mlp, lm.d_mlp):
            raise MomentError(f"C has shape {tuple(self.C.shape)}, keys of '{lm.name}' have {lm.d_mlp} entries.")
        if self.n_tokens < 1:
            raise MomentError("C was made from no tokens.", "", "Compute it again.")
        if self.n_tokens < lm.d_mlp:
            raise MomentError(
                f"C of layer {self.layer} was made from {self.n_tokens:,} tokens, fewer than the {lm.d_mlp:,} entries "
                "of a key, so it cannot be inverted.",
                "",
                f"Make it from at least {SETTLED} × {lm.d_mlp:,} tokens; {default_tokens(lm):,} are taken by default.",
            )
        if self._flaw:
            raise MomentError(self._flaw, "", "Compute it again.")

    @cached_property
    def _flaw(self) -> str:
        """What is wrong with the entries, if anything; every solve asks, and C does not change."""
        C = self.C
        blocks = [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(C), ROWS_AT_ONCE)]
        if not all(bool(C[rows].isfinite().all()) for rows in blocks):
            return "C has entries that are not finite."
        atol = 1e-6 * max(float(C[rows].abs().max()) for rows in blocks)
        symmetric = all(torch.allclose(C[rows], C[:, rows].T, rtol=1e-5, atol=atol) for rows in blocks)
        return "" if symmetric else "C is not symmetric."


def estimate_moment(
    lm: LanguageModel,
    layers: Sequence[int],
    n_tokens: int = 50_000,
    *,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    edits: Sequence[Update] = (),
    track: Track = silent,
) -> dict[int, Moment]:
    """C of several layers in one pass over text that stops after the last of them.

    texts: a corpus of one's own; without it the model writes the text (seeded sampling at temperature 1). Every token
    but padding counts. Memory: see `memory_needed`.
    """
    source = _source(lm, layers, n_tokens, seed, texts, edits, track)
    sums = _no_sums(lm, layers)
    *_, seen = _collect(lm, source, sums, n_tokens, edits, track)
    return {layer: source.moment(lm, layer, total.div_(seen), seen) for layer, total in sums.items()}


def moment_steps(
    lm: LanguageModel,
    layers: Sequence[int],
    n_tokens: int = 50_000,
    *,
    seed: int = 0,
    texts: Sequence[str] | None = None,
    edits: Sequence[Update] = (),
    track: Track = silent,
) -> Iterator[dict[int, Moment]]:
    """C as it grows: at every doubling of the number of tokens, and at the end. Each is a copy of its own."""
    source = _source(lm, layers, n_tokens, seed, texts, edits, track)
    sums = _no_sums(lm, layers)
    seen, shown = 0, 0

    def moments() -> dict[int, Moment]:
        return {layer: source.moment(lm, layer, total / seen, seen) for layer, total in sums.items()}

    for seen in _collect(lm, source, sums, n_tokens, edits, track):
        if seen >= 2 * shown:
            shown = seen
            yield moments()
    if shown != seen:
        yield moments()


@dataclass(frozen=True)
class _Text:
    """Token rows that C is made from, and what is said of them."""

    rows: Sequence[tuple[int, ...]]
    corpus: str
    seed: int | None

    def moment(self, lm: LanguageModel, layer: int, C: Float[Tensor, "d_mlp d_mlp"], seen: int) -> Moment:
        return Moment(layer, C, seen, self.corpus, lm.fingerprint, self.seed)


def _source(
    lm: LanguageModel,
    layers: Sequence[int],
    n_tokens: int,
    seed: int,
    texts: Sequence[str] | None,
    edits: Sequence[Update],
    track: Track,
) -> _Text:
    if outside := [layer for layer in layers if not 0 <= layer < lm.n_layers]:
        raise MomentError(f"Layer {outside[0]} does not exist.", "", f"'{lm.name}' has layers 0 to {lm.n_layers - 1}.")
    if not layers or n_tokens < 1:
        raise MomentError(f"C of {len(layers)} layers from {n_tokens:,} tokens is nothing.", "", "Name one of each.")
    own = texts is None
    source = self_written_texts(lm, n_tokens, seed, edits=edits, track=track) if texts is None else list(texts)
    rows = [ids for text in source if (ids := text_ids(lm.tokenizer, text)[: lm.max_positions])]
    digest = hashlib.blake2b("\0".join(source).encode(), digest_size=6).hexdigest()
    if not rows:
        raise MomentError("The texts hold no tokens.", "", "Give texts with words in them.")
    return _Text(rows, "self-written text" if own else f"{len(rows)} texts, {digest}", seed if own else None)


def _no_sums(lm: LanguageModel, layers: Sequence[int]) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    return {layer: torch.zeros(lm.d_mlp, lm.d_mlp, dtype=torch.float64) for layer in layers}


def _collect(
    lm: LanguageModel,
    source: _Text,
    sums: Mapping[int, Float[Tensor, "d_mlp d_mlp"]],
    n_tokens: int,
    edits: Sequence[Update],
    track: Track,
) -> Iterator[int]:
    """Add k kᵀ of every token to the sums in place; yields the number of tokens so far, after every batch."""
    points, seen = {layer: Point("mlp_key", layer) for layer in sums}, 0
    parts = list(chunks(_first_tokens(source.rows, n_tokens), len))
    for chunk in track(parts, "Collecting keys", len(parts)):
        batch = batch_of(lm, chunk)
        kept = activations(lm, batch, list(points.values()), edits=edits)
        for layer, point in points.items():
            keys = kept.pop(point)[batch.mask].cpu().double()
            sums[layer].addmm_(keys.T, keys)
        seen += int(batch.mask.sum())
        yield seen


def memory_needed(lm: LanguageModel, layers: Sequence[int], steps: int = 0) -> int:
    """Bytes that collecting C of these layers takes besides the model and a forward pass: one float64 sum a layer, a
    batch of keys of every layer in the model's precision, and one layer's of them in float64 (and once more in the
    model's, without the padding).

    steps: copies of C that are kept beside, such as steps of `moment_steps` and their factors.
    """
    sums = 8 * lm.d_mlp**2 * len(layers) * (1 + steps)
    keys = BATCH_TOKENS * lm.d_mlp * lm.dtype.itemsize
    return sums + keys * (len(layers) + 1) + 8 * BATCH_TOKENS * lm.d_mlp


def factor_memory(lm: LanguageModel) -> int:
    """Bytes that a Cholesky factor of C takes beside C: it is made in place, in a copy of C."""
    return 8 * lm.d_mlp**2


def convergence(steps: Iterable[Moment], keys: Float[Tensor, "n d_mlp"], ridge: float) -> Iterator[tuple[int, float]]:
    """How settled C is: (tokens, mean cosine between C_n⁻¹k and C_2n⁻¹k over some keys) for each doubling, as soon as
    the next one is there. No step is kept."""
    tokens, former = 0, None
    for moment in steps:
        solved = moment.solve(keys.T.cpu(), ridge)
        if former is not None:
            yield tokens, float(torch.cosine_similarity(former, solved, dim=0).mean())
        tokens, former = moment.n_tokens, solved


def self_written_texts(
    lm: LanguageModel, n_tokens: int, seed: int, *, edits: Sequence[Update] = (), track: Track = silent
) -> list[str]:
    """About n_tokens of text that the model writes, in batches that are kept on disk: another layer needs no new text.

    The unedited model's text depends on model, seed and batch alone. An edited model writes its own, which is not kept.
    """
    texts: list[str] = []
    written, batch = 0, 0
    while written < n_tokens:
        more = _written_batch(lm, seed, batch, edits, track)
        if not more:
            raise MomentError(f"'{lm.name}' writes no text from an empty page.", "", "Give texts of your own.")
        written += sum(len(text_ids(lm.tokenizer, text)) for text in more)
        texts += more
        batch += 1
    return texts


def _written_batch(lm: LanguageModel, seed: int, batch: int, edits: Sequence[Update], track: Track) -> list[str]:
    name = f"{lm.fingerprint}-seed{seed}-batch{batch}.json"
    folders = () if edits else (SHIPPED, cache_dir() / "moments")
    for folder in folders:
        if (folder / name).exists():
            return list(json.loads((folder / name).read_text(encoding="utf-8")))
    texts = sample_texts(lm, texts_at_once(lm), TEXT_TOKENS, seed=1_000 * seed + batch, edits=edits, track=track)
    if folders:
        written = json.dumps(texts, ensure_ascii=False)
        write_whole(folders[-1] / name, lambda part: part.write_text(written, encoding="utf-8"))
    return texts


def texts_at_once(lm: LanguageModel) -> int:
    """As many as have room for their keys and values in TEXT_CACHE. It depends on the model and its precision alone,
    never on what is free, because the text does."""
    config = lm.hf.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_text = 2 * lm.n_layers * heads * width * TEXT_TOKENS * lm.dtype.itemsize
    return max(1, min(TEXTS_AT_ONCE, TEXT_CACHE // a_text))


def _first_tokens(rows: Sequence[tuple[int, ...]], n_tokens: int) -> Iterator[tuple[int, ...]]:
    """Texts in the given order, up to n_tokens in all."""
    for row in rows:
        if n_tokens <= 0:
            break
        yield row[:n_tokens]
        n_tokens -= len(row)


def save_moment(moment: Moment, path: Path) -> None:
    """Write C as its upper triangle in float32, row by row, atomically."""
    C, d = moment.C, len(moment.C)
    upper, at = np.empty(d * (d + 1) // 2, dtype=np.float32), 0
    for row in range(d):
        upper[at : at + d - row] = C[row, row:].cpu().float().numpy()
        at += d - row
    about = {name: getattr(moment, name) for name in ("layer", "n_tokens", "corpus", "fingerprint")}
    seed = -1 if moment.seed is None else moment.seed

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, upper=upper, seed=seed, **about)

    write_whole(path, write)


def load_moment(path: Path, lm: LanguageModel) -> Moment:
    """Read a C and check it. Raises MomentError if it is damaged or belongs to another model."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            d = lm.d_mlp
            upper, at = torch.from_numpy(data["upper"]), 0
            if upper.shape != (d * (d + 1) // 2,):
                raise MomentError(f"'{path.name}' holds a C of another size than the keys of '{lm.name}'.")
            C = torch.zeros(d, d, dtype=torch.float64)
            for row in range(d):
                C[row, row:] = C[row:, row] = upper[at : at + d - row].double()
                at += d - row
            layer, n_tokens, seed = (int(data[name]) for name in ("layer", "n_tokens", "seed"))
            corpus, fingerprint = str(data["corpus"]), str(data["fingerprint"])
            moment = Moment(layer, C, n_tokens, corpus, fingerprint, None if seed < 0 else seed)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MomentError(f"'{path.name}' is not a readable C.", str(error)[:100], "Compute it again.") from None
    moment.check(lm)
    return moment


def kept_path(lm: LanguageModel, layer: int) -> Path:
    """Where the user's cache has C of a layer."""
    return cache_dir() / "moments" / f"{lm.fingerprint}-{layer}.npz"


def stored_moment(lm: LanguageModel, layer: int) -> Moment | None:
    """C of this model that is shipped with the project or in the user's cache, loaded once and shared by everybody who
    needs it; a damaged one is passed over."""
    for path in (SHIPPED / kept_path(lm, layer).name, kept_path(lm, layer)):
        if path.exists():
            try:
                return lm.remember(MOMENTS, (path, path.stat().st_mtime_ns), partial(load_moment, path, lm))
            except MomentError:
                continue
    return None


def default_tokens(lm: LanguageModel) -> int:
    """How many tokens C is made from unless one says otherwise: ten times a key's entries, and 20,000 at least."""
    return max(DEFAULT_TOKENS, ENOUGH * lm.d_mlp)


def moments_for(
    lm: LanguageModel, layers: Sequence[int], moments: Mapping[int, Moment] | None, track: Track = silent
) -> dict[int, Moment]:
    """The given moments, checked; or the shipped or cached ones; what is missing is estimated and kept in the cache."""
    if moments is not None:
        missing = [layer for layer in layers if layer not in moments]
        if missing:
            raise MomentError(f"No C was given for layer {missing[0]}.", "", "Pass moments=None to have it computed.")
        for layer in layers:
            moments[layer].check(lm)
            if moments[layer].layer != layer:
                raise MomentError(
                    f"The C given for layer {layer} is of layer {moments[layer].layer}.", "", "Pass {layer: C of it}."
                )
        return {layer: moments[layer] for layer in layers}
    found = {layer: stored for layer in layers if (stored := stored_moment(lm, layer)) is not None}
    if missing := [layer for layer in layers if layer not in found]:
        made = estimate_moment(lm, missing, default_tokens(lm), track=track)
        for layer in missing:
            save_moment(made.pop(layer), kept_path(lm, layer))  # popped, so that there are never two copies of it
            kept = stored_moment(lm, layer)  # as it is on the disk, so that nobody has another one
            if kept is None:
                raise MomentError(f"C of layer {layer} was made, but it cannot be read from '{kept_path(lm, layer)}'.")
            found[layer] = kept
    return found
