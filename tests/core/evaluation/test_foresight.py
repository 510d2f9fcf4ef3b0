"""An edit that is judged before it is applied, and what came of it, against plain calls."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from rome_core import METHODS, LanguageModel, diagnose, solve
from rome_core.editing.shared_search import policies
from rome_core.evaluation.answers import ask_before_and_after
from rome_core.evaluation.before_after import choose_questions
from rome_core.evaluation.foresight import Foresight, examine, foresee, try_out
from rome_core.evaluation.perplexity import perplexity
from tests.tiny import REQUEST, random_moment

pytestmark = pytest.mark.usefixtures("random_moments", "few_facts")
CONFIG = METHODS["rome"](layer=2, prefixes=("", "x. "), steps=2, clamp=1.0)


def test_an_edit_is_judged_under_every_policy_and_not_applied(lm: LanguageModel) -> None:
    foresight = foresee(lm, REQUEST, CONFIG, ())

    edit = solve(lm, [REQUEST], CONFIG)
    assert foresight.edit.id == edit.id and foresight.policies.keys() <= policies().keys()
    assert foresight.diagnosis.denominator == pytest.approx(diagnose(lm, edit).denominator)
    assert foresight.policies["rome"].denominator == pytest.approx(foresight.diagnosis.denominator)


def test_the_policy_to_offer_is_the_default_one_if_it_is_safe(lm: LanguageModel) -> None:
    foresight = examine(lm, solve(lm, [REQUEST], CONFIG), ())

    def judged(**verdicts: str) -> Foresight:
        names = {name.replace("_", "-"): verdict for name, verdict in verdicts.items()}
        return replace(
            foresight,
            policies={name: replace(foresight.diagnosis, verdict=verdict) for name, verdict in names.items()},
        )

    assert judged(rome="disabling", n_rome="safe", h_rome="safe").safest == "n-rome"
    assert judged(rome="disabling", n_rome="caution", h_rome="safe", p_rome="safe").safest == "h-rome"
    assert judged(rome="safe", n_rome="caution", p_rome="safe").safest is None


def test_what_came_of_it_is_what_plain_calls_say(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rome_core.evaluation.foresight.OTHERS", 6)
    edit = solve(lm, [REQUEST], CONFIG)

    after = try_out(lm, edit, (), diagnose(lm, edit))

    assert after.perplexity == (perplexity(lm), perplexity(lm, edits=[edit]))
    assert after.changes == ask_before_and_after(lm, choose_questions(REQUEST, 1), [edit])
    assert len(after.shifts) == 6 and after.neighbour_kl == fmean(shift.kl for shift in after.near)
    assert all(shift.kind != "unrelated" for shift in after.near)


def test_an_edit_is_judged_by_the_c_that_it_was_solved_with_where_that_is_given(lm: LanguageModel) -> None:
    own = {2: random_moment(lm, 2, seed=4)}

    foresight = foresee(lm, REQUEST, CONFIG, (), own)

    assert foresight.diagnosis.moment_key == own[2].key and not foresight.diagnosis.other_moment
    assert {d.moment_key for d in foresight.policies.values()} == {own[2].key}
    assert examine(lm, foresight.edit, ()).diagnosis.other_moment
