"""A public address: only offered models, no paths of the server, no detail of faults, a password if one is set."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared import public
from rome_core import DEFAULT_MODEL, ModelError
from rome_core.errors import RomeError
from tests.pages.conftest import goto, texts


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(public.SETTING, "1")
    monkeypatch.setenv(public.MODELS, "gpt2, gpt2, ")


def test_without_the_setting_everything_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "no"):
        monkeypatch.setenv(public.SETTING, value)
        assert not public.is_public()
        public.check_model("/models/mine")
        public.check_jobs(100)
        assert "ValueError: secret" in public.describe_fault(ValueError("secret"))


def test_strangers_get_the_offered_models_and_no_detail(demo: None) -> None:
    assert public.allowed_models() == (DEFAULT_MODEL, "gpt2")
    public.check_model("gpt2")
    with pytest.raises(ModelError, match=r"'/etc' is not offered here. Choose of .*gpt2"):
        public.check_model("/etc")
    public.check_jobs(public.JOBS_AT_ONCE - 1)
    with pytest.raises(RomeError, match="4 pieces of your work are waiting already"):
        public.check_jobs(public.JOBS_AT_ONCE)
    assert "secret" not in public.describe_fault(ValueError("secret"))


def test_no_page_asks_for_a_path_and_a_link_cannot_bring_a_model(app: AppTest, demo: None) -> None:
    for page in ("home", "tracing", "edit", "diagnostics", "derivation", "facts", "averages", "evaluate", "sequential"):
        there = goto(app, page, model="/etc/passwd")
        assert not there.exception, page
        fields = [field.label.casefold() for field in there.text_input]
        assert not [label for label in fields if "folder" in label or "server" in label], page
    assert there.selectbox(key="model").options == [DEFAULT_MODEL, "gpt2"]
    page = goto(app, "diagnostics", view="Checkpoint")
    assert not any("folder" in field.label.casefold() for field in page.text_input)


def test_a_password_stands_before_everything(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(public.PASSWORD, "Eiffel")
    app.run()
    assert [field.label for field in app.text_input] == ["Password"] and not app.button

    app.text_input(key="password").set_value("Colosseum").run()
    assert "not the password" in texts(app.error)
    app.text_input(key="password").set_value("Eiffel").run()
    app.run()
    assert app.text_input(key="model").value == DEFAULT_MODEL and not app.error
