"""A run's folder: what was asked, by which versions, and one small Parquet file for every finished piece of work.

    run.json           settings, seeds, versions, hash of the facts, fingerprint of the model
    sittings.jsonl     when somebody worked on it, for how long, with how many workers
    parts/METHOD/N.parquet   the rows of one group of facts under one method, written whole or not at all

What is finished is what has a file, so a run that was killed goes on with what has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rome_core.errors import DataError
from rome_core.evaluation.answers import Answer
from rome_core.evaluation.runs.folder import PACKAGES, append_line, cut_off, read_about, read_lines, write_json
from rome_core.files import versions, write_whole

PROMPTS_LEFT_OUT = "left out"  # in a kept run whose facts are not the project's to copy
OWN_SET = "the project's own set"  # how a run's folder calls it
NEW_OBJECTS = "new objects: "  # and how it says what facts without one were given
FORMAT = "rome-explorer run 1"
GROWING = frozenset({"methods", "records"})
SITTINGS = "sittings.jsonl"
NEEDED = ("method", "position", "fact", "subject", "stage", "answers")  # of every row
_ANSWER = pa.struct(
    [
        *(("kind", pa.string()), ("text", pa.string())),
        *(("new", pa.list_(pa.float64())), ("true", pa.list_(pa.float64()))),
        *(("new_hits", pa.list_(pa.bool_())), ("true_hits", pa.list_(pa.bool_()))),
    ]
)
SCHEMA = pa.schema(
    [
        *(("method", pa.string()), ("position", pa.int64()), ("fact", pa.string()), ("subject", pa.string())),
        *(("stage", pa.string()), ("known", pa.bool_()), ("error", pa.string())),
        *(("edit", pa.string()), ("delta_norm", pa.float64()), ("relative_norm", pa.float64())),
        *(("solve_seconds", pa.float64()), ("measure_seconds", pa.float64())),
        *(("values", pa.map_(pa.string(), pa.float64())), ("answers", pa.list_(_ANSWER))),
        ("texts", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Row:
    """One fact by one method at one stage: "before" any edit, "after" its own edit, "end": after its whole group's.

    position: the fact's place in the run, by which facts are told apart; `fact` is its id, which others may have, too.
    answers: log-probabilities (nats) of the objects' tokens on every prompt, from which the scores can be made again.
    edit: id of the edit. solve_seconds: of the edit's solving, which the key policies of ROME share.
    """

    method: str
    position: int
    fact: str
    subject: str
    stage: str
    known: bool | None = None
    error: str = ""
    edit: str = ""
    delta_norm: float = math.nan
    relative_norm: float = math.nan
    solve_seconds: float = math.nan
    measure_seconds: float = math.nan
    values: dict[str, float] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def answer_record(answer: Answer) -> dict[str, Any]:
    """An answer as a row keeps it: what was asked, and each token of both objects."""
    assert answer.true is not None, answer.question
    return {
        "kind": answer.question.kind,
        "text": answer.question.text,
        "new": list(answer.new.log_p),
        "true": list(answer.true.log_p),
        "new_hits": list(answer.new.hits),
        "true_hits": list(answer.true.hits),
    }


class Store:
    """A run's folder. `settings` says what the run is; a folder that was begun with something else is refused.

    The folder, and in it what the run says of itself, is written with the first finished piece of work: a start that
    fails leaves nothing behind that the right one would run into.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self._read: dict[Path, tuple[int, list[Row]]] = {}  # with the time that the file was written
        self._told = settings is None  # whether run.json says what `about` does
        if settings is None:
            self.about = _read_run(self.folder)
        else:
            self.about = self._join({"format": FORMAT, **json.loads(json.dumps(settings))})

    def _join(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What the run says of itself once these settings have joined what is there."""
        if (self.folder / "run.json").exists():
            about = _read_run(self.folder)
            for name in settings.keys() - GROWING:
                if about.get(name) != settings[name]:
                    raise DataError(
                        f"'{self.folder}' holds a run with another {name}: {about.get(name)}, now {settings[name]}.",
                        "",
                        "Choose another folder, or the settings of that run.",
                    )
            for method, config in about["methods"].items():
                if settings["methods"].get(method, config) != config:
                    raise DataError(
                        f"'{self.folder}' holds a run with other settings of {method}.", "", "Choose another folder."
                    )
            # More methods, and more facts of the same order, may join a run that is there.
            settings["methods"] = {**about["methods"], **settings["methods"]}
            settings = {**about, **settings, "records": max(about.get("records", 0), settings.get("records", 0))}
            self._told = settings == about
        settings.setdefault("versions", versions(PACKAGES))
        return settings

    def _part(self, method: str, group: int) -> Path:
        return self.folder / "parts" / method / f"{group:06d}.parquet"

    def has(self, method: str, group: int) -> bool:
        return self._part(method, group).exists()

    def write(self, method: str, group: int, rows: Iterable[Row]) -> None:
        """Keep the rows of one piece of work. A kill in the middle leaves nothing behind that counts."""
        if not self._told:
            write_json(self.folder / "run.json", self.about)
            self._told = True
        table = pa.Table.from_pylist([{**asdict(row), "values": list(row.values.items())} for row in rows], SCHEMA)
        write_whole(self._part(method, group), lambda part: pq.write_table(table, part, compression="zstd"))

    def rows(self) -> list[Row]:
        """All finished rows, by method in the order of the settings, and place. A part is read when it is new."""
        order = {method: i for i, method in enumerate(self.about["methods"])}
        parts = (self.folder / "parts").glob("*/*.parquet")
        paths = sorted(parts, key=lambda path: (order.get(path.parent.name, len(order)), path))
        for path in paths:
            written = path.stat().st_mtime_ns
            if path not in self._read or self._read[path][0] != written:
                self._read[path] = written, _read_part(path)
        return [row for path in paths for row in self._read[path][1]]

    def forget_failures(self) -> int:
        """Take back the parts of which some fact failed, so that a run does them again; returns how many."""
        self.rows()
        failed = [path for path, (_, rows) in self._read.items() if any(row.error for row in rows)]
        for path in failed:
            path.unlink()
            del self._read[path]
        return len(failed)

    def note_sitting(self, sitting: Mapping[str, Any]) -> None:
        """Write down one stretch of work at the end of the list; of a run that has no folder yet, none."""
        if not (self.folder / "run.json").exists():
            return
        cut_off(self.folder / SITTINGS)
        append_line(self.folder / SITTINGS, sitting)

    def sittings(self) -> list[dict[str, Any]]:
        return list(read_lines(self.folder / SITTINGS))


def _read_run(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it. Raises DataError where it holds no run, or says too little."""
    about = read_about(folder, FORMAT)
    if not isinstance(about.get("methods"), dict):
        raise DataError(f"'{folder}' does not say its methods.", "", "Choose another folder: this run.json is damaged.")
    return about


def _typed(table: pa.Table) -> pa.Table:
    """A part's table, each column of its type; raises ArrowException where it cannot be. Older parts lack some."""
    for place, name in enumerate(table.column_names):
        if name in SCHEMA.names and table.schema.field(name).type != (wanted := SCHEMA.field(name)).type:
            table = table.set_column(place, wanted, table.column(name).cast(wanted.type))
    return table


def _read_part(path: Path) -> list[Row]:
    """The rows of one finished piece of work. Raises DataError if its file is damaged."""
    try:
        records = _typed(pq.ParquetFile(path).read()).to_pylist()
        if any(record.get(name, "") is None for record in records for name in NEEDED):
            raise ValueError(f"A row lacks one of {', '.join(NEEDED)}.")
        return [Row(**{**record, "values": dict(record["values"])}) for record in records]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"'{path}' cannot be read.", f"{error}".splitlines()[0][:200], "Delete it, and the run does it again."
        ) from error
