"""Every number of an objective against dense matrices in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rome_core import METHODS, EditRequest, LanguageModel, Moment, Prompt, solve
from rome_core.diagnosis.objective import Account, account
from rome_core.editing.edit import Edit
from tests.tiny import REQUEST, plain_states, random_edit, subject_end, written

QUICK = {"prefixes": ("", "x. ", "So it is. "), "steps": 4, "clamp": 1.0, "ridge": 1e-12}
REQUESTS = (REQUEST, EditRequest(Prompt("The capital of {} is", "France"), "London", "Paris"))


def root(C: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(C)
    return (vectors * np.sqrt(values)) @ vectors.T


def term(found: Account, part: str) -> float:
    return next(one.value for one in found.terms if part in one.symbol)


@pytest.mark.parametrize("name", ["rome", "r-rome", "p-rome", "h-rome"])
def test_a_key_policy_against_dense_matrices(lm: LanguageModel, moments: dict[int, Moment], name: str) -> None:
    below = random_edit(lm, 1, size=0.02)  # in the same matrix
    edit = solve(lm, [REQUEST], METHODS[name](layer=1, **QUICK), moments=moments, edits=[below])
    found = account(lm, edit, [below], moments)
    (one,) = found.matrices

    W = lm.weight(1).detach().double().numpy()
    D, C = edit.deltas[0].matrix().numpy(), moments[1].C.numpy()
    assert one.layer == 1 and one.rank == np.linalg.matrix_rank(D, rtol=1e-6) == 1
    assert one.change == pytest.approx(np.linalg.norm(D @ root(C)), rel=1e-6)
    assert one.relative_change == pytest.approx(np.linalg.norm(D @ root(C)) / np.linalg.norm(W @ root(C)), rel=1e-6)
    assert one.relative_norm == pytest.approx(np.linalg.norm(D) / np.linalg.norm(W), rel=1e-6)

    k = (edit.k_0 if name == "rome" else edit.k_star).double().numpy()
    v = edit.v_star.double().numpy()
    reached = (W + below.deltas[0].matrix().numpy() + D) @ k
    assert term(found, r"\hat W") == pytest.approx(np.linalg.norm(reached - v) / np.linalg.norm(v), abs=1e-9)
    assert term(found, r"\hat W") < 1e-4 and one.missed is not None and one.missed < 1e-3
    smallest = np.linalg.norm(D @ k) / np.sqrt(k @ np.linalg.solve(C, k))
    assert one.least == pytest.approx(smallest, rel=1e-5)
    assert one.change == pytest.approx(smallest, rel=1e-4) if name != "rome" else one.change > 1.001 * smallest
    delta = edit.keys.delta.double().numpy()
    assert term(found, r"\Delta k_0") == pytest.approx(
        D @ edit.k_0.double().numpy() @ delta / (delta @ delta), rel=1e-6
    )
    assert bool(found.notes) == (name == "rome")


def test_n_rome_adds_the_value_at_both_keys(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    edit = solve(lm, [REQUEST], METHODS["n-rome"](layer=1, **QUICK), moments=moments)
    found = account(lm, edit, [], moments)

    assert term(found, r"\Delta k_0") == pytest.approx(1.0, abs=1e-3) and term(found, r"\hat W k^*") < 1e-4
    assert found.matrices[0].change > 1.001 * found.matrices[0].least  # type: ignore[operator]
    assert r"\Delta k_0 = \delta" in found.objective and "similar subjects" in found.notes[0]


def test_every_constraint_of_a_batch_counts(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    edit = solve(lm, REQUESTS, METHODS["emmet"](layer=1, slack=0.5, **QUICK), moments=moments)
    found = account(lm, edit, [], moments)

    W_hat = lm.weight(1).detach().double().numpy() + edit.deltas[0].matrix().numpy()
    K, V = edit.k_star.double().numpy().T, edit.v_star.double().numpy().T
    errors = np.linalg.norm(W_hat @ K - V, axis=0) / np.linalg.norm(V, axis=0)
    assert term(found, r"\hat W K") == pytest.approx(errors.max(), rel=1e-6)
    assert found.matrices[0].rank == 2 and errors.max() > 1e-3
    assert found.objective.endswith(r"\hat W K = V")


def test_memit_layer_by_layer(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    config = METHODS["memit"](layer=2, span=2, weight=0.5, **QUICK)
    edit = solve(lm, [REQUEST], config, moments=moments)
    found = account(lm, edit, [], moments)

    left = [state(lm, edit, done) for done in range(3)]
    for number, one in enumerate(found.matrices):
        k = edit.keys.by_layer[number + 1][:, 0].double().numpy()
        R = (edit.v_star[0].double().numpy() - left[number]) / (2 - number)
        D = edit.deltas[number].matrix().numpy()
        assert one.missed == pytest.approx(np.linalg.norm(R - D @ k) / np.linalg.norm(R), rel=1e-3)
        g = k @ np.linalg.solve(moments[number + 1].C.numpy(), k)
        assert one.missed == pytest.approx(0.5 / (0.5 + g), rel=1e-3)
    z = edit.v_star[0].double().numpy()
    share = np.linalg.norm(z - left[2]) / np.linalg.norm(z - left[0])
    assert term(found, r"\hat h") == pytest.approx(share, rel=1e-3)
    assert "limit λ → 0" in found.notes[0] and f"{1 - found.matrices[0].missed:.1%} in layer 1" in found.notes[0]  # type: ignore[operator]


def state(lm: LanguageModel, edit: Edit, done: int) -> np.ndarray:
    """The bare prompt's state at the last edited block with the first updates written into the weights."""
    ids, at = subject_end(lm, REQUEST.prompt)
    partly = written(lm, replace(edit, deltas=edit.deltas[:done]))
    return plain_states(partly, ids, lm.layout.block(2))[1][at].double().numpy()


def test_alphaedit_and_methods_without_keys_or_c(
    lm: LanguageModel, moments: dict[int, Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rome_core.diagnosis.objective.stored_moment", lambda lm, layer: None)
    config = METHODS["alphaedit"](layer=1, span=1, energy=0.5, **QUICK)
    found = account(lm, solve(lm, [REQUEST], config, moments=moments), [], moments)
    values = np.linalg.eigvalsh(moments[1].C.numpy())
    assert term(found, r"\operatorname") == (np.cumsum(values) / values.sum() <= 0.5).sum()
    assert found.matrices[0].change > found.matrices[0].least  # type: ignore[operator]

    config: Any = METHODS["ft-l"](layer=1, steps=2, epsilon=1e-3)
    bare = account(lm, solve(lm, [REQUEST], config, moments=None), [], None)
    assert bare.objective == config.formula
    assert bare.matrices[0].change is None and bare.matrices[0].missed is None
    assert 0 < term(bare, r"\infty") <= 1e-3 * (1 + 1e-6) and term(bare, "varepsilon") == 1e-3
