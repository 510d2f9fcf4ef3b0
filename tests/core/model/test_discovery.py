"""Structure found without a row: the table's own rows, forty families, and a decoder that nobody has seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rome_core.errors import ModelError
from rome_core.model.discovery import discover
from rome_core.model.layout import LAYOUTS
from tests.families import COMMON, FOUND, MIXTURES
from tests.tiny import FAMILIES, tiny_model

BLOCK = {
    "opt": "fc2",
    "xglm": "fc2",
    "biogpt": "fc2",
    "gpt_neo": "mlp.c_proj",
    "mpt": "ffn.down_proj",
    "phi": "mlp.fc2",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_of_the_table_are_found(family: str) -> None:
    assert discover(tiny_model(family).hf) == LAYOUTS[family]


@pytest.mark.parametrize("name", [*FOUND, *MIXTURES])
def test_every_path_leads_to_what_it_says(name: str) -> None:
    lm = tiny_model(name)
    layout, hf = lm.layout, lm.hf

    assert hf.get_submodule(layout.embed) is hf.get_input_embeddings()
    assert len(lm.blocks) == 4 and lm.d_model == 16
    for layer in range(4):
        hf.get_submodule(layout.module("attn_out", layer))
        hf.get_submodule(layout.module("mlp_in", layer))
    if name in BLOCK:
        assert layout.mlp_out == BLOCK[name]
    assert (name in MIXTURES) == ("edit" in lm.cannot), lm.cannot


# -------------------------------------------------------------------------------------------------- an unknown decoder


class Mixer(nn.Module):
    """Attention with one head, in words of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.asks, self.offers, self.carries = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.gathers = nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        scores = self.asks(hidden_states) @ self.offers(hidden_states).mT / 4
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return self.gathers(scores.masked_fill(later, -torch.inf).softmax(-1) @ self.carries(hidden_states)), None


class Recall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reads, self.writes = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.writes(self.reads(x).relu())


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mixer, self.recall = Mixer(), Recall()

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.mixer(self.first(hidden_states))[0]
        return hidden_states + self.recall(self.second(hidden_states))


class Unknown(nn.Module):
    """A decoder of a type that stands nowhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.stages = nn.Embedding(40, 16), nn.ModuleList(Stage() for _ in range(3))
        self.tidy, self.speak = nn.LayerNorm(16), nn.Linear(16, 40, bias=False)
        self.config = SimpleNamespace(model_type="unknown", is_encoder_decoder=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.speak

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        state = self.words(input_ids)
        for stage in self.stages:
            state = stage(state)
        return SimpleNamespace(logits=self.speak(self.tidy(state)))


def test_a_decoder_of_an_unknown_type_is_found_without_a_row() -> None:
    found = discover(Unknown())

    assert (found.embed, found.blocks, found.norm) == ("words", "stages", "tidy")
    assert (found.attn_out, found.mlp_out, found.mlp_up) == ("mixer.gathers", "recall.writes", ("recall.reads",))


class Swapped(Stage):
    """The MLP before the attention."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.recall(self.first(hidden_states))
        return hidden_states + self.mixer(self.second(hidden_states))[0]


class Parallel(Stage):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mixer(self.first(hidden_states))[0] + self.recall(self.second(hidden_states))


@pytest.mark.parametrize("kind", [Swapped, Parallel])
def test_what_attends_is_told_by_what_it_does(kind: type[nn.Module]) -> None:
    model = Unknown()
    model.stages = nn.ModuleList(kind() for _ in range(3))

    found = discover(model)

    assert (found.attn_out, found.mlp_out) == ("mixer.gathers", "recall.writes")


class Sighted(Mixer):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        return self.gathers(self.carries(hidden_states).mean(1, keepdim=True).expand_as(hidden_states)), None


class NoMemory(Stage):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mixer(self.first(hidden_states))[0]


def broken(name: str) -> Unknown:
    model = Unknown()
    if name == "an encoder":
        for stage in model.stages:
            stage.mixer = Sighted()
    elif name == "no MLP":
        model.stages = nn.ModuleList(NoMemory() for _ in range(3))
    elif name == "no norm":
        model.tidy = nn.Identity()
        model.forward = lambda input_ids, use_cache=False: SimpleNamespace(  # type: ignore[method-assign]
            logits=model.speak(model.stages[0](model.words(input_ids)) * 2)
        )
    elif name == "no head":
        model.get_output_embeddings = lambda: None  # type: ignore[method-assign, assignment, return-value]
    return model


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("an encoder", "its tokens see later ones"),
        ("no MLP", "is not one attention and one MLP, but holds 'mixer'"),
        ("no norm", "no list of blocks was found"),
        ("no head", "no word embedding and no language-model head"),
    ],
)
def test_what_is_missing_is_one_sentence(name: str, why: str) -> None:
    with pytest.raises(ModelError, match=f"Models of type 'unknown' cannot be traced or edited here: .*{why}"):
        discover(broken(name))


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("make", "kind", "sizes", "why"),
    [
        (AutoModelForCausalLM, "bert", {**SMALL, "is_decoder": False}, "its tokens see later ones"),
        (AutoModelForSeq2SeqLM, "t5", {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 4}, "an encoder and a"),
        (AutoModelForCausalLM, "mamba", {**SMALL, "state_size": 4}, "is not one attention and one MLP"),
        (AutoModelForCausalLM, "rwkv", {**SMALL, "attention_hidden_size": 16}, "[Bb]lock"),
        (AutoModel, "bert", SMALL, "no word embedding and no language-model head"),
    ],
)
def test_other_kinds_of_models_are_refused_with_the_reason(
    make: Any, kind: str, sizes: dict[str, Any], why: str
) -> None:
    torch.manual_seed(0)
    hf = make.from_config(AutoConfig.for_model(kind, **{**COMMON, **sizes})).eval()

    with pytest.raises(ModelError, match=f"Models of type '{kind}' cannot be traced or edited here: .*{why}"):
        discover(hf)
