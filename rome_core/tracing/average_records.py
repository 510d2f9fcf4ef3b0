"""Records behind average effects: which facts are traced, one record a fact as they finish, and their files.

A record is one fact's effects by token group. A run is stopped and gone on with by its records, and so is another
with more facts or in another order: each counts the records that it would have made itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from typing import Any

import torch

from rome_core.errors import DataError
from rome_core.facts.datasets import load_facts
from rome_core.facts.fact import Fact, tell_apart
from rome_core.files import STUDIES, csv_text, null_if_infinite
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.edits import Update
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.tracing.averages import GROUPS, Averages, FactEffect, fact_effects
from rome_core.tracing.runs import SITES, TraceConfig

STUDY = STUDIES / "average_effects.jsonl"
Rows = MutableMapping[str, FactEffect]  # by the fact's name among those of the inquiry


@dataclass(frozen=True)
class Inquiry:
    """Everything that average effects depend on, besides the model: facts in a seeded order, until n are known."""

    facts: tuple[Fact, ...]
    n: int
    relations: tuple[str, ...] = ()
    order_seed: int = 0
    config: TraceConfig = field(default_factory=TraceConfig)
    edits: tuple[Update, ...] = ()

    @property
    def rows_key(self) -> tuple[Any, ...]:
        """What one fact's record depends on: a run with other facts or another order can use it again."""
        return ("fact effects", digest(self.facts), self.config, tuple(edit.id for edit in self.edits))

    @property
    def key(self) -> tuple[Any, ...]:
        return ("averages", *self.rows_key[1:], self.n, self.relations, self.order_seed)

    @property
    def named(self) -> list[tuple[str, Fact]]:
        """The facts of the chosen relations (none chosen: all), shuffled, each with a name that no other has."""
        names = zip(tell_apart(self.facts), self.facts, strict=True)
        chosen = [(name, fact) for name, fact in names if not self.relations or fact.relation in self.relations]
        random.Random(self.order_seed).shuffle(chosen)
        return chosen

    @property
    def order(self) -> list[Fact]:
        """The facts in the order in which they are traced."""
        return [fact for _, fact in self.named]


def digest(facts: Sequence[Fact]) -> str:
    """A short name of a fact set that changes with what is traced."""
    text = json.dumps([(fact.id, fact.prompt.text, fact.prompt.subject, fact.target_true) for fact in facts])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def collect(lm: LanguageModel, inquiry: Inquiry, rows: Rows, *, track: Track = silent) -> Iterator[FactEffect]:
    """Fill `rows` until n of the facts are known, and give each known one. What is in `rows` already is not redone."""
    missing = inquiry.n - sum(not row.dropped for row in records_of(inquiry, rows))
    steps = _trace_known(lm, inquiry, rows, track)
    yield from islice(steps, inquiry.n - missing)
    for _ in track(range(missing), "Facts", missing):
        if (row := next(steps, None)) is None:  # no facts left
            return
        yield row


def _trace_known(lm: LanguageModel, inquiry: Inquiry, rows: Rows, track: Track) -> Iterator[FactEffect]:
    for name, fact in inquiry.named:
        if name not in rows:
            (row,) = fact_effects(lm, [fact], inquiry.config, edits=inquiry.edits, track=track)
            rows[name] = replace(row, fact=name)
        if not rows[name].dropped:
            yield rows[name]


def records_of(inquiry: Inquiry, rows: Mapping[str, FactEffect]) -> list[FactEffect]:
    """The finished records that belong to the inquiry: from the start of its order until n of them are known."""
    records, known = list[FactEffect](), 0
    for name, _ in inquiry.named:
        if known == inquiry.n or name not in rows:
            break
        records.append(rows[name])
        known += not rows[name].dropped
    return records


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class About:
    """What records were made from. Empty fields: the file does not say."""

    model: str = ""
    fingerprint: str = ""
    facts: str = ""
    edits: tuple[str, ...] = ()
    config: TraceConfig | None = None
    order_seed: int | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """Records with what is known of their making: a run, the shipped study, or a file."""

    name: str
    rows: tuple[FactEffect, ...]
    about: About = field(default_factory=About)


def describe(lm: LanguageModel, inquiry: Inquiry) -> About:
    """What the records of an inquiry are made from."""
    edits = tuple(edit.id for edit in inquiry.edits)
    return About(lm.name, lm.fingerprint, digest(inquiry.facts), edits, inquiry.config, inquiry.order_seed)


def why_not_continued(about: About, rows: Sequence[FactEffect], lm: LanguageModel, inquiry: Inquiry) -> str:
    """Why the inquiry may not go on from these records; empty if it may."""
    here = describe(lm, inquiry)
    layers = next((row.effects["mlp_out"].shape[1] for row in rows if not row.dropped), lm.n_layers)
    differs = {
        "model": layers != lm.n_layers or (about.fingerprint and about.fingerprint != here.fingerprint),
        "facts": about.facts and about.facts != here.facts,
        "list of active edits": about.fingerprint and about.edits != here.edits,
        "trace settings": about.config and about.config != here.config,
    }
    if about.model and not about.fingerprint:
        differs["model"] = differs["model"] or about.model != lm.name
        differs["list of active edits"] = bool(here.edits)
    other = [name for name, differing in differs.items() if differing]
    return f"It was made with {' and '.join(f'another {name}' for name in other)}." if other else ""


def write_records(source: Source) -> str:
    """JSON: the records with everything that they were made from."""
    about = {k: v for k, v in asdict(source.about).items() if v is not None}
    rows = [as_record(row) for row in source.rows]
    return json.dumps({"about": about, "rows": rows}, ensure_ascii=False, allow_nan=False)


def as_record(row: FactEffect) -> dict[str, Any]:
    """What JSON holds of a fact's effects. Where a number is missing, null."""
    return {
        "fact": row.fact,
        "clean": null_if_infinite(row.clean),
        "corrupted": null_if_infinite(row.corrupted),
        "dropped": row.dropped,
        "effects": {
            site: [[null_if_infinite(value) for value in group] for group in values.tolist()]
            for site, values in row.effects.items()
        },
    }


def read_records(text: str, name: str) -> Source:
    """Records from what `write_records` wrote, or from JSONL with one record a line, of which a cut-off last one is
    left out. Raises DataError."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        data = _json_lines(text, name)
    except (RecursionError, ValueError):
        raise DataError(f"'{name}' is nested too deeply, or a number in it is too long.") from None
    if isinstance(data, dict) and "rows" not in data:
        data = [data]
    records, about = (data["rows"], _read_about(data, name)) if isinstance(data, dict) else (data, About())
    if not isinstance(records, list) or not records:
        raise DataError(f"'{name}' holds no records.", "", "Open a JSON file saved on this page, or a study's JSONL.")
    rows = tuple(_read_row(record, f"{name}, record {i + 1}") for i, record in enumerate(records))
    shapes = {tuple(values.shape) for row in rows for values in row.effects.values()}
    if len(shapes) > 1:
        raise DataError(f"'{name}' mixes models: its records have {sorted(s[1] for s in shapes)} layers.")
    return Source(name, rows, about)


def _json_lines(text: str, name: str) -> list[Any]:
    lines, records = text.strip().splitlines(), []
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if i + 1 == len(lines) and records:
                break
            raise DataError(f"'{name}' is not JSON: {error.msg} in line {i + 1}.") from None
        except (RecursionError, ValueError):
            raise DataError(f"'{name}', line {i + 1} is nested too deeply, or a number in it is too long.") from None
    return records


def _read_about(data: dict[str, Any], name: str) -> About:
    try:
        about = dict(data.get("about") or {})
        config = about.pop("config", None)
        known = {f.name for f in fields(About)}
        options: dict[str, Any] = {k: tuple(v) if k == "edits" else v for k, v in about.items() if k in known}
        return About(**options, config=TraceConfig(**config) if config else None)
    except (TypeError, ValueError) as error:
        raise DataError(f"'{name}': its description cannot be read ({error}).") from None


def _read_row(record: Any, place: str) -> FactEffect:
    try:
        groups = record["effects"].items()
        effects = {site: torch.tensor([list(map(_float, row)) for row in rows]) for site, rows in groups}
        dropped = str(record["dropped"])
        row = FactEffect(str(record["fact"]), _float(record["clean"]), _float(record["corrupted"]), effects, dropped)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        needed = "It needs fact, clean, corrupted, dropped and effects."
        raise DataError(f"{place} cannot be read ({type(error).__name__}: {error}).", "", needed) from None
    if not dropped and set(effects) != set(SITES):
        raise DataError(f"{place} has effects of {sorted(effects)}; {', '.join(SITES)} are needed.")
    if any(values.shape[:1] != (len(GROUPS),) or values.dim() != 2 for values in effects.values()):
        raise DataError(f"{place} has effects of a wrong shape.", f"{len(GROUPS)} token groups × layers are needed.")
    return row


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def shipped_records() -> Source | None:
    """The records that ship with the project, if they are there: the default model, default settings."""
    try:
        text = STUDY.read_text(encoding="utf-8")
    except OSError:
        return None
    name = f"docs/studies/{STUDY.name}"
    rows = read_records(text, name).rows if text.strip() else ()
    about = About(model=DEFAULT_MODEL, facts=digest(load_facts()), config=TraceConfig(), order_seed=0)
    return Source(name, rows, about) if rows else None


def averages_csv(averages: Averages, metric: str) -> str:
    """One row a kind, token group and layer: AIE with its 95 % interval, empty where no fact has the group."""
    return csv_text(
        ("kind", "token_group", "layer", "aie", "low", "high", "facts", "metric"),
        (
            [site, group, layer, *("" if math.isnan(v) else float(v) for v in values), averages.n, metric]
            for site, effect in averages.effects.items()
            for i, group in enumerate(GROUPS)
            for layer, values in enumerate(zip(effect.mean[i], effect.low[i], effect.high[i], strict=True))
        ),
    )
