"""Where a model is, by its name: a folder or a repository of the hub, whose files are read before it is loaded."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_core.errors import ModelError
from rome_core.files import expanded
from rome_core.model.default_model import DEFAULT_MODEL, fetch_default_model
from rome_core.progress import Track, silent

HUB_SECONDS = 2.0  # what the hub has to answer in; its own client tries for 23 seconds, and logs each try
CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer_config.json", "adapter_config.json"


@dataclass(frozen=True)
class Origin:
    """A folder or a repository of the hub, whose files can be read before anything is loaded from it.

    cached: whether only what the hub's cache holds can be had.
    """

    name: str
    place: str
    revision: str | None = None
    cached: bool = False

    @property
    def is_folder(self) -> bool:
        return Path(self.place).is_dir()

    @property
    def options(self) -> dict[str, Any]:
        """What every call of transformers is given."""
        return {"trust_remote_code": False, "revision": self.revision, "local_files_only": self.cached}

    def find(self, file: str) -> str | None:
        """Where a file of the model is, fetched if need be; None if it has none of that name."""
        from transformers.utils import cached_file

        return cached_file(
            self.place,
            file,
            revision=self.revision,
            local_files_only=self.cached,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )

    @property
    def commit(self) -> str | None:
        """The commit of a repository that its files are from: the cache keeps each in a folder of that name."""
        found = None if self.is_folder else self.find(CONFIG)
        return found and Path(found).parent.name

    def settings(self, file: str) -> dict[str, Any]:
        """What a JSON file of the model holds; nothing if there is no such file."""
        found = self.find(file)
        return {} if found is None else dict(json.loads(Path(found).read_text(encoding="utf-8")))

    def reason(self, error: Exception) -> str:
        """Why it could not be loaded, in one line."""
        if self.cached:
            return "It is neither a local folder nor a Hugging Face id that can be reached from here."
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0][:200]


def find_model(name: str, revision: str | None = None, track: Track = silent) -> Origin:
    """Where the model of a name is: the default one, a folder (`~` is the user's home), or a repository of the hub.

    Raises ModelError where there can be none.
    """
    if name == DEFAULT_MODEL:
        return Origin(name, str(fetch_default_model(track)))
    path = expanded(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # too long for a path
        is_folder = is_file = False
    if is_folder:
        return Origin(name, str(path.absolute()))
    if is_file:
        raise ModelError(
            f"'{name}' is a file.",
            "GGUF holds quantised weights." if path.suffix == ".gguf" else "",
            "Give the folder with config.json, tokenizer and *.safetensors.",
        )
    if path.is_absolute() or name.startswith(("~", ".")) or name.count("/") > 1:
        raise ModelError(
            f"The model '{name}' could not be loaded.",
            "There is no such folder.",
            "Check the spelling; a Hugging Face id is 'owner/name'.",
        )
    return Origin(name, name, revision, cached=not hub_answers())


def hub_answers() -> bool:
    """Whether the hub says anything within HUB_SECONDS, through whatever proxy its client uses."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # no name, no route, no answer: all the same here
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name cannot be given a limit, waiting for it can
    asking.start()
    asking.join(HUB_SECONDS)
    return answered.is_set()
