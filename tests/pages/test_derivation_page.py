"""The derivation's page: formulas without an edit, numbers and checked identities with one, a picture to drag."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.derivation.texts import STEPS
from pages.shared import session
from rome_core import METHODS, load_model, solve
from rome_core.diagnosis.derivation import derive, stages
from tests.pages.conftest import goto, session_of, texts
from tests.tiny import REQUEST, random_moment, tiny_model


@pytest.fixture
def with_edit(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """A session with one edit, whose C is there."""
    lm = tiny_model("llama", layers=4)
    moment = random_moment(lm, 1)
    monkeypatch.setattr("rome_core.editing.second_moment.stored_moment", lambda *_: moment)
    edit = solve(lm, [REQUEST], METHODS["r-rome"](layer=1, steps=2, prefixes=("", "x. ")), moments={1: moment})
    goto(app, "tracing")  # the model is there
    with session_of(app):
        session.put_edit(edit, "Eiffel Tower → Rome")
    return app


def test_every_step_has_words_and_every_word_a_step() -> None:
    lm = tiny_model("llama", layers=4)
    moment = random_moment(lm, 1)
    edit = solve(lm, [REQUEST], METHODS["r-rome"](layer=1, steps=2), moments={1: moment})

    assert [stage.name for stage in stages(derive(lm, edit, moment))] == list(STEPS)


def test_without_an_edit_there_are_formulas_and_a_way_to_one(app: AppTest) -> None:
    page = goto(app, "derivation")

    assert not page.exception and not page.error
    assert len(page.latex) == len(STEPS)
    assert "This session has no edit" in texts(page.caption)
    assert not any("✓" in element.value for element in page.markdown)


def test_with_an_edit_every_line_is_checked(with_edit: AppTest) -> None:
    page = goto(with_edit, "derivation")

    assert not page.exception and not page.error and not page.warning, texts(page.error) + texts(page.warning)
    said = texts(page.markdown)
    assert said.count("✓") == 11 and "✗" not in said
    assert "layer 1" in texts(page.caption) and "ridge" in texts(page.caption)


def test_an_edit_of_another_model_is_said_and_computes_nothing(with_edit: AppTest) -> None:
    with session_of(with_edit):
        (item,) = session.edits()
        object.__setattr__(item.edit, "base", "another")

    page = goto(with_edit, "derivation")

    assert "not in memory" in texts(page.warning)
    assert "✓" not in texts(page.markdown)


# ------------------------------------------------------------------------------------------------------------ browser


@pytest.mark.browser
def test_the_picture_computes_what_it_shows(page: Any, base_url: str) -> None:
    page.goto(f"{base_url}/derivation")
    page.get_by_role("slider", name="Key k star").wait_for()

    def number(name: str) -> float:
        return float(page.locator(f".beside .{name}").inner_text())

    def centre(name: str) -> tuple[float, float]:
        handle = page.locator(f".plane .{name}")
        return float(handle.get_attribute("cx")), float(handle.get_attribute("cy"))

    def expected() -> tuple[float, float]:
        """αs by the ellipse's axes: its long one ends in a handle, its short one is half a unit."""
        (ax, ay), (kx, ky), (zx, zy) = centre("axis"), centre("kstar"), centre("k0")
        long = (ax**2 + ay**2) ** 0.5
        u, w = (ax / long, ay / long), (-ay / long, ax / long)

        def product(a: tuple[float, float], b: tuple[float, float]) -> float:
            along = (a[0] * u[0] + a[1] * u[1]) * (b[0] * u[0] + b[1] * u[1]) / long**2
            return along + (a[0] * w[0] + a[1] * w[1]) * (b[0] * w[0] + b[1] * w[1]) / 0.25

        return product((kx, ky), (kx, ky)), product((zx, zy), (kx, ky))

    assert (number("alpha"), number("mixed")) == pytest.approx(expected(), rel=0.01)
    page.get_by_role("slider", name="Key k zero").focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    assert (number("alpha"), number("mixed")) == pytest.approx(expected(), rel=0.01)
    before = centre("kstar")
    box = page.locator(".plane .kstar").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] + 40, steps=4)
    page.mouse.up()
    assert centre("kstar") != before
    assert (number("alpha"), number("mixed")) == pytest.approx(expected(), rel=0.01)
    size = number("size")
    page.get_by_label("divide by k₀ᵀC⁻¹k*").check()
    ratio = abs(number("alpha") / number("mixed"))
    assert number("size") == pytest.approx(size * ratio, rel=0.02)


@pytest.mark.slow
def test_on_the_default_model_every_identity_holds_to_rounding() -> None:
    lm = load_model()
    edit = solve(lm, [REQUEST], METHODS["n-rome"](steps=2))
    from rome_core.editing.second_moment import stored_moment

    moment = stored_moment(lm, edit.config.layers[-1])
    assert moment is not None
    errors = [identity.error for stage in stages(derive(lm, edit, moment)) for identity in stage.identities]
    assert max(errors) < 1e-6, errors
