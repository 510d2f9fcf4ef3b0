"""The loaded model: its parts, its fingerprint, and what is said when it cannot be had."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rome_core.errors import ModelError
from rome_core.model import language_model
from rome_core.model.language_model import Kept, LanguageModel, fingerprint
from tests.tiny import FAMILIES, plain_run, plain_states, tiny_model, tiny_tokenizer

IDS = tiny_tokenizer()("The Eiffel Tower is located in")["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family: str) -> None:
    """From the residual stream through final norm, head and soft cap, against the model's own forward pass."""
    lm = tiny_model(family)
    expected = plain_run(lm, [IDS])[0]
    _, resid = plain_states(lm, IDS, lm.layout.block(lm.n_layers - 1))
    _, normed = plain_states(lm, IDS, lm.layout.norm)

    torch.testing.assert_close(lm.logits(resid), expected)
    torch.testing.assert_close(lm.unembed(normed), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family: str) -> None:
    lm = tiny_model(family, layers=3)

    assert (lm.n_layers, lm.d_model, lm.d_mlp, lm.max_positions) == (3, 16, 24, 256)
    assert lm.n_parameters == sum(p.numel() for p in lm.hf.parameters())
    assert lm.device.type == "cpu" and lm.dtype == torch.float32
    assert not lm.hf.training and not any(p.requires_grad for p in lm.hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_weights_have_one_fingerprint(family: str) -> None:
    one = tiny_model(family)

    assert fingerprint(one.hf) == one.fingerprint == tiny_model(family).fingerprint
    assert one.fingerprint != tiny_model(family, seed=1).fingerprint


def test_the_fingerprint_does_not_depend_on_the_number_of_threads() -> None:
    lm = tiny_model()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert fingerprint(lm.hf) == lm.fingerprint
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_fingerprint_changes_with_any_one_weight(family: str) -> None:
    lm = tiny_model(family)
    pick = torch.Generator().manual_seed(0)
    for name, parameter in lm.hf.named_parameters():
        flat = parameter.data.view(-1)
        at = int(torch.randint(len(flat), (1,), generator=pick))
        before = flat[at].clone()
        flat[at] = torch.nextafter(before, torch.tensor(9.0))  # the smallest change there is
        assert fingerprint(lm.hf) != lm.fingerprint, f"{name}[{at}]"
        flat[at] = before
    assert fingerprint(lm.hf) == lm.fingerprint


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_not_finite_has_no_fingerprint(bad: float, dtype: torch.dtype) -> None:
    hf = tiny_model(dtype=dtype).hf
    hf.get_parameter("model.layers.1.mlp.down_proj.weight").data[3, 5] = bad

    with pytest.raises(ModelError, match=r"'model.layers.1.mlp.down_proj.weight' holds numbers that are not finite"):
        fingerprint(hf)


def test_weights_whose_sum_overflows_are_finite_all_the_same() -> None:
    hf = tiny_model().hf
    hf.get_parameter("model.layers.1.mlp.down_proj.weight").data.fill_(3e38)

    assert fingerprint(hf)


@pytest.mark.parametrize(
    "module", [nn.Embedding(24, 16), nn.Conv1d(24, 16, 1), nn.Linear(24, 16).to(torch.float8_e4m3fn), nn.ReLU()]
)
def test_a_module_of_another_kind_is_not_taken_for_a_transposed_one(module: nn.Module) -> None:
    """Only GPT-2's Conv1D is: an adapter's wrapper, an expert layer or quantised weights once were, in silence."""
    lm = tiny_model(intermediate_size=24)
    lm.blocks[1].mlp.down_proj = module

    with pytest.raises(ModelError, match=f"of the kind .*{type(module).__name__} holds no plain matrix"):
        lm.weight(1)


OTHER_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"rms_norm_eps": 0.1}, OTHER_ROPE])
def test_the_fingerprint_changes_with_the_configuration(change: dict) -> None:
    """Equal weights that compute something else are another model."""
    one, other = tiny_model(), tiny_model(**change)
    assert not torch.equal(plain_run(one, [IDS]), plain_run(other, [IDS]))

    assert one.fingerprint != other.fingerprint


def test_a_document_starts_with_its_token_and_a_tokenizer_without_one_says_so() -> None:
    lm = tiny_model()
    bare = SimpleNamespace(get_vocab=lambda: {"a": 0}, bos_token=None, eos_token=None)

    with pytest.raises(ModelError, match="The tokenizer of 'tiny-llama' has no start token"):
        LanguageModel.document_start.fget(SimpleNamespace(tokenizer=bare, name="tiny-llama"))
    assert lm.document_start == 0


def test_what_is_kept_with_a_model_is_bounded_and_the_least_used_goes_first() -> None:
    lm, made = tiny_model(), list[int]()
    kind = Kept[int]("squares", limit=2)

    def square(n: int) -> int:
        return lm.remember(kind, n, lambda: made.append(n) or n * n)

    assert [square(n) for n in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert made == [1, 2, 3, 2]  # 2 was used longest ago when 3 came
    assert tiny_model().remember(kind, 1, lambda: 5) == 5  # another model's are its own
    lm.forget(kind)
    assert square(1) == 1 and made[-1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_fingerprint_sums_in_pieces_what_a_whole_sum_is(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny_model(dtype=dtype).hf
    monkeypatch.setattr(language_model, "SUMMED_AT_ONCE", 2**62)
    whole = fingerprint(hf)

    monkeypatch.setattr(language_model, "SUMMED_AT_ONCE", 7)

    assert fingerprint(hf) == whole
