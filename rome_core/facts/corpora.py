"""Texts to collect keys from: a file of the user's, or a Hugging Face dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from rome_core.errors import DataError
from rome_core.facts.tables import parse_json
from rome_core.files import expanded, read_text


def read_texts(path: str | Path, encoding: str | None = None) -> list[str]:
    """Paragraphs of a text file (blank lines between them), or the texts of a JSON list of strings or {"text": ...}.

    encoding: where it is not UTF-8 or UTF-16. Raises DataError.
    """
    source = expanded(path)
    return split_texts(read_text(source, encoding), source.name)


def split_texts(content: str, name: str) -> list[str]:
    """As `read_texts`, of a text that is there already; `name` says what it is."""
    if name.casefold().endswith((".json", ".jsonl")):
        texts = list(_json_texts(content, name))
    else:
        texts = content.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError(f"'{name}' holds no text.", "", "Give a file with words in it.")
    return texts


def _json_texts(content: str, name: str) -> Iterator[str]:
    if name.casefold().endswith(".jsonl"):
        records: object = [parse_json(line, name) for line in content.splitlines() if line.strip()]
    else:
        records = parse_json(content, name)
    for index, record in enumerate(records if isinstance(records, list) else []):
        text = record if isinstance(record, str) else _text_field(record)
        if text is None:
            raise DataError(f"'{name}', record {index + 1}: there is no text in it.", "", 'Give {"text": "..."}.')
        yield text


def _text_field(record: object) -> str | None:
    if not isinstance(record, dict):
        return None
    return next((value for key, value in record.items() if key.lower() == "text" and isinstance(value, str)), None)


def read_dataset(
    name: str, *, config: str | None = None, split: str = "train", column: str = "text", limit: int = 10_000
) -> list[str]:
    """The first `limit` texts of a dataset on the Hugging Face hub or in a local folder, streamed. Needs `datasets`."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            "Reading Hugging Face datasets needs the package 'datasets'.", "", "Install it: pip install datasets."
        ) from None
    try:
        # Scripts that come with a dataset are no longer run since datasets 4; older releases ask at the terminal.
        rows = load_dataset(name, config, split=split, streaming=True, trust_remote_code=False)
        return [row[column] for row in itertools.islice(rows, limit) if row[column].strip()]
    except KeyError:
        raise DataError(f"'{name}' has no column '{column}'.", "", "Name the column that holds the text.") from None
    except Exception as error:  # the hub, the network and the dataset's own script raise whatever they like
        raise DataError(
            f"The dataset '{name}' could not be read.", str(error).splitlines()[0][:150], "Use a text file instead."
        ) from error
