"""MEMIT, EMMET and AlphaEdit against the equations of SPEC, solved plainly with numpy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core import METHODS, EditError, EditRequest, LanguageModel, Moment, Prompt, solve
from rome_core.editing.edit import Edit, make_edit
from rome_core.editing.methods.alphaedit import null_space
from rome_core.editing.methods.least_squares import least_squares, mean_key
from rome_core.editing.value import prompts_of
from rome_core.editing.value_search import states_at
from rome_core.model.hooks import Point, batch_of, next_logits
from tests.tiny import REQUEST, random_edit, random_moment, tiny_model, tiny_tokenizer

PREFIXES = ("", "x. ", "So it is. ")
REQUESTS = (
    REQUEST,
    EditRequest(Prompt("The capital of {} is", "France"), "London", "Paris"),
    EditRequest(Prompt("{} plays the sport of", "LeBron James"), "golf", "basketball"),
)
IDS = tuple(tiny_tokenizer()("The Eiffel Tower is located in")["input_ids"])
QUICK = {"prefixes": PREFIXES, "steps": 4, "clamp": 1.0}


def weight(lm: LanguageModel, layer: int) -> np.ndarray:
    return lm.weight(layer).double().numpy()


def problem(lm: LanguageModel, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random residuals [d_model n] and keys [d_mlp n]."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((lm.d_model, n), (lm.d_mlp, n))
    R, K = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return R, K


def test_least_squares_is_the_papers_equation(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    R, K = problem(lm, 3)
    C, k, r = moments[1].C.numpy(), K.numpy(), R.numpy()

    found = least_squares("m", R, K, moments[1], 0.0, 0.7).matrix().numpy()

    plain = r @ k.T @ np.linalg.inv(0.7 * C + k @ k.T)
    np.testing.assert_allclose(found, plain, rtol=1e-8, atol=1e-10)


def test_least_squares_tends_to_the_equality_constraint(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    R, K = problem(lm, 3)
    exact = least_squares("m", R, K, moments[1], 0.0, 0.0).matrix()
    errors = [
        float((least_squares("m", R, K, moments[1], 0.0, weight).matrix() - exact).norm() / exact.norm())
        for weight in (1.0, 1e-3, 1e-6)
    ]

    assert torch.allclose(exact @ K, R, atol=1e-9)
    assert errors[0] > 1e-3 > errors[1] > errors[2] and errors[2] < 1e-6


def test_emmet_is_invariant_to_the_scale_of_c(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    R, K = problem(lm, 3)
    scaled = Moment(1, 1e4 * moments[1].C, 100, "scaled", lm.fingerprint)

    one, two = (least_squares("m", R, K, moment, 1e-6, 0.0).matrix() for moment in (moments[1], scaled))

    assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)


def test_equal_keys_without_slack_are_one_sentence(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    R, K = problem(lm, 2)

    with pytest.raises(EditError, match="cannot be told apart"):
        least_squares("m", R, torch.zeros_like(K), moments[1], 0.0, 0.0)


def test_emmet_with_one_edit_is_the_homogeneous_form(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    one, two = (solve(lm, [REQUEST], METHODS[name](layer=1, **QUICK), moments=moments) for name in ("emmet", "h-rome"))

    assert torch.allclose(one.deltas[0].matrix(), two.deltas[0].matrix(), rtol=1e-5, atol=1e-7)
    assert [step.loss for step in one.history] == [step.loss for step in two.history]


def test_every_constraint_of_emmet_holds(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    edit = solve(lm, REQUESTS, METHODS["emmet"](layer=1, slack=0.0, **QUICK), moments=moments)

    W_hat = weight(lm, 1) + edit.deltas[0].matrix().numpy()
    np.testing.assert_allclose(W_hat @ edit.k_star.numpy().T, edit.v_star.numpy().T, rtol=1e-4, atol=1e-5)
    assert edit.requests == REQUESTS


def test_memit_on_one_layer_tends_to_emmets_equality(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    config = METHODS["memit"](layer=1, span=1, weight=1e-9, **QUICK)
    edit = solve(lm, REQUESTS, config, moments=moments)

    K = edit.keys.by_layer[1]
    reached = edit.deltas[0].matrix() @ K.double()
    # One layer, the bare prompt's residual stream: what is missing is exactly δ.
    assert torch.allclose(reached, (edit.v_star - edit.v_0).T.double(), rtol=1e-3, atol=1e-5)


def test_memit_spreads_what_is_left_over_the_layers(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    """Layer by layer with full passes, from algorithm 1 of the paper."""
    below = random_edit(lm, 0, size=0.02)
    config = METHODS["memit"](layer=2, span=2, weight=0.5, ridge=0.0, **QUICK)
    edit = solve(lm, REQUESTS, config, moments=moments, edits=[below])

    done: list[Edit] = [below]
    prompts = [prompts_of(lm, request, PREFIXES) for request in REQUESTS]
    for index, layer in enumerate((1, 2)):
        k = np.stack(
            [mean_key(states_at(lm, p, [Point("mlp_key", layer)], done)[0][p.rows]).numpy() for p in prompts], 1
        )
        h = np.stack([states_at(lm, p, [Point("resid_post", 2)], done)[0][0].numpy() for p in prompts], 1)
        r = (edit.v_star.numpy().T - h) / (2 - index)
        C = moments[layer].C.numpy()
        plain = r @ k.T @ np.linalg.inv(0.5 * C + k @ k.T)
        np.testing.assert_allclose(edit.deltas[index].matrix().numpy(), plain, rtol=2e-3, atol=1e-5)
        done = [below, replace(edit, deltas=edit.deltas[: index + 1])]


def test_a_key_weighs_the_bare_prompt_by_half(lm: LanguageModel) -> None:
    prompts = prompts_of(lm, REQUEST, PREFIXES)
    (rows,) = states_at(lm, prompts, [Point("mlp_key", 1)], [])

    assert torch.allclose(mean_key(rows[prompts.rows]), rows[0] / 2 + (rows[1] + rows[2]) / 4, atol=1e-6)


def test_alphaedit_leaves_the_kept_space_alone(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    config = METHODS["alphaedit"](layer=1, span=1, energy=0.3, weight=1e-6, **QUICK)
    edit = solve(lm, REQUESTS, config, moments=moments)

    Q = null_space(moments[1], 0.3)
    kept = torch.eye(lm.d_mlp, dtype=torch.float64) - Q @ Q.T
    delta = edit.deltas[0].matrix()
    assert 0 < Q.shape[1] < lm.d_mlp
    assert float((delta @ kept).norm()) < 1e-6 * float(delta.norm())  # of the factors, kept in float32
    values = torch.linalg.eigvalsh(moments[1].C)
    assert (
        float(values[: Q.shape[1]].sum() / values.sum()) <= 0.3 < float(values[: Q.shape[1] + 1].sum() / values.sum())
    )


def test_alphaedit_is_the_papers_equation_with_earlier_keys(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    R, K = problem(lm, 2)
    earlier = problem(lm, 1, seed=5)[1]
    config = METHODS["alphaedit"](energy=0.4, weight=0.01)

    found = config.layer_update("m", R, K, moments[1], earlier).matrix().numpy()

    Q = null_space(moments[1], 0.4).numpy()
    P, k, kp = Q @ Q.T, K.numpy(), earlier.numpy()
    scale = 0.01 * np.square(P @ k).sum(0).mean()
    plain = R.numpy() @ k.T @ P @ np.linalg.inv(kp @ kp.T @ P + k @ k.T @ P + scale * np.eye(len(P)))
    np.testing.assert_allclose(found, plain, rtol=1e-7, atol=1e-10)


def test_alphaedit_spares_the_facts_it_edited_before(lm: LanguageModel, moments: dict[int, Moment]) -> None:
    config = METHODS["alphaedit"](layer=1, span=1, energy=0.5, weight=1e-6, **QUICK)
    first = solve(lm, REQUESTS[:1], config, moments=moments)
    key = first.keys.by_layer[1]

    alone = solve(lm, REQUESTS[1:2], config, moments=moments, edits=[])
    after = solve(lm, REQUESTS[1:2], config, moments=moments, edits=[first])

    moved = [float((edit.deltas[0].matrix() @ key.double()).norm()) for edit in (after, alone)]
    assert moved[0] < 0.1 * moved[1]


def test_a_spread_over_more_layers_than_there_are_takes_those_there_are(
    lm: LanguageModel, moments: dict[int, Moment]
) -> None:
    edit = solve(lm, [REQUEST], METHODS["memit"](layer=1, span=3, **QUICK), moments=moments)

    assert edit.config.layers == [0, 1]
    assert [delta.module for delta in edit.deltas] == [lm.down_projection(layer) for layer in (0, 1)]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["r-rome", "n-rome", "memit", "ft-m"])
def test_an_edit_in_half_precision_is_finite_however_small_c_is(family: str, dtype: torch.dtype, method: str) -> None:
    """C of small keys makes C⁻¹k larger than float16 can hold; what is added at k* is v* all the same."""
    lm = tiny_model(family, dtype=dtype)
    moments = {layer: replace(m := random_moment(lm, layer), C=1e-7 * m.C) for layer in range(lm.n_layers)}
    config = METHODS[method](layer=2, **(QUICK if method != "ft-m" else {"steps": 4}))

    edit = solve(lm, [REQUEST], config, moments=moments)

    logits = next_logits(lm, batch_of(lm, [IDS]), edits=[edit])
    assert bool(logits.isfinite().all()) and not torch.equal(logits, next_logits(lm, batch_of(lm, [IDS])))
    if method == "r-rome":
        exact, applied = (
            term for term in edit.config.terms(lm, edit, [], lambda layer: None) if "hat W" in term.symbol
        )
        eps = torch.finfo(dtype).eps
        assert exact.value < eps  # what is left is of v_0, which the model itself has rounded
        assert 0 < applied.value < 4 * eps and str(dtype).removeprefix("torch.") in applied.meaning


def test_an_update_that_is_not_finite_is_never_given_out(lm: LanguageModel) -> None:
    delta, config, half = random_edit(lm).deltas[0], METHODS["r-rome"](layer=1), tiny_model(dtype=torch.float16)
    no_number, too_large = replace(delta, U=delta.U * torch.nan), replace(delta, U=1e12 * delta.U)

    with pytest.raises(EditError, match="is not finite in float32"):
        make_edit(lm, [REQUEST], config, (no_number,), [])
    with pytest.raises(EditError, match="is not finite in float16"):
        make_edit(half, [REQUEST], config, (too_large,), [])
    make_edit(lm, [REQUEST], config, (too_large,), [])
