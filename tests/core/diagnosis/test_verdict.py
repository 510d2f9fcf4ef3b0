"""A diagnosis, every quantity again in numpy, and the forecast of the other policies."""

from __future__ import annotations

import gc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from rome_core.diagnosis.calibration import Calibration, Thresholds
from rome_core.diagnosis.verdict import CALIBRATIONS, CAUTION, DISABLING, Diagnosis, diagnose, forecast, size_of
from rome_core.editing.edit import Edit
from rome_core.editing.methods import METHODS, solve
from rome_core.editing.shared_search import repolicy
from rome_core.errors import EditError, MomentError
from rome_core.facts.datasets import load_facts
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest, Prompt
from tests.tiny import REQUEST, plain_states, random_edit, random_moment, tiny_model

pytestmark = pytest.mark.usefixtures("few_facts")
RIDGE, PREFIXES = 1e-3, ("", "x. ", "So. ")
POLICIES = ("rome", "r-rome", "p-rome", "c-rome", "h-rome", "n-rome")


def solved(lm: LanguageModel, policy: str, request: EditRequest = REQUEST) -> Edit:
    config = METHODS[policy](layer=1, clamp=2.0, steps=2, ridge=RIDGE, prefixes=PREFIXES)
    return solve(lm, [request], config, moments=moments(lm))


def moments(lm: LanguageModel) -> dict:
    return {1: random_moment(lm, 1)}


def first_keys(lm: LanguageModel) -> list[np.ndarray]:
    """The keys of the first tokens of four ordinary facts, bare and behind both prefixes."""
    prompts = [fact.prompt for fact in load_facts() if not fact.prompt.template.startswith("{}")]
    texts = [prefix + prompt.text for prompt in prompts[:: len(prompts) // 4][:4] for prefix in PREFIXES]
    path = lm.layout.module("mlp_out", 1)
    return [plain_states(lm, lm.tokenizer(text)["input_ids"], path)[0][0].double().numpy() for text in texts]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_quantity_by_hand(family: str, policy: str) -> None:
    lm = tiny_model(family)
    edit = solved(lm, policy)
    C, W = random_moment(lm, 1).C.numpy(), lm.weight(1).double().numpy()
    k_0, k_star = edit.k_0.double().numpy(), edit.keys.prompts.keys.double().numpy().mean(0)
    inverse = np.linalg.inv(C + RIDGE * np.trace(C) / 24 * np.eye(24))
    delta, update = edit.keys.delta.double().numpy(), edit.deltas[0].matrix().numpy()

    found = diagnose(lm, edit, moments(lm))

    expected = {
        "k0_k0": k_0 @ inverse @ k_0,
        "k0_kstar": k_0 @ inverse @ k_star,
        "kstar_kstar": k_star @ inverse @ k_star,
        "cosine": k_0 @ k_star / np.linalg.norm(k_0) / np.linalg.norm(k_star),
        "value_ratio": np.linalg.norm(delta) / np.linalg.norm(edit.v_0.double().numpy()),
        "k0_norm": np.linalg.norm(k_0),
        "kstar_norm": np.linalg.norm(k_star),
        "norm_F": np.linalg.norm(update),
        "relative_F": np.linalg.norm(update) / np.linalg.norm(W),
        "relative_2": np.linalg.norm(update, 2) / np.linalg.norm(W, 2),
    }
    # The root of E‖Δk‖² over keys whose second moment is C, by a square root of C.
    values, vectors = np.linalg.eigh(C)
    root = vectors * np.sqrt(values)
    expected["relative_C"] = np.linalg.norm(update @ root) / np.linalg.norm(W @ root)
    starts = first_keys(lm)
    moved = [np.linalg.norm(update @ key) / np.linalg.norm(W @ key) for key in starts]
    expected["relative_start"] = np.mean(moved)
    expected["cosine_whitened"] = expected["k0_kstar"] / np.sqrt(expected["k0_k0"] * expected["kstar_kstar"])
    name = {"rome": "k0_kstar", "p-rome": "k0_k0"}.get(policy, "kstar_kstar")
    expected["denominator"] = expected[name]
    if policy == "n-rome":  # two keys, measured by a C of its own
        C_T = edit.config.metric(lm, REQUEST, torch.tensor(k_star), random_moment(lm, 1)).C.numpy()
        K = np.stack([k_0, k_star], 1)
        gram = K.T @ np.linalg.solve(C_T + RIDGE * np.trace(C_T) / 24 * np.eye(24), K)
        expected["denominator"] = 1 / np.linalg.inv(gram).sum()
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5), name
    assert (found.method, found.layer, found.subject_first) == (policy, 1, False)


@pytest.mark.parametrize(
    ("relative", "verdict"), [(0.0, "safe"), (0.99, "safe"), (1.01, "caution"), (3.9, "caution"), (4.1, "disabling")]
)
def test_the_verdict_follows_the_size_of_the_update(relative: float, verdict: str) -> None:
    """`relative` is in units of the threshold of caution; disabling begins at four times that."""
    assert DISABLING == 4 * CAUTION
    lm = tiny_model()
    edit = solved(lm, "r-rome")
    size = edit.delta_norm / float(lm.weight(1).norm())

    found = diagnose(lm, edit.scaled(relative * CAUTION / size), moments(lm))

    assert found.verdict == verdict
    assert f"{found.relative_F:.3g} times" in found.explanation
    assert ("break" in found.explanation) == (verdict == "disabling")


def test_an_update_that_is_not_finite_is_disabling() -> None:
    lm = tiny_model()

    assert diagnose(lm, solved(lm, "r-rome").scaled(float("inf")), moments(lm)).verdict == "disabling"


def test_the_denominators_at_which_the_verdict_would_change() -> None:
    """With everything else as it is, ‖Δ‖ goes as one over the denominator."""
    lm = tiny_model()
    edit = solved(lm, "rome")
    found = diagnose(lm, edit, moments(lm))

    for limit, below in ((CAUTION, found.caution_below), (DISABLING, found.disabling_below)):
        assert found.relative_F * abs(found.denominator) / below == pytest.approx(limit)


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        (Prompt("{} is the capital of", "Paris"), True),
        (Prompt("{} is far", "Eiffel Tower"), False),
        (REQUEST.prompt, False),
    ],
)
def test_a_subject_that_is_the_first_token_is_said(prompt: Prompt, first: bool) -> None:
    lm = tiny_model()

    found = diagnose(lm, solved(lm, "rome", EditRequest(prompt, "Rome")), moments(lm))

    assert found.subject_first is first
    assert ("first token" in found.explanation) is first


def same(one: Diagnosis, other: Diagnosis) -> None:
    for field in fields(Diagnosis):
        if field.name == "reference":
            continue
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert a == (pytest.approx(b, rel=1e-6) if isinstance(b, float | tuple) else b), field.name


def test_the_forecast_is_the_diagnosis_of_each_policy() -> None:
    """Of the same δ: as a fresh solve gives it, because prefixes and seeds are the same."""
    lm = tiny_model()
    edit = solved(lm, "r-rome")

    found = forecast(lm, edit, moments(lm))

    assert sorted(found) == sorted(POLICIES)
    for policy in POLICIES:
        same(found[policy], diagnose(lm, repolicy(lm, edit, policy, moments(lm)), moments(lm)))
        same(found[policy], diagnose(lm, solved(lm, policy), moments(lm)))


def test_an_edit_without_a_single_key_has_a_sentence() -> None:
    lm = tiny_model()
    edit = random_edit(lm)

    for odd in (replace(edit, keys=None), replace(edit, deltas=edit.deltas * 2)):
        with pytest.raises(EditError, match="Edits by 'r-rome' have no single key to judge"):
            diagnose(lm, odd, moments(lm))


def test_a_key_that_is_zero_has_a_sentence() -> None:
    lm = tiny_model()
    edit = solved(lm, "r-rome")

    for bad in (torch.zeros(24), torch.full((24,), float("nan"))):
        with pytest.raises(
            EditError, match=r"A key of this edit at layer 1 is zero or not finite. .* Solve the edit again"
        ):
            diagnose(lm, replace(edit, keys=replace(edit.known_keys, k_0=bad)), moments(lm))


def test_a_singular_c_has_a_sentence() -> None:
    lm = tiny_model()
    edit = solved(lm, "r-rome")
    flat = replace(random_moment(lm, 1), C=torch.zeros(24, 24, dtype=torch.float64))

    with pytest.raises(MomentError, match=r"C of layer 1 is singular .* larger ridge"):
        diagnose(lm, edit, {1: flat})


def calibrated(lm: LanguageModel, quantity: str) -> LanguageModel:
    limits = {name: Thresholds(0.25, 1.0, 0.9, 0.8) for name in ("relative_F", "relative_C", "inverse_denominator")}
    own = Calibration(lm.fingerprint, lm.name, quantity, limits, 4, 4, {}, {}, {}, (), "numbers")
    lm.forget(CALIBRATIONS)
    lm.remember(CALIBRATIONS, (), lambda: own)
    return lm


@pytest.mark.parametrize("quantity", ["relative_F", "relative_C"])
def test_fitted_thresholds_take_the_place_of_the_provisional_ones(quantity: str) -> None:
    lm = tiny_model()
    edit = solved(lm, "rome")
    value = getattr(diagnose(lm, edit, moments(lm)), quantity)
    calibrated(lm, quantity)

    for size, verdict in ((0.2, "safe"), (0.3, "caution"), (1.2, "disabling")):
        found = diagnose(lm, edit.scaled(size / value), moments(lm))
        assert (found.verdict, found.calibrated, found.quantity) == (verdict, True, quantity)
        assert found.score == pytest.approx(size)
        assert found.score * abs(found.denominator) / found.disabling_below == pytest.approx(1.0)
        if quantity == "relative_F":
            assert size_of(lm, edit.scaled(size / value)).verdict == verdict


def test_a_denominator_that_is_not_positive_is_infinitely_bad() -> None:
    lm = calibrated(tiny_model(), "inverse_denominator")
    edit = solved(lm, "rome")
    keys = edit.known_keys
    turned = replace(edit, keys=replace(keys, k_0=-keys.prompts.keys.mean(0)))

    found = diagnose(lm, turned, moments(lm))

    assert found.denominator < 0 and found.score == found.inverse_denominator == float("inf")
    assert found.verdict == "disabling"


def test_a_diagnosis_by_another_c_says_so() -> None:
    lm = tiny_model()
    edit = solved(lm, "r-rome")
    other = {1: random_moment(lm, 1, seed=9)}

    own, foreign, unknown = (
        diagnose(lm, edit, moments(lm)),
        diagnose(lm, edit, other),
        diagnose(lm, replace(edit, moment_keys={}), other),  # a file from before keys were kept
    )

    assert not own.other_moment and "another C" not in own.explanation
    assert foreign.other_moment and foreign.explanation.endswith(
        "solved with another C than the one that judges it here."
    )
    assert foreign.moment_key == other[1].key != own.moment_key == edit.moment_keys[1]
    assert not unknown.other_moment


def test_a_hundred_diagnoses_keep_no_more_than_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of tensors that are alive, C loaded anew by every caller that may: they must not pile up."""
    lm = tiny_model()
    edit = solved(lm, "r-rome")

    def alive() -> int:
        gc.collect()
        return sum(x.untyped_storage().nbytes() for x in gc.get_objects() if type(x) is torch.Tensor)

    for _ in range(5):
        diagnose(lm, edit, moments(lm))
    before = alive()
    for _ in range(100):
        diagnose(lm, edit, moments(lm))

    assert alive() - before < 24 * 24 * 8  # less than one C
