"""The one door for facts: the project's own set, and files in every format that the field uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from rome_core.errors import DataError
from rome_core.facts.fact import N_NEIGHBOURS, Fact, Part, Probe, distinct, lacks_new_object, part_of
from rome_core.facts.formats import (
    OWN_FACTS,
    Templates,
    is_template,
    name_of,
    notes_on,
    read_record,
    templates_of,
    with_flat_neighbours,
)
from rome_core.facts.tables import Place, Problem, Source, plain, read_source
from rome_core.files import expanded, read_bytes

__all__ = [
    "N_NEIGHBOURS",
    "OWN_FACTS",
    "Fact",
    "Facts",
    "Part",
    "Probe",
    "facts_of",
    "load_facts",
    "parse_facts",
    "part_of",
    "read_facts",
    "read_sets",
]

READABLE = (
    "CSV, TSV, JSON, JSON Lines, Parquet or lines with |: the project's columns, CounterFact, zsRE, known facts, "
    "notebooks' requests, EasyEdit, KnowEdit, MQuAKE, RippleEdits, MzsRE, LRE, T-REx with LAMA's or ParaRel's templates"
)
SUFFIXES = ("csv", "tsv", "json", "jsonl", "parquet", "txt")


class Facts(list[Fact]):
    """The facts of a file, in order, each with an id of its own; and what became of everything else in it.

    problems: what was left out, where and why. n_empty: empty rows. n_templates: rows that gave templates. forms: what
    it was read as, with counts. notes: what was there and not used.
    """

    def __init__(
        self,
        facts: Iterable[Fact],
        problems: Iterable[Problem] = (),
        *,
        n_empty: int = 0,
        n_templates: int = 0,
        forms: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(distinct(facts))
        self.problems, self.n_empty, self.n_templates = list(problems), n_empty, n_templates
        self.forms, self.notes = tuple(forms), tuple(notes)

    @property
    def n_rows(self) -> int:
        """Of what was found: each row is a fact, left out, empty, or a template."""
        return len(self) + len(self.problems) + self.n_empty + self.n_templates

    @property
    def lacking(self) -> list[Fact]:
        """Those that name no new object, or the true one: they can be traced, and edited to nothing."""
        return list(filter(lacks_new_object, self))


def load_facts(path: str | Path | None = None, *more: str | Path, encoding: str | None = None) -> Facts:
    """The project's own facts, or those of a file in any of the formats of `READABLE`, told by their shape.

    more: files that are read with it as one set (templates beside facts). encoding: where it is not UTF-8 or UTF-16.
    What cannot be read is left out and listed in `.problems`. Raises DataError if a file as a whole cannot be read.
    """
    if path is None:
        return _own_facts()
    paths = [expanded(one) for one in (path, *more)]
    return read_facts([(one.name, read_bytes(one)) for one in paths], encoding)


def _own_facts() -> Facts:
    own = _own_set()
    return Facts(own, forms=own.forms)


@cache
def _own_set() -> Facts:
    return read_facts([(OWN_FACTS.name, OWN_FACTS.read_bytes())])


def parse_facts(text: str | bytes, name: str = "the text", encoding: str | None = None) -> Facts:
    """Facts from a text or a file's bytes; `name` is how messages call it. Raises DataError."""
    return read_facts([(name, text)], encoding)


def read_facts(files: Sequence[tuple[str, str | bytes]], encoding: str | None = None) -> Facts:
    """Facts from (name, text or bytes) of one or several files, as one set. Raises DataError.

    Every row is accounted for: it is a fact, a problem with its place, empty, or a template for others.
    """
    sources = [read_source(data, name, encoding) for name, data in files]
    return _facts(" and ".join(name for name, _ in files), sources, _templates(sources))


def read_sets(files: Sequence[tuple[str, str | bytes]], encoding: str | None = None) -> dict[str, Facts]:
    """As `read_facts`, with a set for each file; one that holds templates only gives them to the others."""
    sources = {name: read_source(data, name, encoding) for name, data in files}
    templates = _templates(list(sources.values()))
    givers = [name for name, source in sources.items() if source.records and not source.problems]
    givers = [name for name in givers if all(map(is_template, sources[name].records.values()))]
    others = {name: source for name, source in sources.items() if name not in givers} or sources
    return {name: _facts(name, [source], templates) for name, source in others.items()}


def _templates(sources: Sequence[Source]) -> Templates:
    return templates_of(record for source in sources for record in source.records.values())


def _facts(names: str, sources: Sequence[Source], templates: Templates) -> Facts:
    facts, flat, n_templates = list[Fact](), list[bool](), 0
    problems = [problem for source in sources for problem in source.problems]
    forms = Counter[str]()
    for source in sources:
        for number, (place, record) in enumerate(source.records.items()):
            found = False
            for part, item in read_record(record, number + 1, templates):
                found = True
                if isinstance(item, Fact):
                    facts.append(item)
                    flat.append("locality prompt" in map(plain, record) and len(item.neighbours) == 1)
                    forms[f"{name_of(record)} ({source.form})"] += 1
                else:
                    problems.append(Problem(Place(place.number, place.unit, place.source, part), item))
            n_templates += not found
    if not facts:
        raise _nothing(names, problems, n_templates)
    return Facts(
        with_flat_neighbours(facts, flat),
        problems,
        n_empty=sum(source.n_empty for source in sources),
        n_templates=n_templates,
        forms=[f"{n} × {form}" for form, n in forms.items()],
        notes=notes_on(record for source in sources for record in source.records.values()),
    )


def _nothing(names: str, problems: Sequence[Problem], n_templates: int) -> DataError:
    """Why no fact could be read, with the first reason and how many there are."""
    if n_templates and not problems:
        return DataError(
            f"'{names}' holds {n_templates} templates and no facts.",
            "",
            "Give them together with the facts: rows with sub_label, obj_label and the relation.",
        )
    if not problems:
        return DataError(f"'{names}' holds no facts.", "", f"Give {READABLE}.")
    reasons = Counter(problem.sentence for problem in problems)
    sentence, n = reasons.most_common(1)[0]
    first = next(problem for problem in problems if problem.sentence == sentence)
    if len(problems) == 1:
        return DataError(str(first), "", f"Give {READABLE}.")
    others = f" So it is with {n - 1} more." if n > 1 else ""
    kinds = f" The others have {len(reasons) - 1} other reasons." if len(reasons) > 1 else ""
    what = f"None of the {len(problems)} records of '{names}' can be read. {first}{others}{kinds}"
    return DataError(what, "", f"Give {READABLE}.")


def facts_of(part: Part, facts: Iterable[Fact] | None = None) -> list[Fact]:
    """The facts of one part, in order: of the project's own set, or of `facts`."""
    return [fact for fact in (load_facts() if facts is None else facts) if part_of(fact) == part]
