"""Scores of hand-made cases, perplexity by hand, and an evaluation of a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rome_core.editing.methods import METHODS, solve
from rome_core.evaluation import Case, case_of, evaluate, general_texts, known_facts, measure, perplexity, summarise
from rome_core.evaluation.scores import mean_score
from rome_core.facts.datasets import Fact
from rome_core.model.tokens import Prompt
from tests.tiny import TEXTS, plain_run, random_edit, random_moment, tiny_model

# (new, true) probabilities of prompts
GOOD = Case("good", ((0.8, 0.1),), ((0.5, 0.25), (0.6, 0.1)), ((0.1, 0.7), (0.2, 0.3)))
HALF = Case("half", ((0.9, 0.2),), ((0.5, 0.25), (0.1, 0.6)), ((0.1, 0.7), (0.5, 0.3)))
BAD = Case("bad", ((0.1, 0.2),), ((0.1, 0.25), (0.1, 0.1)), ((0.9, 0.1), (0.5, 0.5)))
FACT = Fact(
    id="tower",
    relation="city",
    prompt=Prompt("The {} is located in the city of", "Eiffel Tower"),
    target_true="Paris",
    target_new="Rome",
    paraphrases=("The city of the Eiffel Tower is",),
    neighbours=("The Colosseum is located in the city of", "Lyon is a city in the country of"),
    neighbour_true="France",
)
BARE = replace(FACT, id="bare", paraphrases=(), neighbours=())


def test_the_scores_of_a_case() -> None:
    assert GOOD.values() == pytest.approx(
        {"ES": 1.0, "EM": 0.7, "PS": 1.0, "PM": (0.25 + 0.5) / 2, "NS": 1.0, "NM": (0.6 + 0.1) / 2}
    )
    assert HALF.values() == pytest.approx(
        {"ES": 1.0, "EM": 0.7, "PS": 0.5, "PM": (0.25 - 0.5) / 2, "NS": 0.5, "NM": (0.6 - 0.2) / 2}
    )
    assert BAD.values() == pytest.approx(  # equal probabilities are no success
        {"ES": 0.0, "EM": -0.1, "PS": 0.0, "PM": -0.15 / 2, "NS": 0.0, "NM": -0.8 / 2}
    )
    assert Case("bare", ((0.8, 0.1),), (), ()).values() == pytest.approx({"ES": 1.0, "EM": 0.7})


def test_s_is_the_harmonic_mean_of_the_averages_and_not_of_the_cases() -> None:
    scores = summarise([GOOD, HALF, BAD])

    es, ps, ns = 2 / 3, 1.5 / 3, 1.5 / 3
    assert [scores[name].value for name in ("ES", "PS", "NS")] == pytest.approx([es, ps, ns])
    assert scores["S"].value == pytest.approx(3 / (1 / es + 1 / ps + 1 / ns))
    cases = [3 / (1 / 1 + 1 / 1 + 1 / 1), 3 / (1 / 1 + 1 / 0.5 + 1 / 0.5), 0.0]
    assert scores["S"].value != pytest.approx(np.mean(cases), abs=1e-3)
    assert scores["EM"].value == pytest.approx((0.7 + 0.7 - 0.1) / 3)
    assert {score.n for score in scores.values()} == {3}


def test_s_is_zero_where_one_average_is() -> None:
    assert summarise([BAD, BAD])["S"].value == 0.0


def test_without_cases_there_are_no_scores() -> None:
    assert summarise([]) == {}


def test_what_no_fact_has_is_absent_and_not_invented() -> None:
    assert set(summarise([Case("a", ((0.8, 0.1),), (), ())])) == {"ES", "EM"}


def test_facts_without_paraphrases_or_neighbours_count_where_they_can() -> None:
    scores = summarise([GOOD, HALF, Case("bare", ((0.1, 0.8),), (), ())])

    assert (scores["ES"].n, scores["PS"].n, scores["NS"].n) == (3, 2, 2)
    assert scores["ES"].value == pytest.approx(2 / 3)
    assert scores["PS"].value == scores["NS"].value == pytest.approx(0.75)
    assert 0.5 <= scores["PS"].low <= 0.75 <= scores["PS"].high <= 1.0
    assert scores["S"].low > 0.4  # 3/(3 + 2 + 2) at the least: a draw without paraphrases is none, not a zero


def test_the_interval_is_that_of_the_mean() -> None:
    """For 400 facts of which 300 succeed: 0.75 ± 1.96·√(0.75·0.25/400)."""
    cases = [GOOD] * 300 + [BAD] * 100

    scores = summarise(cases)

    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert scores["ES"].low == pytest.approx(0.75 - half, abs=0.006)
    assert scores["ES"].high == pytest.approx(0.75 + half, abs=0.006)
    assert scores["S"].value == pytest.approx(0.75)
    assert scores["S"].low < 0.75 < scores["S"].high
    assert summarise(cases) == scores  # seeded
    assert summarise(cases, seed=1) != scores


def test_facts_that_agree_leave_no_doubt() -> None:
    score = summarise([GOOD] * 5)["ES"]

    assert (score.value, score.low, score.high, score.n) == (1.0, 1.0, 1.0, 5)


def test_the_mean_of_numbers_with_its_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)

    score = mean_score(values.tolist())

    assert score.value == pytest.approx(values.mean()) and score.n == 400
    assert score.high - score.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def mean_p(lm, text: str, target: str) -> float:
    """Geometric-mean probability of the target's tokens, one row."""
    front, ids = (lm.tokenizer(t)["input_ids"] for t in (text, f"{text} {target}"))
    log_probs = plain_run(lm, [ids])[0].double().log_softmax(-1)
    log_p = [float(log_probs[i - 1, ids[i]]) for i in range(len(front), len(ids))]
    return math.exp(sum(log_p) / len(log_p))


def test_a_case_holds_new_and_true_on_every_prompt() -> None:
    lm = tiny_model()

    case = case_of(lm, FACT)

    def pair(text: str, true: str) -> tuple[float, float]:
        return pytest.approx((mean_p(lm, text, "Rome"), mean_p(lm, text, true)), rel=1e-3)

    assert case.fact == "tower"
    assert case.edit == (pair(FACT.prompt.text, "Paris"),)
    assert case.paraphrase == (pair(FACT.paraphrases[0], "Paris"),)
    assert case.neighbour == tuple(pair(text, "France") for text in FACT.neighbours)
    assert case_of(lm, FACT, edits=[random_edit(lm)]).edit != case.edit
    assert case_of(lm, BARE).paraphrase == case_of(lm, BARE).neighbour == ()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_perplexity_by_hand(family: str) -> None:
    lm = tiny_model(family)
    nll = []
    for text in TEXTS:
        ids = lm.tokenizer(text)["input_ids"]
        log_probs = plain_run(lm, [ids])[0].double().log_softmax(-1)
        nll += [-float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids))]

    found = perplexity(lm, [*TEXTS, "P"])  # one token says nothing

    assert found == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert perplexity(lm, TEXTS, edits=[random_edit(lm)]) != pytest.approx(found, rel=1e-3)


def test_perplexity_of_a_broken_model_is_a_number() -> None:
    lm = tiny_model()

    assert perplexity(lm, TEXTS, edits=[random_edit(lm, size=float("inf"))]) == math.inf
    assert perplexity(lm, TEXTS, edits=[random_edit(lm, size=1e30)]) > 100


def test_the_general_texts_are_about_nothing_that_the_facts_are_about() -> None:
    from rome_core.facts.datasets import load_facts

    texts = general_texts()

    assert len(texts) > 20 and all(len(text) > 100 and text == text.strip() for text in texts)
    subjects = {fact.prompt.subject for fact in load_facts() if len(fact.prompt.subject) > 5}
    assert not [(subject, text[:40]) for text in texts for subject in subjects if subject in text]


def test_known_facts_are_those_that_the_model_would_say() -> None:
    lm = tiny_model("gemma2")
    ids = lm.tokenizer(FACT.prompt.text)["input_ids"]
    order = plain_run(lm, [ids])[0, -1].argsort(descending=True).tolist()
    words = [lm.tokenizer.decode([token]) for token in order]
    assert words[0].startswith(" ") and words[0][1:].isalpha()  # else this prompt shows nothing

    knowing, guessing = replace(FACT, target_true=words[0].strip()), replace(FACT, target_true="Zürich")

    assert known_facts(lm, [knowing, guessing, knowing]) == [True, False, True]


def config(**changes):
    return METHODS["r-rome"](**{"layer": 1, "clamp": 8.0, "steps": 6, "prefixes": ("",), "ridge": 1e-3, **changes})


def test_every_fact_is_edited_by_itself_on_the_untouched_model() -> None:
    lm = tiny_model()
    moments = {1: random_moment(lm, 1)}
    other = replace(FACT, id="other", target_new="Milan")
    seen: list[tuple[str, int]] = []

    def track(items, label, total, /):
        seen.append((label, total))
        return items

    found = evaluate(lm, [FACT, other], config(), moments=moments, track=track)

    for record, fact in zip(found.records, (FACT, other), strict=True):
        edit = solve(lm, [fact.request], config(), moments=moments)
        assert record.fact == fact.id and record.error == ""
        assert record.before == case_of(lm, fact) and record.after == case_of(lm, fact, edits=[edit])
        assert record.delta_norm == pytest.approx(edit.delta_norm)
        assert record.after != record.before
    assert found.scores == summarise([record.after for record in found.records])
    assert found.before == summarise([record.before for record in found.records])
    assert found.failed == () and seen == [("Editing facts", 2)]


def test_edits_that_are_active_stay_active() -> None:
    lm = tiny_model()
    first, moments = random_edit(lm, 2), {1: random_moment(lm, 1)}

    (record,) = measure(lm, [FACT], config(), moments=moments, edits=[first])

    edit = solve(lm, [FACT.request], config(), moments=moments, edits=[first])
    assert record.before == case_of(lm, FACT, edits=[first])
    assert record.after == case_of(lm, FACT, edits=[first, edit])


def test_a_fact_that_cannot_be_edited_is_counted_and_not_hidden() -> None:
    lm = tiny_model("gpt2", n_positions=24)
    moments = {1: random_moment(lm, 1)}
    long = replace(BARE, id="long", prompt=Prompt("The city of {} is far away" + ", far away" * 10, "Paris"))

    found = evaluate(lm, [FACT, long, BARE], config(), moments=moments)

    (failed,) = found.failed
    assert failed.fact == "long" and "24" in failed.error
    assert failed.after is None and math.isnan(failed.delta_norm)
    assert [record.fact for record in found.records] == ["tower", "long", "bare"]
    assert found.scores["ES"].n == found.before["ES"].n == 2
    nowhere = evaluate(lm, [FACT], config(layer=9), moments=moments)
    assert "Layer 9 does not exist" in nowhere.failed[0].error and nowhere.scores == nowhere.before == {}
