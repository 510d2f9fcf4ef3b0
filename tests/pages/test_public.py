"""A public address: only offered models, no paths of the server, no detail of faults, a password if one is set."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit.files import adapter_zip, read_edit
from pages.shared import public
from rome_core import DEFAULT_MODEL, METHODS, DataError, ModelError, PromptError, save_edit
from rome_core.errors import RomeError
from rome_core.files import cache_dir
from rome_core.model.language_model import Source
from tests.pages.conftest import goto, texts
from tests.tiny import random_edit, tiny_model


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(public.SETTING, "1")
    monkeypatch.setenv(public.MODELS, "gpt2, gpt2, ")


def test_without_the_setting_everything_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "no"):
        monkeypatch.setenv(public.SETTING, value)
        assert not public.is_public()
        public.check_model("/models/mine")
        public.check_work(100, facts=10**6, generated=10**9)
        assert "ValueError: secret" in public.describe_fault(ValueError("secret"))


def test_strangers_get_the_offered_models_and_no_detail(demo: None) -> None:
    assert public.allowed_models() == (DEFAULT_MODEL, "gpt2")
    public.check_model("gpt2")
    with pytest.raises(ModelError, match=r"'/etc' is not offered here. Choose of .*gpt2"):
        public.check_model("/etc")
    public.check_work(public.limit("JOBS") - 1)
    with pytest.raises(RomeError, match="4 pieces of your work are waiting already"):
        public.check_work(public.limit("JOBS"))
    assert "secret" not in public.describe_fault(ValueError("secret"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"facts": 101}, "The run has 101 facts; at most 100 are done here."),
        ({"generated": 50_001}, "The model would write 50,001 tokens; at most 50,000 are written here."),
    ],
)
def test_what_one_run_may_ask_for_has_a_limit(
    demo: None, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], sentence: str
) -> None:
    with pytest.raises(RomeError, match=sentence):
        public.check_work(0, **asked)
    monkeypatch.setenv("ROME_EXPLORER_MAX_FACTS", "500")
    monkeypatch.setenv("ROME_EXPLORER_MAX_GENERATED_TOKENS", "60000")
    public.check_work(0, **asked)
    monkeypatch.setenv("ROME_EXPLORER_MAX_FACTS", "many")
    assert public.limit("FACTS") == 100, "what is no number is no way to have no limit"


def test_a_prompt_and_an_upload_have_a_limit(demo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    public.check_prompts(lm, ["The Eiffel Tower is in"])
    with pytest.raises(PromptError, match="has 800 tokens; at most 200 are read here"):
        public.check_prompts(lm, ["ok", "x y " * 200])
    public.check_upload([2**20] * 8)
    with pytest.raises(DataError, match="These are 9 files; at most 8 are read here at once"):
        public.check_upload([1] * 9)
    with pytest.raises(DataError, match="more than 64 MB"):
        public.check_upload([40 * 2**20] * 2)
    assert public.suffixes_of(["csv", "txt", "md", "json"]) == ["csv", "json"]
    monkeypatch.delenv(public.SETTING)
    public.check_prompts(lm, ["x y " * 200])
    public.check_upload([2**40] * 99)
    assert public.suffixes_of(["csv", "txt"]) == ["csv", "txt"]


def test_a_long_prompt_is_refused_on_the_page(app: AppTest, demo: None) -> None:
    page = goto(app, "tracing", template="x y " * 100 + "The {} is in", subject="Eiffel Tower")

    assert "at most 200 are read here" in texts(page.error) and not page.exception
    assert page.button(key="run").disabled


def test_no_folder_of_the_server_reaches_a_stranger(demo: None, tmp_path: Path) -> None:
    place = cache_dir() / "models" / "SmolLM"
    assert public.without_places(f"'{place}' cannot be read.") == "'…/models/SmolLM' cannot be read."
    edit = replace(random_edit(tiny_model()), source=Source(str(place)))
    with zipfile.ZipFile(io.BytesIO(adapter_zip(edit))) as archive:
        named = json.loads(archive.read("adapter_config.json"))["base_model_name_or_path"]
        written = b"".join(map(archive.read, archive.namelist()))
    assert named == "SmolLM" and str(place).encode() not in written


def test_a_place_in_an_edit_file_is_forgotten(tmp_path: Path) -> None:
    lm = tiny_model()
    path = tmp_path / "one.safetensors"
    save_edit(replace(random_edit(lm), config=METHODS["mend"](checkpoint="/etc/passwd")), path)

    assert vars(read_edit(lm, path.read_bytes()).config)["checkpoint"] is None


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
