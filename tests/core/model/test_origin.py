"""Names of models: what each is taken for, and how long the hub is asked."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from rome_core.errors import ModelError
from rome_core.model import origin
from rome_core.model.origin import Origin, find_model


def test_a_folder_is_taken_first_and_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "hub_answers", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)

    for name in ("owner/name", "./owner/name", "~/owner/name", str(tmp_path / "owner" / "name")):
        found = find_model(name, "some revision")
        assert Path(found.place) == tmp_path / "owner" / "name" and found.is_folder and found.name == name
        assert found.revision is None and found.commit is None


@pytest.mark.parametrize("there", [True, False])
def test_other_names_are_the_hubs_or_its_caches(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "hub_answers", lambda: there)

    found = find_model("owner/name", "v1")

    assert found == Origin("owner/name", "owner/name", "v1", cached=not there) and not found.is_folder
    assert found.options == {"trust_remote_code": False, "revision": "v1", "local_files_only": not there}


def test_settings_are_read_where_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = find_model(str(tmp_path))

    assert found.settings("config.json") == {"model_type": "llama"}
    assert found.settings("adapter_config.json") == {} and found.find("adapter_config.json") is None


@pytest.mark.parametrize("name", ["~/nothing", "~nobody-at-all/model", "./nothing", "/nowhere/model", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "hub_answers", lambda: pytest.fail("the hub was asked"))

    with pytest.raises(ModelError, match=rf"'{name}' could not be loaded\. There is no such folder\. Check"):
        find_model(name)


@pytest.mark.parametrize(("file", "hint"), [("config.json", ""), ("m.gguf", "GGUF holds quantised weights. ")])
def test_a_file_is_no_folder(tmp_path: Path, file: str, hint: str) -> None:
    (tmp_path / file).touch()

    with pytest.raises(ModelError, match=rf"{file}' is a file\. {hint}Give the folder with config.json"):
        find_model(str(tmp_path / file))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b""])
def test_the_hub_is_asked_whether_it_is_there(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it says, it is there; one that takes the call and says nothing is not waited for."""
    monkeypatch.setattr(origin, "HUB_SECONDS", 0.5)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")

        def serve() -> None:
            call, _ = hub.accept()
            with call:
                call.recv(4096)
                call.sendall(answer)
                asked.wait()

        asked = threading.Event()
        serving = threading.Thread(target=serve)
        serving.start()
        answers = origin.hub_answers()
        asked.set()
        serving.join()

    assert answers == bool(answer)
