"""Facts to trace and edit: the project's own set, and readers for the formats that the field uses."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from rome_core.errors import DataError, RomeError
from rome_core.files import ASSETS
from rome_core.model.tokens import EditRequest, Prompt

OWN_FACTS = ASSETS / "facts.json"
N_NEIGHBOURS = 10  # as many as CounterFact gives
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Fact:
    """One fact with everything that tracing, editing and measuring an edit of it need.

    neighbours: prompts about other subjects, whose right answer is `neighbour_true`. id: place in its source.
    """

    id: str
    relation: str
    prompt: Prompt
    target_true: str
    target_new: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    neighbour_true: str = ""
    generations: tuple[str, ...] = ()
    reversed: str | None = None

    @property
    def request(self) -> EditRequest:
        return EditRequest(self.prompt, self.target_new, self.target_true)


class Facts(list[Fact]):
    """The readable facts of a file, in order; `problems` says what was wrong with the others, and where."""

    def __init__(self, facts: Iterable[Fact], problems: Iterable[DataError] = ()) -> None:
        super().__init__(facts)
        self.problems = list(problems)


def load_facts(path: str | Path | None = None) -> Facts:
    """The project's own facts, or those of a JSON file in one of four formats, recognised by its fields.

    CounterFact, zsRE as MEND ships it, known facts (as ROME ships them) and the flat form of CounterFact. Bad records
    are left out and listed in `.problems`. Raises DataError if the file as a whole cannot be read.
    """
    source = Path(path) if path is not None else OWN_FACTS
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{source}' cannot be read.", str(error), "Give a JSON file of facts.") from None
    return parse_facts(text, source.name)


def part_of(fact: Fact) -> Part:
    """Which part a fact is in: half of all subjects train hypernetworks, a tenth validates, the rest is scored.

    A hash of the subject decides, so facts about one subject never stand in two parts, in any file, on any machine.
    """
    digest = hashlib.blake2b(fact.prompt.subject.strip().casefold().encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") % 100
    return "train" if place < 50 else "validation" if place < 60 else "test"


def facts_of(part: Part, facts: Iterable[Fact] | None = None) -> list[Fact]:
    """The facts of one part, in order: of the project's own set, or of `facts`."""
    return [fact for fact in (load_facts() if facts is None else facts) if part_of(fact) == part]


def parse_json(text: str, name: str) -> object:
    """What a JSON text holds; raises DataError with the line where it ends to be JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"'{name}' is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.",
            "",
            "Give a JSON file with a list of records.",
        ) from None


def parse_facts(text: str, name: str = "the text") -> Facts:
    """Facts from JSON text; `name` is how messages call it."""
    data = parse_json(text, name)
    if isinstance(data, dict) and "relations" in data:
        try:
            return Facts(expand_relations(data))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"'{name}' has relations that cannot be read ({type(error).__name__}: {error}).",
                "",
                "See assets/facts.json.",
            ) from None
    if not isinstance(data, list) or not data:
        raise DataError(f"'{name}' holds no list of records.", "", "Give a JSON file with a list of records.")
    facts, problems = [], []
    for index, record in enumerate(data):
        try:
            facts.append(parse_record(record, index))
        except RomeError as error:
            problems.append(DataError(f"{name}, record {index + 1}: {error}"))
    if not facts:
        raise problems[0]
    return Facts(_with_flat_neighbours(facts), problems)


def parse_record(record: Any, index: int) -> Fact:
    """A record in one of the formats as a fact; raises a RomeError that leaves it to the caller to name the place."""
    fields = set(record) if isinstance(record, dict) else set()
    reader = next((reader for mark, reader in _READERS.items() if mark in fields), None)
    if reader is None:
        raise DataError(
            "the format is not known.",
            f"Its fields are {', '.join(sorted(map(str, fields))[:8]) or 'none'}.",
            "CounterFact, zsRE (MEND), known facts and flat CounterFact can be read.",
        )
    try:
        return reader(record, index)
    except KeyError as error:
        raise DataError(f"the field {error} is missing.", "", "Add it or remove the record.") from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(f"a field has the wrong type ({error}).") from None


Reader = Callable[[dict[str, Any], int], Fact]


def _counterfact(record: dict[str, Any], index: int) -> Fact:
    rewrite = record["requested_rewrite"]
    return Fact(
        id=str(record["case_id"]),
        relation=str(rewrite.get("relation_id", "")),
        prompt=Prompt(rewrite["prompt"], rewrite["subject"]),
        target_true=_text(rewrite["target_true"]["str"]),
        target_new=_text(rewrite["target_new"]["str"]),
        paraphrases=tuple(map(_text, record["paraphrase_prompts"])),
        neighbours=tuple(map(_text, record["neighborhood_prompts"])),
        neighbour_true=_text(rewrite["target_true"]["str"]),
        generations=tuple(dict.fromkeys(map(_text, record.get("generation_prompts", ())))),
    )


def _zsre(record: dict[str, Any], index: int) -> Fact:
    return Fact(
        id=str(index),
        relation="zsRE",
        prompt=Prompt.from_text(record["src"], record["subject"]),
        target_true=_text(record["answers"][0]),
        target_new=_text(record["alt"]),
        paraphrases=(_text(record["rephrase"]),),
        neighbours=(_text(record["loc"]) + "?" * (not record["loc"].endswith("?")),),
        neighbour_true=_text(record["loc_ans"]),
    )


def _known(record: dict[str, Any], index: int) -> Fact:
    # The template may stop before the prompt does, so the prompt is what counts.
    return Fact(
        id=str(record["known_id"]),
        relation=str(record.get("relation_id", "")),
        prompt=Prompt.from_text(record["prompt"], record["subject"]),
        target_true=_text(record["attribute"]),
        target_new=_text(record["attribute"]),
    )


def _flat(record: dict[str, Any], index: int) -> Fact:
    return Fact(
        id=str(record["case_id"]),
        relation="",
        prompt=Prompt.from_text(record["prompt"], record["subject"]),
        target_true=_text(record["ground_truth"]),
        target_new=_text(record["target_new"]),
        paraphrases=(_text(record["rephrase_prompt"]),),
        neighbours=(_text(record["locality_prompt"]),),
        neighbour_true=_text(record["locality_ground_truth"]),
    )


_READERS: dict[str, Reader] = {
    "requested_rewrite": _counterfact,
    "rephrase_prompt": _flat,
    "known_id": _known,
    "alt": _zsre,
}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} where a text is needed")
    return value.strip()


def _with_flat_neighbours(facts: Sequence[Fact]) -> list[Fact]:
    """The flat form has one neighbour a record; others with the same right answer stand in other records."""
    pool: dict[str, list[str]] = defaultdict(list)
    flat = [len(fact.neighbours) == 1 and fact.relation == "" for fact in facts]
    for fact in compress(facts, flat):
        pool[fact.neighbour_true] += fact.neighbours

    def fill(fact: Fact) -> Fact:
        others = (prompt for prompt in pool[fact.neighbour_true] if fact.prompt.subject not in prompt)
        return replace(fact, neighbours=tuple(dict.fromkeys([*fact.neighbours, *others]))[:N_NEIGHBOURS])

    return [fill(fact) if is_flat else fact for fact, is_flat in zip(facts, flat, strict=True)]


def expand_relations(data: dict[str, Any]) -> list[Fact]:
    """The project's own set in full: the file keeps templates once a relation and facts as triples.

    Neighbours are the same template about other subjects with the same object; the choice is seeded by the subject,
    so that it is the same everywhere.
    """
    facts = []
    for relation in data["relations"]:
        subjects: dict[str, list[str]] = defaultdict(list)
        for subject, true, *_ in [*relation["facts"], *relation.get("neighbours", ())]:
            subjects[true].append(subject)
        for index, (subject, true, new) in enumerate(relation["facts"]):
            template = relation["prompts"][0]
            others = [other for other in subjects[true] if other != subject]
            random.Random(subject).shuffle(others)
            facts.append(
                Fact(
                    id=f"{relation['id']}/{index}",
                    relation=relation["id"],
                    prompt=Prompt(template, subject),
                    target_true=true,
                    target_new=new,
                    paraphrases=tuple(t.replace("{}", subject) for t in relation["paraphrases"][:2]),
                    neighbours=tuple(template.replace("{}", other) for other in others[:N_NEIGHBOURS]),
                    neighbour_true=true,
                    generations=tuple(t.replace("{}", subject) for t in relation["generation"][:2]),
                    reversed=relation["reversed"].replace("{}", new) if relation.get("reversed") else None,
                )
            )
    return facts
