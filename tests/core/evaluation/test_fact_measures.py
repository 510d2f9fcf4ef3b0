"""Measures of one fact: small cases by hand, and each trap that has caught other evaluations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rome_core.evaluation.answers import Answer, Kind, Question, ask, pairs_of, questions_about
from rome_core.evaluation.fact_measures import Measured, MeasureSettings, measure_fact, score_answers, score_pairs
from rome_core.evaluation.generation_measures import References
from rome_core.evaluation.perplexity import general_texts, perplexity
from rome_core.model.generation import generate
from rome_core.model.scoring import Scored, score
from rome_core.model.tokens import target_ids, text_ids
from tests.core.evaluation.test_answers import FACT as TOWER
from tests.tiny import plain_log_p, plain_run, random_edit, tiny_model, written

QUICK = MeasureSettings(generated=12, passages=1, neighbours=2)
FACT = replace(TOWER, neighbours=(*TOWER.neighbours, "Milan is in"))


def answer(kind: Kind, new: Scored, true: Scored) -> Answer:
    return Answer(Question(kind, "", "new", "true"), new, true)


def scored(*p: float, hits: tuple[bool, ...] | None = None) -> Scored:
    return Scored(tuple(map(math.log, p)), hits or (False,) * len(p))


def test_scores_by_hand() -> None:
    answers = [
        answer("edit", scored(0.5, 0.02, hits=(True, False)), scored(0.04)),  # √(0.5·0.02) = 0.1 > 0.04
        answer("paraphrase", scored(0.2, hits=(True,)), scored(0.3)),
        answer("paraphrase", scored(0.4, hits=(True,)), scored(0.1)),
        answer("neighbour", scored(0.1), scored(0.7, hits=(True,))),
        answer("neighbour", scored(0.3), scored(0.3, hits=(False,))),  # a tie is no success
        answer("neighbour+", scored(0.6), scored(0.2)),
    ]

    assert score_answers(answers) == pytest.approx(
        {
            "ES": 1.0,
            "EM": 0.06,
            "PS": 0.5,
            "PM": 0.1,
            "NS": 0.5,
            "NM": 0.3,
            "NS+": 0.0,
            "NM+": -0.4,
            "efficacy": 0.5,
            "paraphrase": 1.0,
            "specificity": 0.5,
            "exact match": 0.0,
            "exact match, paraphrase": 1.0,
        }
    )
    assert set(score_answers(answers[:1])) == {"ES", "EM", "efficacy", "exact match"}


def test_targets_of_several_tokens_count_in_full() -> None:
    """Trap 1: the new object's first token is likelier than the true one's, but the whole is not."""
    by_hand = answer("edit", scored(0.9, 0.001), scored(0.3, 0.3))

    assert by_hand.true and by_hand.new.log_p[0] > by_hand.true.log_p[0]
    assert score_answers([by_hand])["ES"] == 0.0
    assert score_answers([by_hand])["EM"] == pytest.approx(math.sqrt(0.9 * 0.001) - 0.3)


def test_objects_that_begin_alike_are_told_apart() -> None:
    """Trap 2: "New York" against "New Orleans": at the first token they tie, on the real model's own tokens too."""
    by_hand = answer("edit", scored(0.4, 0.6), scored(0.4, 0.2))
    assert score_answers([by_hand])["ES"] == 1.0

    lm, text = tiny_model(), FACT.prompt.text
    fact = replace(FACT, target_true="Paris France", target_new="Paris Italy")
    first = [target_ids(lm.tokenizer, text, f" {target}")[0] for target in (fact.target_true, fact.target_new)]
    (edit, *_) = measure_fact(lm, fact, QUICK).answers
    assert edit.true and first[0] == first[1] and edit.new.log_p[0] == pytest.approx(edit.true.log_p[0])
    assert edit.lead != pytest.approx(0.0, abs=1e-9)


def test_the_baseline_of_specificity_is_not_one() -> None:
    """Trap 4: zsRE's specificity is accuracy on the right answers of unrelated questions. An unedited model that does
    not know them scores low, and an edit that changes nothing there keeps exactly that, not 100 %."""
    before = [answer("neighbour", scored(0.1), scored(0.2, 0.2, hits=(True, False)))]

    assert score_answers(before)["specificity"] == 0.5
    lm = tiny_model()
    fact = replace(FACT, relation="zsRE", neighbour_true="green dragon")
    untouched = measure_fact(lm, fact, QUICK).values()
    assert untouched["specificity"] < 1.0
    assert (
        measure_fact(lm, fact, QUICK, edits=[random_edit(lm, size=0.0)]).values()["specificity"]
        == (untouched["specificity"])
    )


def test_exact_match_is_what_greedy_decoding_writes() -> None:
    lm = tiny_model("gemma2")
    said = generate(lm, FACT.prompt.text, 2)
    right = replace(FACT, target_new=said.strip())
    wrong = replace(FACT, target_new="Zürich Köln")

    for fact in (right, wrong):
        (pair,) = score(lm, [(fact.prompt.text, " " + fact.target_new)])
        written = generate(lm, fact.prompt.text, len(pair.hits))
        found = measure_fact(lm, fact, QUICK).values()["exact match"]
        assert found == float(written == " " + fact.target_new)
    assert measure_fact(lm, right, QUICK).values()["exact match"] == 1.0


def test_a_measurement_agrees_with_plain_passes() -> None:
    """Independent of all of it: logits of the Hugging Face model itself, one row at a time, Δ in its weights."""
    lm = tiny_model()
    edit = random_edit(lm)
    before = measure_fact(lm, FACT, QUICK)
    after = measure_fact(lm, FACT, QUICK, edits=[edit])
    prompts = {a.question.text for a in before.answers}
    assert prompts == {a.question.text for a in after.answers}
    edited = written(lm, edit)
    plain_before, plain_after = (
        {text: plain_run(model, [text_ids(model.tokenizer, text)])[0, -1] for text in prompts} for model in (lm, edited)
    )
    for measured in after.answers:
        assert measured.new.log_p == pytest.approx(plain_log_p(edited, measured.question.text, " Rome")[0], abs=1e-4)
    ppl = perplexity(edited, general_texts()[:1])
    near = FACT.neighbours[:2]
    kl = [
        torch.nn.functional.kl_div(
            plain_after[t].double().log_softmax(-1), plain_before[t].double().softmax(-1), reduction="sum"
        )
        for t in near
    ]
    values = after.values(before)
    assert values["NKL"] == pytest.approx(float(torch.stack(kl).mean()), rel=1e-3)
    assert values["perplexity"] == pytest.approx(ppl, rel=1e-4)
    assert "NKL" not in before.values() and "RS" not in values


def test_neighbours_behind_the_edits_sentence() -> None:
    lm = tiny_model()
    answers = measure_fact(lm, FACT, QUICK).answers

    plus = [a for a in answers if a.question.kind == "neighbour+"]
    assert plus[0].question.text == f"{FACT.prompt.text} Rome. {FACT.neighbours[0]}"
    assert [a.question.kind for a in answers] == ["edit", "paraphrase", *["neighbour"] * 2, *["neighbour+"] * 2]
    assert all(a.question.text.startswith("Now, ") for a in measure_fact(lm, FACT, QUICK, prefix="Now, ").answers)


def test_what_is_measured_agrees_with_the_short_form() -> None:
    lm = tiny_model()
    values = measure_fact(lm, FACT, MeasureSettings(generated=0, passages=0)).values()

    assert {k: v for k, v in values.items() if k in ("ES", "EM", "PS", "PM", "NS", "NM")} == pytest.approx(
        score_pairs(pairs_of(ask(lm, questions_about(FACT)))), rel=1e-4
    )
    assert "GE" not in values and "perplexity" not in values


def test_texts_are_drawn_by_the_seed() -> None:
    lm = tiny_model()
    texts = [measure_fact(lm, FACT, replace(QUICK, seed=seed)).texts for seed in (0, 0, 1)]

    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0].startswith(FACT.prompt.text), "the prompt belongs to the text, as in the papers"
    two = replace(FACT, generations=("Paris is", "The tower"))
    assert [t[:8] for t in measure_fact(lm, two, QUICK).texts] == ["Paris is", "The towe"]


def test_known_is_what_the_model_says_by_itself() -> None:
    yes, no = Scored((-0.1, -0.2), (True, True)), Scored((-0.1, -0.2), (True, False))

    assert Measured((answer("edit", no, yes), answer("neighbour", no, no))).known
    assert not Measured((answer("edit", yes, no),)).known


def test_consistency_is_measured_where_there_are_texts_about_the_object() -> None:
    references = References({"Rome": ["The forum stands in Rome.", "Rome has seven hills."], "Paris": ["A town."]})
    measured = Measured((), ("Rome has hills.",))

    assert "RS" not in measured.values(references=references, new="Berlin")
    assert 0 < measured.values(references=references, new="Rome")["RS"] < 1
