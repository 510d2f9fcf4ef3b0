"""ROME's closed form step by step, with one edit's numbers: every line of the derivation is an identity, and checked.

Meng et al. 2022, section 3.1 and appendix A: the least change of W on ordinary keys under which k* gets the value v*.
MEMIT relaxes the constraint (arXiv 2210.07229), EMMET asks for several at once (arXiv 2403.14236).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit
from rome_core.editing.method import Term
from rome_core.editing.second_moment import Moment
from rome_core.errors import EditError
from rome_core.model.edits import factors
from rome_core.model.language_model import LanguageModel

Matrix = Float[Tensor, "d_model d_mlp"]


@dataclass(frozen=True)
class Identity:
    """Two sides that must be equal (LaTeX), and how far apart they are, relative to the larger one."""

    formula: str
    error: float


@dataclass(frozen=True)
class Stage:
    """One step: its quantities, and what was checked."""

    name: str
    terms: tuple[Term, ...]
    identities: tuple[Identity, ...]


@dataclass(frozen=True, eq=False)
class Derivation:
    """What the steps are made of, in float64.

    k, v: k* and v*. k_0: the bare prompt's key. C: with the edit's ridge. solved: C⁻¹k*. residual: v* − W k*.
    alpha: k*ᵀC⁻¹k*. multiplier: λ = residual/alpha. delta: λ(C⁻¹k*)ᵀ, the document's update. own: the edit's update
    of the same matrix.
    """

    layer: int
    W: Matrix
    C: Float[Tensor, "d_mlp d_mlp"]
    k: Float[Tensor, " d_mlp"]
    k_0: Float[Tensor, " d_mlp"]
    v: Float[Tensor, " d_model"]
    solved: Float[Tensor, " d_mlp"]
    residual: Float[Tensor, " d_model"]
    alpha: float
    multiplier: Float[Tensor, " d_model"]
    delta: Matrix
    own: Matrix
    n_tokens: int

    def met_by_memit(self, weight: float) -> float:
        """Share of the residual that MEMIT's relaxation of one fact brings about, at C's weight λ: α/(λ + α)."""
        return self.alpha / (weight + self.alpha)

    @property
    def at_k_0(self) -> float:
        """k₀ᵀC⁻¹k*, what the authors' code divides by."""
        return float(self.k_0 @ self.solved)


def derive(lm: LanguageModel, edit: Edit, moment: Moment, below: Sequence[Edit] = ()) -> Derivation:
    """The derivation for one edit. moment: C of its layer. below: the edits that it was solved on top of.

    Raises EditError for edits that are not of one key and one value.
    """
    if not edit.config.single_key or edit.keys is None:
        raise EditError(
            f"The derivation is about one key and one value; '{edit.method}' has others.",
            "",
            "Choose an edit by ROME or one of its key policies.",
        )
    moment.check(lm)
    layer = edit.config.layers[-1]
    module = lm.down_projection(layer)
    W = lm.weight(layer).detach().cpu().double()
    if module in (written := factors(below)):
        W = W + written[module].matrix().cpu().double()
    k, k_0, v = (_first(vectors) for vectors in (edit.k_star, edit.k_0, edit.v_star))
    solved = moment.solve(k, edit.config.conditioning)
    residual, alpha = v - W @ k, float(k @ solved)
    C = moment.C.double().clone()
    C.diagonal().add_(edit.config.conditioning * float(C.trace()) / len(C))
    return Derivation(
        layer=layer,
        W=W,
        C=C,
        k=k,
        k_0=k_0,
        v=v,
        solved=solved,
        residual=residual,
        alpha=alpha,
        multiplier=residual / alpha,
        delta=torch.outer(residual / alpha, solved),
        own=factors([edit])[module].matrix().cpu().double(),
        n_tokens=moment.n_tokens,
    )


def _first(vectors: Tensor) -> Tensor:
    """The first request's vector of an edit that may hold several."""
    return vectors.reshape(-1, vectors.shape[-1])[0].cpu().double()


# ------------------------------------------------------------------------------------------------------------- steps


def stages(on: Derivation) -> tuple[Stage, ...]:
    """All steps in order. Their names are those of the functions below."""
    return tuple(
        Stage(make.__name__.strip("_"), *make(on))
        for make in (_problem, _gradient, _multiplier, _closed_form, _whitening, _denominator, _memit, _emmet, _edit)
    )


Parts = tuple[tuple[Term, ...], tuple[Identity, ...]]


def _problem(on: Derivation) -> Parts:
    plain = torch.outer(on.residual, on.k) / (on.k @ on.k)  # meets the constraint, too
    cost, of_plain, of_W = (_cost(matrix, on.C) for matrix in (on.delta, plain, on.W))
    terms = (
        Term(r"\lVert k^*\rVert", float(on.k.norm()), "the subject's key"),
        Term(r"\lVert v^*\rVert", float(on.v.norm()), "the value it shall get"),
        Term(r"\lVert W k^*\rVert", float((on.W @ on.k).norm()), "the value it gets now"),
        Term(
            r"\tfrac12\operatorname{tr}(\Delta C\Delta^\top)",
            cost / 2,
            "what the update costs on ordinary keys",
        ),
        Term(
            r"\operatorname{tr}(\Delta C\Delta^\top)/\operatorname{tr}(W C W^\top)",
            cost / of_W,
            "beside what W puts out there",
        ),
        Term(
            r"\text{along } k^*",
            of_plain / cost,
            "times that would an update straight along k* cost, with the same value at k*",
        ),
    )
    least = float(on.residual @ on.residual) / on.alpha
    return terms, (
        Identity(
            r"\operatorname{tr}(\Delta C\Delta^\top) = \lVert v^* - Wk^*\rVert^2 / k^{*\top}C^{-1}k^*",
            _apart(cost, least),
        ),
    )


def _gradient(on: Derivation) -> Parts:
    return (Term(r"\lVert\lambda\rVert", float(on.multiplier.norm()), "the multiplier"),), (
        Identity(r"\Delta C = \lambda k^{*\top}", _relative(on.delta @ on.C, torch.outer(on.multiplier, on.k))),
    )


def _multiplier(on: Derivation) -> Parts:
    terms = (
        Term(r"\lVert v^* - Wk^*\rVert", float(on.residual.norm()), "what is missing at the key"),
        Term(r"\alpha = k^{*\top}C^{-1}k^*", on.alpha, "a scalar"),
    )
    return terms, (
        Identity(r"Wk^* + \lambda\alpha = v^*", _relative(on.W @ on.k + on.multiplier * on.alpha, on.v)),
        Identity(r"\hat W k^* = v^*", _relative((on.W + on.delta) @ on.k, on.v)),
    )


def _closed_form(on: Derivation) -> Parts:
    values = torch.linalg.svdvals(on.delta)
    summed = on.C * on.n_tokens
    of_sum = torch.linalg.solve(summed, on.k)
    same = torch.outer(on.residual, of_sum) / float(on.k @ of_sum)
    norm = float(on.delta.norm())
    terms = (
        Term(r"\lVert\Delta\rVert_F", norm, "the update"),
        Term(r"\lVert\Delta\rVert_F/\lVert W\rVert_F", norm / float(on.W.norm()), "of the matrix it is added to"),
        Term(
            r"\sigma_2/\sigma_1", float(values[1] / values[0]), "its second singular value beside its first: rank one"
        ),
    )
    product = float(on.multiplier.norm() * on.solved.norm())
    return terms, (
        Identity(r"\lVert\Delta\rVert_F = \lVert\lambda\rVert\,\lVert C^{-1}k^*\rVert", _apart(norm, product)),
        Identity(r"\Delta(K_0K_0^\top) = \Delta(\mathbb E[kk^\top])", _relative(same, on.delta)),
    )


def _whitening(on: Derivation) -> Parts:
    L = torch.linalg.cholesky(on.C)
    white = torch.linalg.solve_triangular(L, on.k[:, None], upper=False)[:, 0]
    back = torch.linalg.solve_triangular(L.T, white[:, None], upper=True)[:, 0]
    least_norm = torch.outer(on.residual, back) / (white @ white)
    moved = torch.tensor([_cost(matrix, on.C) for matrix in (on.delta, on.W)]).sqrt()
    terms = (
        Term(
            r"\cos(k^*, C^{-1}k^*)",
            float(torch.cosine_similarity(on.k, on.solved, dim=0)),
            "how far whitening turns the key; 1 where all directions are equally common",
        ),
        Term(
            r"\lVert\Delta C^{1/2}\rVert_F/\lVert WC^{1/2}\rVert_F",
            float(moved[0] / moved[1]),
            "what ordinary outputs still move by: small, and not zero",
        ),
    )
    return terms, (
        Identity(
            r"\Delta = (v^*-Wk^*)\,\tilde k^\top L^{-1}/\lVert\tilde k\rVert^2,\ C = LL^\top,\ \tilde k = L^{-1}k^*",
            _relative(least_norm, on.delta),
        ),
    )


def _denominator(on: Derivation) -> Parts:
    residual = on.v - on.W @ on.k_0
    code = float(residual.norm() * on.solved.norm()) / abs(on.at_k_0)
    terms = (
        Term(r"k^{*\top}C^{-1}k^*", on.alpha, "what the derivation divides by"),
        Term(r"k_0^\top C^{-1}k^*", on.at_k_0, "what the authors' code divides by, k₀ the bare prompt's key"),
        Term(
            r"\lVert\Delta\rVert_F\text{ with }k_0",
            code,
            f"{code / float(on.delta.norm()):.3g} times the derivation's",
        ),
    )
    mixed = torch.outer(residual, on.solved) / on.at_k_0
    return terms, (Identity(r"\hat W_{\text{code}}\,k_0 = v^*", _relative((on.W + mixed) @ on.k_0, on.v)),)


def _memit(on: Derivation) -> Parts:
    weights = [share * on.alpha for share in (1.0, 0.1, 0.001)]
    terms = tuple(
        Term(rf"\lambda = {weight / on.alpha:g}\,\alpha", on.met_by_memit(weight), "of the residual is brought about")
        for weight in weights
    )
    relaxed = torch.linalg.solve(weights[1] * on.C + torch.outer(on.k, on.k), on.k)
    return terms, (
        Identity(
            r"(v^*-Wk^*)k^{*\top}(\lambda C + k^*k^{*\top})^{-1} = \tfrac{\alpha}{\lambda+\alpha}\,\Delta",
            _relative(torch.outer(on.residual, relaxed), on.met_by_memit(weights[1]) * on.delta),
        ),
    )


def _emmet(on: Derivation) -> Parts:
    single = on.residual[:, None] @ (on.solved[None] / on.alpha)
    one = Identity(r"\Delta_{\text{EMMET}} = \Delta\quad\text{for one fact}", _relative(single, on.delta))
    if _relative(on.k, on.k_0) < 1e-6:  # without prefixes both keys are one
        return (), (one,)
    K = torch.stack([on.k, on.k_0], 1)
    R = torch.stack([on.residual, on.v - on.W @ on.k_0], 1)
    solved = torch.linalg.solve(on.C, K)
    both = R @ torch.linalg.solve(K.T @ solved, solved.T)
    meaning = "the update that gives v* at k* and at the bare prompt's key k₀"
    return (Term(r"\lVert\Delta_{k^*,k_0}\rVert_F", float(both.norm()), meaning),), (
        one,
        Identity(r"\hat W K = V,\quad K = (k^*\ k_0)", _relative((on.W + both) @ K, torch.stack([on.v, on.v], 1))),
    )


def _edit(on: Derivation) -> Parts:
    apart = float((on.own - on.delta).norm() / on.delta.norm())
    cosine = float(torch.cosine_similarity(on.own.flatten(), on.delta.flatten(), dim=0))
    return (
        Term(
            r"\lVert\Delta_{\text{edit}}-\Delta\rVert_F/\lVert\Delta\rVert_F",
            apart,
            "how far this edit's own update is",
        ),
        Term(r"\cos(\Delta_{\text{edit}},\Delta)", cosine, "and its direction"),
    ), ()


def _cost(matrix: Matrix, C: Float[Tensor, "d_mlp d_mlp"]) -> float:
    """tr(M C Mᵀ): the mean of ‖M k‖² over ordinary keys."""
    return float(((matrix @ C) * matrix).sum())


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / torch.maximum(a.norm(), b.norm()).clamp(min=1e-300))


def _apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), 1e-300)
