"""The panel of C on the edit page: what is in use, another one from the user's text, and back."""

from __future__ import annotations

import pytest
import torch
from streamlit.testing.v1 import AppTest

from pages.shared import moment_panel
from pages.shared.moment_panel import Made, convergence_figure
from pages.shared.style import LIGHT
from rome_core import LanguageModel, Moment
from tests.pages.conftest import edits_of, end_of_jobs, goto, texts


@pytest.fixture
def opened(app: AppTest) -> AppTest:
    app.session_state["moment-panel"] = True
    return goto(app, "edit")


def test_a_c_of_ones_own_is_made_shown_used_and_given_back(opened: AppTest) -> None:
    app = opened
    app.number_input(key="moment-tokens").set_value(600)
    app.number_input(key="moment-seed").set_value(3).run()
    end_of_jobs(app.button(key="moment-make").click().run())

    assert not app.error and not app.exception, texts(app.error)
    assert "self-written text, seed 3, 600 tokens, made in this session" in texts(app.markdown)
    end_of_jobs(app.button(key="run").click().run())
    assert not app.error, texts(app.error)
    (item,) = edits_of(app)
    assert item.edit.corpus == "self-written text, 600 tokens"

    app.button(key="moment-back").click().run()
    assert "made in this session" not in texts(app.markdown)


def test_a_closed_panel_costs_nothing(app: AppTest) -> None:
    goto(app, "edit")

    assert not [button for button in app.button if button.key == "moment-make"]


def test_a_model_with_wide_keys_can_be_given_enough_tokens_and_is_told_what_is_few(
    app: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 tokens, the default of small models, would be fewer than this one's keys have entries."""
    monkeypatch.setattr(LanguageModel, "d_mlp", property(lambda lm: 24_576))
    app.session_state["moment-panel"] = True
    goto(app, "edit")

    tokens = app.number_input(key="moment-tokens")
    assert not app.exception and (tokens.min, tokens.value) == (24_576, 245_760)
    assert "From fewer than 2 ×" not in texts(app.caption)
    tokens.set_value(30_000).run()
    assert "1.2 × the keys' 24,576 entries. From fewer than 2 × C is too rough" in texts(app.caption)


def test_too_little_text_is_one_sentence(opened: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment_panel, "_file", lambda: ["Three short words."])
    opened.segmented_control(key="moment-source").set_value(moment_panel.FILE).run()

    end_of_jobs(opened.button(key="moment-make").click().run())

    assert "fewer tokens than the keys have entries" in texts(opened.error)


def test_the_figure_says_how_far_the_direction_still_turns() -> None:
    step = Moment(1, torch.eye(4, dtype=torch.float64), 4_000, "mine", "f")

    figure = convergence_figure(Made(step, ((1_000, 0.91), (2_000, 0.987))), LIGHT)

    assert "From 2,000 to 4,000 tokens" in figure.layout.title.text and "0.987" in figure.layout.title.text
    assert list(figure.data[0].x) == [1_000, 2_000]
