"""Records of average effects: the facts of an inquiry, a run that stops and goes on, files that are read again."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from rome_core.errors import DataError
from rome_core.facts.datasets import Fact, load_facts
from rome_core.model.hooks import batch_of, next_logits
from rome_core.model.scoring import score
from rome_core.model.tokens import Prompt, as_target, encode
from rome_core.progress import Stopped
from rome_core.tracing.average_records import (
    Inquiry,
    Source,
    averages_csv,
    collect,
    describe,
    read_records,
    records_of,
    shipped_records,
    why_not_continued,
    write_records,
)
from rome_core.tracing.averages import GROUPS, FactEffect, average, fact_effects
from rome_core.tracing.runs import SITES, TraceConfig
from tests.tiny import halt_at, tiny_model

QUICK = TraceConfig(samples=2, window=2, noise_from="vocabulary")
LAYERS = 4


@cache
def facts() -> tuple[Fact, ...]:
    """Four facts of two relations that the random model "knows", because its own next word is the object, and one
    that it does not."""
    lm = tiny_model("llama", layers=LAYERS)
    known = list[Fact]()
    templates = ("The {} is in", "{} is the capital of", "The home of {} is", "The city of {} is far", "{}, too, is")
    for template, subject in product(templates, ("Paris", "Rome", "Lyon", "Milan", "Zürich", "Köln", "Japan")):
        prompt = Prompt(template, subject)
        token = int(next_logits(lm, batch_of(lm, [encode(lm.tokenizer, prompt).ids]))[0].argmax())
        if word := lm.tokenizer.decode([token]).strip():
            fact = Fact(f"f{len(known)}", f"r{len(known) % 2}", prompt, word, "Rome")
            known += [fact] if all(score(lm, [(prompt.text, as_target(word, prompt.text))])[0].hits) else []
        if len(known) == 4:
            break
    assert len(known) == 4
    return (Fact("unknown", "r0", Prompt("The {} is in", "Paris"), "dragon", "Rome"), *known)


@cache
def rows() -> tuple[FactEffect, ...]:
    done: dict[str, FactEffect] = {}
    inquiry = Inquiry(facts(), 4, config=QUICK)
    list(collect(tiny_model("llama", layers=LAYERS), inquiry, done))
    return tuple(records_of(inquiry, done))


def test_a_stopped_run_goes_on_where_it_was() -> None:
    lm = tiny_model("llama", layers=LAYERS)
    done: dict[str, FactEffect] = {}
    inquiry = Inquiry(facts(), 4, config=QUICK)
    steps = collect(lm, inquiry, done, track=halt_at("Facts", 1))
    first = next(steps)
    with pytest.raises(Stopped):
        list(steps)
    before = dict(done)

    known = list(collect(lm, inquiry, done))

    assert known[0] is first
    assert [row.fact for row in known] == [fact.id for fact in inquiry.order if fact.id != "unknown"]
    assert all(done[fact] is row for fact, row in before.items())


def test_relations_and_seed_choose_the_facts() -> None:
    inquiry = Inquiry(facts(), 4, relations=("r1",), config=QUICK)

    assert {fact.relation for fact in inquiry.order} == {"r1"}
    orders = {tuple(fact.id for fact in replace(inquiry, relations=(), order_seed=s).order) for s in range(20)}
    assert len(orders) > 10
    assert replace(inquiry, order_seed=3).rows_key == inquiry.rows_key
    assert replace(inquiry, config=TraceConfig()).rows_key != inquiry.rows_key


def test_facts_with_one_id_have_records_of_their_own() -> None:
    lm, done = tiny_model("llama", layers=LAYERS), dict[str, FactEffect]()
    joined = tuple(replace(fact, id="1") for fact in facts())
    inquiry = Inquiry(joined, 4, config=QUICK)
    list(collect(lm, inquiry, done))

    names = [row.fact for row in fact_effects(lm, joined[:2], QUICK, done={"1"})]
    assert names == ["1 (2)"], "the second is no duplicate of the first"
    found = records_of(inquiry, done)
    assert [row.dropped for row in found] == [row.dropped for row in rows()] and len(found) == len(rows())
    for mine, expected in zip(found, rows(), strict=True):
        for site, values in expected.effects.items():
            torch.testing.assert_close(mine.effects[site], values, equal_nan=True)


def test_records_survive_a_file() -> None:
    lm = tiny_model("llama", layers=LAYERS)
    about = describe(lm, Inquiry(facts(), 3, config=QUICK))

    opened = read_records(write_records(Source("x", rows(), about)), "saved.json")

    assert opened.about == about
    for before, after in zip(rows(), opened.rows, strict=True):
        assert (before.fact, before.dropped) == (after.fact, after.dropped)
        for site in before.effects:
            torch.testing.assert_close(before.effects[site], after.effects[site], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no records"),
        ("nonsense\n{}", "is not JSON"),
        ("[]", "holds no records"),
        ('[{"fact": "a"}]', "x, record 1 cannot be read"),
        ('{"rows": [{"fact": "a", "clean": 1, "corrupted": 0, "dropped": "", "effects": {}}]}', "are needed"),
        ('{"about": {"config": {"colour": 1}}, "rows": [1]}', "description cannot be read"),
    ],
)
def test_a_bad_file_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_records(text, "x")


def test_the_csv_has_a_row_a_cell() -> None:
    averages = average(rows())
    table = list(csv.DictReader(io.StringIO(averages_csv(averages, "p(answer)"))))

    assert len(table) == len(SITES) * len(GROUPS) * LAYERS
    row = next(r for r in table if (r["kind"], r["token_group"], r["layer"]) == ("mlp_out", "last token", "2"))
    assert float(row["aie"]) == pytest.approx(averages.effects["mlp_out"].mean[5, 2])


def test_records_are_gone_on_from_only_if_made_the_same_way() -> None:
    lm = tiny_model("llama", layers=LAYERS)
    inquiry = Inquiry(facts(), 3, config=QUICK)
    about = describe(lm, inquiry)

    assert why_not_continued(about, rows(), lm, replace(inquiry, n=4, order_seed=2)) == ""
    other = replace(inquiry, facts=facts()[:2], config=TraceConfig())
    assert why_not_continued(about, rows(), lm, other) == ("It was made with another facts and another trace settings.")
    assert "another model" in why_not_continued(about, rows(), tiny_model("llama", layers=3), inquiry)


def test_the_shipped_records_are_the_default_models() -> None:
    source = shipped_records()
    assert source is not None and source.about.config == TraceConfig()
    averages = average(source.rows)
    lm, own = tiny_model("llama", layers=30), tuple(load_facts())
    assert why_not_continued(source.about, source.rows, lm, Inquiry(own, 9)) == "It was made with another model."
    changed = tuple(replace(fact, target_true="Rome") for fact in own)  # a user's copy of the file, with the same ids
    assert "another facts" in why_not_continued(source.about, source.rows, lm, Inquiry(changed, 9))
    assert averages.n == 50
    assert all(effect.mean.shape == (len(GROUPS), 30) for effect in averages.effects.values())
