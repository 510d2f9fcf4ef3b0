"""Measures of one fact: small cases by hand, and each trap that has caught other evaluations."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rome_core.errors import DataError
from rome_core.evaluation import case_of, general_texts, perplexity
from rome_core.evaluation.generation_measures import References, load_references, ngram_entropy
from rome_core.evaluation.measures import Answer, Measured, MeasureSettings, from_answers, measure_fact, next_token_kl
from rome_core.evaluation.scores import summarise_values
from rome_core.facts.datasets import Fact
from rome_core.model.generation import generate
from rome_core.model.scoring import Scored, score
from rome_core.model.tokens import Prompt, target_ids, text_ids
from tests.tiny import plain_run, random_edit, tiny_model

QUICK = MeasureSettings(generated=12, passages=1, neighbours=2)
FACT = Fact(
    id="tower",
    relation="city",
    prompt=Prompt("The {} is located in the city of", "Eiffel Tower"),
    target_true="Paris",
    target_new="Rome",
    paraphrases=("The city of the Eiffel Tower is",),
    neighbours=("The Colosseum is located in the city of", "Lyon is a city in the country of", "Milan is in"),
    neighbour_true="France",
)


def scored(*p: float, hits: tuple[bool, ...] | None = None) -> Scored:
    return Scored(tuple(map(math.log, p)), hits or (False,) * len(p))


def test_scores_by_hand() -> None:
    answers = [
        Answer("edit", "", scored(0.5, 0.02, hits=(True, False)), scored(0.04)),  # √(0.5·0.02) = 0.1 > 0.04
        Answer("paraphrase", "", scored(0.2, hits=(True,)), scored(0.3)),
        Answer("paraphrase", "", scored(0.4, hits=(True,)), scored(0.1)),
        Answer("neighbour", "", scored(0.1), scored(0.7, hits=(True,))),
        Answer("neighbour", "", scored(0.3), scored(0.3, hits=(False,))),  # a tie is no success
        Answer("neighbour+", "", scored(0.6), scored(0.2)),
    ]

    assert from_answers(answers) == pytest.approx(
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
    assert set(from_answers(answers[:1])) == {"ES", "EM", "efficacy", "exact match"}


def test_targets_of_several_tokens_count_in_full() -> None:
    """Trap 1: the new object's first token is likelier than the true one's, but the whole is not."""
    answer = Answer("edit", "", scored(0.9, 0.001), scored(0.3, 0.3))

    assert answer.new.log_p[0] > answer.true.log_p[0]
    assert from_answers([answer])["ES"] == 0.0
    assert from_answers([answer])["EM"] == pytest.approx(math.sqrt(0.9 * 0.001) - 0.3)


def test_objects_that_begin_alike_are_told_apart() -> None:
    """Trap 2: "New York" against "New Orleans": at the first token they tie, on the real model's own tokens too."""
    answer = Answer("edit", "", scored(0.4, 0.6), scored(0.4, 0.2))
    assert from_answers([answer])["ES"] == 1.0

    lm, text = tiny_model(), FACT.prompt.text
    fact = replace(FACT, target_true="Paris France", target_new="Paris Italy")
    first = [target_ids(lm.tokenizer, text, f" {target}")[0] for target in (fact.target_true, fact.target_new)]
    (edit, *_) = measure_fact(lm, fact, QUICK).answers
    assert first[0] == first[1] and edit.new.log_p[0] == pytest.approx(edit.true.log_p[0])
    assert edit.lead != pytest.approx(0.0, abs=1e-9)


def test_s_is_made_of_averages() -> None:
    """Trap 3: the harmonic mean of the averages is not the average of harmonic means; the latter would be 0 here."""
    values = [{"ES": 1.0, "PS": 0.0, "NS": 1.0}, {"ES": 1.0, "PS": 1.0, "NS": 0.0}]

    assert summarise_values(values)["S"].value == pytest.approx(3 / (1 / 1 + 1 / 0.5 + 1 / 0.5))


def test_the_baseline_of_specificity_is_not_one() -> None:
    """Trap 4: zsRE's specificity is accuracy on the right answers of unrelated questions. An unedited model that does
    not know them scores low, and an edit that changes nothing there keeps exactly that, not 100 %."""
    before = [Answer("neighbour", "", scored(0.1), scored(0.2, 0.2, hits=(True, False)))]

    assert from_answers(before)["specificity"] == 0.5
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
    """Independent of all of it: logits of the Hugging Face model itself, one row at a time, edit written by hooks."""
    lm = tiny_model()
    edit = random_edit(lm)
    (delta,) = edit.deltas
    W = lm.hf.get_submodule(delta.module).weight
    before = measure_fact(lm, FACT, QUICK)
    after = measure_fact(lm, FACT, QUICK, edits=[edit])
    changed = W + (delta.U @ delta.V)
    kept = W.detach().clone()
    with torch.no_grad():
        try:
            plain_before = {a.text: plain_run(lm, [text_ids(lm.tokenizer, a.text)])[0, -1] for a in before.answers}
            W.copy_(changed)
            plain_after = {a.text: plain_run(lm, [text_ids(lm.tokenizer, a.text)])[0, -1] for a in after.answers}
            for answer in after.answers:
                ids = text_ids(lm.tokenizer, answer.text)
                target = target_ids(lm.tokenizer, answer.text, " Rome")
                log_p = plain_run(lm, [ids + target])[0].double().log_softmax(-1)
                by_hand = [float(log_p[len(ids) - 1 + t, token]) for t, token in enumerate(target)]
                assert answer.new.log_p == pytest.approx(by_hand, abs=1e-4)
            ppl = perplexity(lm, general_texts()[:1])
        finally:
            W.copy_(kept)
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

    plus = [a for a in answers if a.kind == "neighbour+"]
    assert plus[0].text == f"{FACT.prompt.text} Rome. {FACT.neighbours[0]}"
    assert [a.kind for a in answers] == ["edit", "paraphrase", *["neighbour"] * 2, *["neighbour+"] * 2]
    assert all(a.text.startswith("Now, ") for a in measure_fact(lm, FACT, QUICK, prefix="Now, ").answers)


def test_what_is_measured_agrees_with_the_short_form() -> None:
    lm = tiny_model()
    values = measure_fact(lm, FACT, MeasureSettings(generated=0, passages=0)).values()

    assert {k: v for k, v in values.items() if k in ("ES", "EM", "PS", "PM", "NS", "NM")} == pytest.approx(
        case_of(lm, FACT).values(), rel=1e-4
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

    assert Measured("a", (Answer("edit", "", no, yes), Answer("neighbour", "", no, no))).known
    assert not Measured("a", (Answer("edit", "", yes, no),)).known


def test_fluency_by_hand() -> None:
    """ "a b a b": bigrams ab, ba, ab; trigrams aba, bab."""
    h2 = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))

    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * h2 + 4 / 3 * 1.0) / 2)
    assert ngram_entropy("no no no no no no") == 0.0
    assert ngram_entropy("") == ngram_entropy("one") == 0.0
    assert ngram_entropy("a, b") == pytest.approx((2 / 3 * 1.0 + 4 / 3 * 0.0) / 2)  # punctuation is a word of its own


def test_drift_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).double(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).double()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)

    assert next_token_kl(p.log(), q.log()) == pytest.approx(first / 2, abs=1e-6)


def test_perplexity_is_averaged_as_nll() -> None:
    scores = summarise_values([{"perplexity": 10.0}, {"perplexity": 1000.0}])

    assert scores["perplexity"].value == pytest.approx(100.0)
    assert summarise_values([{"perplexity": math.inf}, {"perplexity": 10.0}])["perplexity"].value < math.inf
    assert scores["perplexity"].low == pytest.approx(10.0) and scores["perplexity"].high == pytest.approx(1000.0)


def test_consistency_needs_texts_about_the_object(tmp_path) -> None:
    path = tmp_path / "references.json"
    texts = {"Rome": ["The forum stands in Rome.", "Rome has seven hills."], "Paris": ["Paris lies on the Seine."]}
    path.write_text(json.dumps(texts))
    references = load_references(path)

    assert references.consistency(texts["Rome"], "Rome") == pytest.approx(1.0)
    assert references.consistency(["The Seine flows through Paris."], "Rome") < 0.2
    assert references.consistency(["anything"], "Berlin") is None
    with_none = Measured("a", (), ("Rome has hills.",)).values(references=References(texts), new="Berlin")
    assert "RS" not in with_none
    assert 0 < Measured("a", (), ("Rome has hills.",)).values(references=References(texts), new="Rome")["RS"] < 1
    path.write_text('{"Rome": "one text"}')
    with pytest.raises(DataError, match="lists of texts"):
        load_references(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_references(tmp_path / "none.json")


def test_tf_idf_by_hand() -> None:
    references = References({"x": ["a b"], "y": ["a c"]})
    idf_a, idf_b = math.log(3 / 3) + 1, math.log(3 / 2) + 1

    expected = idf_a**2 / (idf_a * np.hypot(idf_a, idf_b))
    assert references.consistency(["a zzz"], "x") == pytest.approx(expected)
