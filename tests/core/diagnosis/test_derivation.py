"""The derivation against a solver that knows the problem alone, and its lines against what must break them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core import METHODS, EditError, LanguageModel, Moment, solve
from rome_core.diagnosis.derivation import Derivation, derive, stages
from tests.tiny import REQUEST, random_edit

QUICK = {"prefixes": ("", "x. ", "So it is. "), "steps": 4, "clamp": 1.0, "ridge": 1e-6}


@pytest.fixture(scope="module")
def derived(lm: LanguageModel, moments: dict[int, Moment]) -> Derivation:
    below = random_edit(lm, 1, size=0.02)  # in the same matrix
    edit = solve(lm, [REQUEST], METHODS["r-rome"](layer=1, **QUICK), moments=moments, edits=[below])
    return derive(lm, edit, moments[1], [below])


def term(on: Derivation, stage: str, symbol: str) -> float:
    (found,) = [one for one in stages(on) if one.name == stage]
    return next(one.value for one in found.terms if symbol in one.symbol)


def test_the_update_solves_the_constrained_least_squares_problem(
    derived: Derivation, lm: LanguageModel, moments: dict[int, Moment]
) -> None:
    """Each row of Δ is the minimum of ½ d C dᵀ under d k* = r: the saddle point of its Lagrangian, by one solve."""
    C = moments[1].C.double().numpy()
    C = C + np.eye(len(C)) * 1e-6 * np.trace(C) / len(C)
    k, r = derived.k.numpy(), derived.residual.numpy()
    saddle = np.block([[C, k[:, None]], [k[None], np.zeros((1, 1))]])
    right = np.concatenate([np.zeros((len(C), len(r))), r[None]])

    solution = np.linalg.solve(saddle, right)

    np.testing.assert_allclose(derived.delta.numpy(), solution[:-1].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(derived.multiplier.numpy(), -solution[-1], rtol=1e-6, atol=1e-9)
    W = lm.weight(1).detach().double()
    assert not torch.allclose(derived.W, W), "the edit below counts"


def test_no_other_update_that_meets_the_constraint_costs_less(derived: Derivation) -> None:
    cost = term(derived, "problem", r"\tfrac12")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(derived.delta.shape, generator=generator, dtype=torch.float64)
        other = derived.delta + other - torch.outer(other @ derived.k, derived.k) / (derived.k @ derived.k)
        torch.testing.assert_close(other @ derived.k, derived.residual)
        assert 0.5 * float(((other @ derived.C) * other).sum()) > cost
    assert term(derived, "problem", "along") >= 1


def test_every_identity_holds_to_rounding(derived: Derivation) -> None:
    found = [identity for stage in stages(derived) for identity in stage.identities]

    assert len(found) == 11
    assert max(identity.error for identity in found) < 1e-8, found


@pytest.mark.parametrize("field", ["k", "v", "solved", "delta", "alpha"])
def test_a_wrong_quantity_breaks_an_identity(derived: Derivation, field: str) -> None:
    wrong = replace(derived, **{field: getattr(derived, field) * 1.01})

    errors = [identity.error for stage in stages(wrong) for identity in stage.identities]
    assert max(errors) > 1e-3


def test_memits_relaxation_tends_to_the_constraint_and_is_not_it(derived: Derivation) -> None:
    assert derived.met_by_memit(derived.alpha) == pytest.approx(0.5)
    assert derived.met_by_memit(1e-9 * derived.alpha) == pytest.approx(1.0)
    assert derived.met_by_memit(0.01 * derived.alpha) < 1


def test_it_says_how_far_the_edits_own_update_is(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    homogeneous = solve(lm, [REQUEST], METHODS["r-rome"](layer=1, **QUICK), moments=moments)
    authors = solve(lm, [REQUEST], METHODS["rome"](layer=1, **QUICK), moments=moments)

    same, other = (derive(lm, edit, moments[1]) for edit in (homogeneous, authors))

    assert term(same, "edit", "lVert") < 1e-4, "in single precision"
    assert term(other, "edit", "lVert") > 0.01
    code = term(other, "denominator", "with }k_0")
    assert code == pytest.approx(float(other.own.norm()), rel=1e-3), "the authors' code, from its own formula"


def test_without_prefixes_both_keys_are_one(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    edit = solve(lm, [REQUEST], METHODS["r-rome"](layer=1, **{**QUICK, "prefixes": ("",)}), moments=moments)

    (emmet,) = [stage for stage in stages(derive(lm, edit, moments[1])) if stage.name == "emmet"]
    assert len(emmet.identities) == 1 and emmet.identities[0].error < 1e-8


def test_other_edits_are_refused_in_a_sentence(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    with pytest.raises(EditError, match="one key and one value"):
        derive(lm, solve(lm, [REQUEST], METHODS["ft-m"](layer=1, steps=1)), moments[1])
