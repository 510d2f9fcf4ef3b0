"""The ROME family: every policy's update written out in numpy from keys, W and C that were collected by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.editing.edit import Edit, PromptKeys
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.methods.n_rome import other_keys
from rome_core.editing.methods.rome import RomePolicy, Terms, rank_one
from rome_core.editing.second_moment import Moment
from rome_core.editing.shared_search import repolicy
from rome_core.errors import EditError, MomentError
from rome_core.facts.datasets import load_facts
from rome_core.facts.namesakes import make_namesakes
from rome_core.model.language_model import LanguageModel
from rome_core.model.scoring import continuation_probabilities
from tests.tiny import REQUEST, plain_key, plain_states, random_edit, random_moment, tiny_model, written

PREFIXES = ("", "x. ", "The green dragon is far away. ")
LAYER, RIDGE = 1, 1e-3
POLICIES = ("rome", "r-rome", "p-rome", "c-rome", "h-rome", "n-rome")
each_policy = pytest.mark.parametrize("policy", POLICIES)


def config(policy: str, **changes):
    settings = {"layer": LAYER, "clamp": 2.0, "steps": 4, "lr": 0.2, "ridge": RIDGE, "prefixes": PREFIXES}
    return METHODS[policy](**{**settings, **changes})


def solved(lm: LanguageModel, policy: str, **changes) -> Edit:
    return solve(lm, [REQUEST], config(policy, **changes), moments={LAYER: random_moment(lm, LAYER)})


def subject_keys(lm: LanguageModel, prefixes=PREFIXES, prompt=REQUEST.prompt) -> np.ndarray:
    """Keys at the subject's last token behind each prefix, one prompt at a time: [prefixes d_mlp]."""
    return np.stack([plain_key(lm, prompt, LAYER, prefix).double().numpy() for prefix in prefixes])


def _ridged(C: np.ndarray) -> np.ndarray:
    return C + RIDGE * np.trace(C) / len(C) * np.eye(len(C))


def expected_update(
    policy: str,
    W: np.ndarray,
    C: np.ndarray,
    keys: np.ndarray,
    k_0: np.ndarray,
    delta: np.ndarray,
    held: np.ndarray,
    alike: np.ndarray,
):
    """Δ, k and v of W_hat k = v, as the papers write them (SPEC section 2). held: keys of other subjects; alike: of
    namesakes."""
    inverse = np.linalg.inv(_ridged(C))
    k_star, v_star = keys.mean(0), W @ k_0 + delta  # v* = v_0 + δ, and v_0 is W k_0

    def update(residual: np.ndarray, direction: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        u = inverse @ direction
        return np.outer(residual, u) / (denominator @ u)

    match policy:
        case "rome":
            return update(v_star - W @ k_0, k_star, k_0), k_0, v_star
        case "r-rome" | "c-rome":
            return update(v_star - (W @ keys.T).mean(1), k_star, k_star), k_star, v_star
        case "p-rome":
            return update(v_star - W @ k_0, k_0, k_0), k_0, v_star
        case "h-rome":  # δ is added at the mean key
            return update(delta, k_star, k_star), k_star, W @ k_star + delta
        case _:  # n-rome: at the mean key and at k_0, by a C that counts other subjects, too
            likeness = np.abs(held @ inverse @ k_star) / np.sqrt(np.einsum("nd,de,ne->n", held, inverse, held))
            held = held[np.argsort(-likeness)[:150]]
            C_T = C + 10 * held.T @ held / len(held) + 0.1 * alike.T @ alike / len(alike)
            inverse = np.linalg.inv(_ridged(C_T))
            K = np.stack([k_0, k_star], 1)
            smallest = np.outer(delta, np.ones(2)) @ np.linalg.inv(K.T @ inverse @ K) @ K.T @ inverse
            return smallest, k_star, W @ k_star + delta


@each_policy
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
def test_the_update_is_the_papers(policy: str, family: str) -> None:
    lm = tiny_model(family)
    edit = solved(lm, policy)

    keys, W = subject_keys(lm), lm.weight(LAYER).double().numpy()
    delta = edit.keys.delta.double().numpy()
    held = other_keys(lm, REQUEST, LAYER).double().numpy()
    alike = np.concatenate([subject_keys(lm, [""], one) for one in make_namesakes(REQUEST.prompt, 40)])
    C = random_moment(lm, LAYER).C.numpy()
    expected, k, v = expected_update(policy, W, C, keys, keys[0], delta, held, alike)

    (update,) = edit.deltas
    size = np.abs(expected).max()
    assert update.module == lm.layout.module("mlp_out", LAYER)
    assert update.U.shape == (16, 1) and update.V.shape == (1, 24)
    np.testing.assert_allclose(update.matrix(), expected, rtol=1e-3, atol=1e-4 * size)
    np.testing.assert_allclose(edit.k_0, keys[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(edit.k_star, k if policy != "rome" else keys.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(edit.v_star, v, rtol=1e-3, atol=1e-3)
    assert edit.delta_norm == pytest.approx(np.linalg.norm(expected), rel=1e-3)
    # W_hat k = v* within 1e-4 relative, at the key where the policy asks for it.
    assert np.linalg.norm((W + update.matrix().numpy()) @ k - v) < 1e-4 * np.linalg.norm(v)


def float64_case(seed: int = 0) -> tuple[LanguageModel, Moment, PromptKeys, torch.Tensor]:
    """Random keys and values in float64 on a model that is only asked for its size."""
    lm = tiny_model()
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(16, 24, generator=draw, dtype=torch.float64)
    keys = torch.randn(5, 24, generator=draw, dtype=torch.float64)
    delta = torch.randn(16, generator=draw, dtype=torch.float64)
    found = PromptKeys(keys, keys @ W.T, keys[0], W @ keys[0], torch.zeros(16).double())
    return lm, random_moment(lm, LAYER), found, delta


def policy_terms(policy: str, keys: PromptKeys, delta: torch.Tensor) -> Terms:
    config = METHODS[policy]()
    assert isinstance(config, RomePolicy)
    return config.key_terms(keys, delta)


@each_policy
def test_identities_in_float64(policy: str) -> None:
    _, moment, keys, delta = float64_case()
    terms = policy_terms(policy, keys, delta)
    W = torch.linalg.lstsq(keys.keys, keys.values).solution.T  # any W with these values: W k_i = v_i

    update = rank_one("m", terms, moment, RIDGE).matrix()

    asked = terms.denominator
    torch.testing.assert_close((W + update) @ asked, W @ asked + terms.residual[:, None], rtol=1e-12, atol=1e-12)
    assert int(torch.linalg.matrix_rank(update)) == 1
    assert rank_one("m", terms, moment, RIDGE).U.dtype == torch.float64


@each_policy
def test_c_equal_to_the_identity_moves_along_the_keys(policy: str) -> None:
    _, moment, keys, delta = float64_case()
    terms = policy_terms(policy, keys, delta)

    update = rank_one("m", terms, replace(moment, C=torch.eye(24).double()), 0.0).matrix()

    K = terms.direction
    plain = terms.residual[:, None] @ torch.linalg.inv(terms.denominator.T @ K).sum(1)[None] @ K.T
    torch.testing.assert_close(update, plain, rtol=1e-11, atol=1e-12)
    off_keys = torch.eye(24).double() - K @ torch.linalg.pinv(K)
    torch.testing.assert_close(update @ off_keys, torch.zeros(16, 24).double(), rtol=0, atol=1e-12)


@each_policy
def test_scaling_c_changes_nothing(policy: str) -> None:
    _, moment, keys, delta = float64_case()
    terms = policy_terms(policy, keys, delta)

    one, other = (rank_one("m", terms, replace(moment, C=scale * moment.C), RIDGE).matrix() for scale in (1.0, 1e3))

    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_authors_form_with_a_normalised_direction_is_the_same() -> None:
    """left = C⁻¹k* normalised, right = (v* − W k_0) / (k_0·left): the authors' code, against `rome`."""
    _, moment, keys, delta = float64_case()
    left = np.linalg.solve(moment.C.numpy(), keys.keys.mean(0).numpy())
    left /= np.linalg.norm(left)
    right = delta.numpy() / (keys.k_0.numpy() @ left)

    update = rank_one("m", policy_terms("rome", keys, delta), moment, 0.0).matrix()

    np.testing.assert_allclose(update, np.outer(right, left), rtol=1e-10)


def test_with_one_bare_prompt_all_policies_are_one() -> None:
    _, moment, keys, delta = float64_case()
    one = PromptKeys(keys.keys[:1], keys.values[:1], keys.k_0, keys.v_0, keys.bias)

    first, *others = (rank_one("m", policy_terms(policy, one, delta), moment, RIDGE).matrix() for policy in POLICIES)

    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-10, atol=1e-12)


def test_rome_explodes_where_the_bare_key_is_far_from_the_others() -> None:
    """k_0ᵀC⁻¹k* near 0: the published form divides by it, the others do not."""
    _, moment, keys, delta = float64_case()
    k_star = keys.keys.mean(0)
    u = torch.linalg.solve(moment.C, k_star)
    k_0 = keys.k_0 - (keys.k_0 @ u) / (k_star @ u) * k_star * (1 - 1e-6)
    far = replace(keys, k_0=k_0)

    sizes = {p: float(rank_one("m", policy_terms(p, far, delta), moment, 0.0).matrix().norm()) for p in POLICIES}

    assert all(sizes["rome"] > 1e3 * sizes[policy] for policy in POLICIES[1:])


def test_a_key_without_extent_has_a_sentence() -> None:
    _, moment, keys, delta = float64_case()
    none = replace(keys, keys=0 * keys.keys, k_0=0 * keys.k_0)

    with pytest.raises(EditError, match="The key has no extent"):
        rank_one("m", policy_terms("r-rome", none, delta), moment, RIDGE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_raises_its_target_and_the_model_stays_as_it_was(family: str) -> None:
    lm = tiny_model(family)
    text, weights = REQUEST.prompt.text, copy.deepcopy(lm.hf.state_dict())
    (before,) = continuation_probabilities(lm, text, [" Rome"])

    edit = solved(lm, "r-rome", steps=20, clamp=8.0, lr=0.5, prefixes=("",))

    (after,) = continuation_probabilities(lm, text, [" Rome"], edits=[edit])
    assert after > 3 * before  # as far as one MLP of a random model reaches
    assert edit.history[-1].p_target > 3 * edit.history[0].p_target == pytest.approx(3 * before, rel=1e-3)
    assert continuation_probabilities(lm, text, [" Rome"]) == [before]
    assert all(torch.equal(weights[name], value) for name, value in lm.hf.state_dict().items())


def test_the_edit_knows_everything_about_itself() -> None:
    lm = tiny_model()
    edit = solved(lm, "r-rome")

    assert edit.requests == (REQUEST,) and edit.method == "r-rome" and edit.base == lm.fingerprint
    assert edit.config == config("r-rome")
    assert edit.on == () and len(edit.history) == 4 and edit.corpus == "random numbers, 96 tokens"
    assert solved(lm, "r-rome").id == edit.id  # nothing random is left


@pytest.mark.parametrize("layer", [0, LAYER], ids=["below", "same layer"])
def test_solving_on_other_edits_is_solving_on_the_merged_model(layer: int) -> None:
    lm = tiny_model()
    first = random_edit(lm, layer)
    other = written(lm, first)
    moments = {LAYER: random_moment(lm, LAYER)}
    expected = solve(other, [REQUEST], config("r-rome"), moments={LAYER: random_moment(other, LAYER)})

    found = solve(lm, [REQUEST], config("r-rome"), moments=moments, edits=[first])

    assert found.on == (first.id,) and found.base == lm.fingerprint
    torch.testing.assert_close(found.k_star, expected.k_star, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.v_star, expected.v_star, rtol=1e-2, atol=1e-2)
    distance = (found.deltas[0].matrix() - expected.deltas[0].matrix()).norm()
    assert distance < 1e-2 * expected.delta_norm
    alone = solve(lm, [REQUEST], config("r-rome"), moments=moments)
    assert (alone.k_star - found.k_star).norm() > 1e-2 * found.k_star.norm() or layer == LAYER


@pytest.mark.parametrize("policy", ["s-rome", "memit"])
def test_a_method_without_a_single_key_is_no_other_policy(policy: str) -> None:
    lm = tiny_model()

    with pytest.raises(EditError, match=f"An edit by 'r-rome' cannot be turned into '{policy}'"):
        repolicy(lm, random_edit(lm), policy)


def test_a_c_of_another_layer_or_model_is_refused() -> None:
    lm = tiny_model()
    with pytest.raises(MomentError, match="No C was given for layer 1"):
        solve(lm, [REQUEST], config("r-rome"), moments={2: random_moment(lm, 2)})
    with pytest.raises(MomentError, match="another model"):
        solve(lm, [REQUEST], config("r-rome"), moments={1: random_moment(tiny_model(seed=1), 1)})
    with pytest.raises(MomentError, match="layer"):  # filed under a layer that it is not of
        solve(lm, [REQUEST], config("r-rome"), moments={1: random_moment(lm, 2)})


# ------------------------------------------------------------------------------------------------------ other subjects


def test_keys_of_other_subjects_are_those_of_plain_prompts() -> None:
    lm = tiny_model()
    paris = next(fact for fact in load_facts() if fact.target_true == "Paris")
    left_out = {fact.prompt.subject for fact in load_facts() if fact.target_true == "Paris"}

    found = other_keys(lm, paris.request, LAYER)

    others = sorted({fact.prompt.subject for fact in load_facts()} - left_out)
    assert len(found) == len(others) > 400
    for i in (0, 200, len(others) - 1):
        ids = lm.tokenizer(paris.prompt.template.split("{}")[0] + others[i])["input_ids"]
        plain, _ = plain_states(lm, ids, lm.layout.module("mlp_out", LAYER))
        torch.testing.assert_close(found[i], plain[-1], rtol=1e-4, atol=1e-4)


def test_equal_keys_ask_once() -> None:
    """n-rome with the empty prefix alone: k* is k_0, and without other subjects the update is p-rome's."""
    lm = tiny_model()
    edit = solved(lm, "n-rome", prefixes=("",), hold=0.0, hold_namesakes=0.0)

    plain = solved(lm, "p-rome", prefixes=("",))

    torch.testing.assert_close(edit.deltas[0].matrix(), plain.deltas[0].matrix(), rtol=1e-5, atol=1e-7)
