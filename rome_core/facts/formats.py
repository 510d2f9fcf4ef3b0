"""What a record means: each format of the field is one row of `FORMATS`, told by the fields that a record has.

A reader gives what it finds in a record, in order: facts, and a sentence for each thing that is none. Values are taken
as what they are: a list or a record where a text is needed is a sentence, never the text of its brackets.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import compress

from rome_core.errors import DataError, RomeError
from rome_core.facts.fact import N_NEIGHBOURS, Fact, Probe
from rome_core.facts.tables import OBJECT, PROMPT, SUBJECT, Cells, is_nothing, kind_of, plain
from rome_core.files import ASSETS
from rome_core.model.tokens import Prompt, check_letters, check_whole

OWN_FACTS = ASSETS / "facts.json"

# What flat records call their other fields, as `tables.PROMPT` has the first.
NEW = ("target new", "new object", "new", "target", "alt")
TRUE = ("target true", "true object", "true", "ground truth", "answers", "attribute", *OBJECT)
PARAPHRASES = ("paraphrase prompts", "paraphrases", "paraphrase", "rephrase prompt", "rephrase")
NEIGHBOURS = ("neighborhood prompts", "neighbours", "neighbors", "locality prompt", "loc")
NEIGHBOUR_TRUE = ("locality ground truth", "loc ans", "neighbour true")
GENERATIONS = ("generation prompts", "generations")
ID = ("case id", "known id", "id", "uuid")
RELATION = ("relation id", "predicate id", "relation")
PORTABILITY, LOCALITY = ("portability",), ("locality",)
FLAT = frozenset(
    name
    for names in (PROMPT, SUBJECT, NEW, TRUE, PARAPHRASES, NEIGHBOURS, NEIGHBOUR_TRUE, GENERATIONS, ID, RELATION)
    for name in names
) | {*PORTABILITY, *LOCALITY}

Found = tuple[str, Fact | str]  # which part of its record, and the fact or why it is none
Templates = Mapping[str, Sequence[str]]  # of LAMA and ParaRel, by relation; "" holds those that name none


class FieldError(DataError):
    """What is wrong with one field of a record."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"'{field}' {what}")
        self.field = field


# -------------------------------------------------------------------------------------------------------- typed values


def text_of(name: str, value: object) -> str:
    """A text, a whole number as it is written, or {"str": text}; raises FieldError for anything else."""
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and isinstance(value.get("str"), str):
        value = value["str"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value != value:
        value = None  # what a table puts where nothing was written
    if value is None or (isinstance(value, str) and not value.strip()):
        raise FieldError(name, "is empty.")
    if not isinstance(value, str):
        what = kind_of(value) if not isinstance(value, (list, tuple)) else f"a list of {len(value)}"
        raise FieldError(name, f"is {what} where one text is needed.")
    check_whole(value)
    return value.strip()


def first_of(name: str, value: object) -> str:
    """The first of several right answers, which may be lists of aliases themselves, or the only one."""
    while isinstance(value, (list, tuple)):
        if not value:
            raise FieldError(name, "is an empty list.")
        value = value[0]
    return text_of(name, value)


def texts_of(name: str, value: object) -> tuple[str, ...]:
    """Texts of a list, or the only one."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(text_of(name, one) for one in values)


@dataclass(frozen=True)
class Fields:
    """A record's fields by their plain names; each is asked for under all names that people give it."""

    cells: Mapping[str, tuple[str, object]]

    @classmethod
    def of(cls, record: Cells) -> Fields:
        cells: dict[str, tuple[str, object]] = {}
        for name, value in record.items():
            if plain(name) in cells and plain(name) in FLAT:
                raise FieldError(str(name), f"stands there twice, as '{cells[plain(name)][0]}', too.")
            cells[plain(name)] = str(name), value
        return cls(cells)

    def find(self, names: Iterable[str]) -> tuple[str, object] | None:
        """The first of the fields that holds something, as it is written."""
        held = (self.cells[name] for name in names if name in self.cells)
        return next(((name, value) for name, value in held if not is_nothing(value)), None)

    def text(self, names: Sequence[str], read: Callable[[str, object], str] = text_of) -> str:
        """A text; empty where none of the fields holds one."""
        found = self.find(names)
        return read(*found) if found else ""

    def texts(self, names: Sequence[str]) -> tuple[str, ...]:
        found = self.find(names)
        return texts_of(*found) if found else ()

    def needed(self, names: Sequence[str]) -> str:
        """A text that must be there."""
        if not self.find(names):
            if empty := next((self.cells[name][0] for name in names if name in self.cells), ""):
                raise FieldError(empty, "is empty.")
            there = ", ".join(name for name, _ in self.cells.values()) or "none"
            raise FieldError(names[0].replace(" ", "_"), f"is not among its fields ({there}).")
        return self.text(names)


def prompt_of(text: str, subject: str) -> Prompt:
    """A prompt from a template with {} or [X], from the name of a relation of the project's, or from its full text."""
    text = from_lama(text) if "[X]" in text else _own_templates().get(text.strip(), text)
    return Prompt(text, subject) if "{}" in text else Prompt.from_text(text, subject)


@cache
def _own_templates() -> dict[str, str]:
    """The first template of each of the project's relations, by the relation's name."""
    return {each["id"]: each["prompts"][0] for each in json.loads(OWN_FACTS.read_text(encoding="utf-8"))["relations"]}


# -------------------------------------------------------------------------------------------------------------- flat


def flat_cells(record: Cells) -> dict[str, str]:
    """Prompt, subject and objects of a flat record as texts, empty where there is nothing. Raises FieldError."""
    fields = Fields.of(record)
    return {
        "template": fields.text(PROMPT),
        "subject": _subject(fields),
        "target_new": fields.text(NEW),
        "target_true": fields.text(TRUE, first_of),
    }


def _subject(fields: Fields) -> str:
    """The subject; one of several lines is what an open quotation mark leaves."""
    subject = fields.text(SUBJECT)
    if len(lines := subject.splitlines()) > 1:
        raise FieldError(
            "subject", f"goes on for {len(lines)} lines ('{lines[0][:40]}…'): is a quotation mark left open?"
        )
    return subject


def _flat(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """Fields side by side: the project's tables, flat CounterFact, requests of ROME's and MEMIT's notebooks, EasyEdit,
    KnowEdit, zsRE as MEND ships it, QAEdit, known facts."""
    fields = Fields.of(record)
    if not fields.find(PROMPT) and not fields.find(SUBJECT):
        there = ", ".join(map(str, list(record)[:8])) or "none"
        raise DataError("The format is not known.", f"Its fields are {there}.", "A prompt and a subject are needed.")
    fields.needed(SUBJECT)
    prompt = prompt_of(fields.needed(PROMPT), _subject(fields))
    new, true = fields.text(NEW), fields.text(TRUE, first_of)
    if not new and not true:
        raise FieldError("target_new", "is missing, and so is the true object: one of them is needed.")
    is_zsre = "src" in fields.cells
    portability = tuple(_probes(*found, "")) if (found := fields.find(PORTABILITY)) else ()
    relation = fields.text(RELATION) if fields.find(RELATION) != fields.find(PROMPT) else ""
    fact = Fact(
        id=fields.text(ID) or str(number - 1),
        relation=relation or "zsRE" * is_zsre,
        prompt=prompt,
        target_true=true,
        target_new=new,
        paraphrases=fields.texts(PARAPHRASES),
        generations=fields.texts(GENERATIONS),
        portability=portability,
    )
    yield "", _beside(fact, _neighbours(fields))


def _neighbours(fields: Fields) -> list[tuple[str, str]]:
    """Prompts that an edit must leave alone, with their answers."""
    prompts = fields.texts(NEIGHBOURS)
    if "loc" in fields.cells:  # zsRE's are questions without their mark
        prompts = tuple(prompt + "?" * (not prompt.endswith("?")) for prompt in prompts)
    answer = fields.text(NEIGHBOUR_TRUE, first_of)
    probes = _probes(*found, "") if (found := fields.find(LOCALITY)) else ()
    return [*((prompt, answer) for prompt in prompts), *((probe.prompt, probe.answer) for probe in probes)]


def _beside(fact: Fact, near: Sequence[tuple[str, str]]) -> Fact:
    """The fact with neighbours and their answers: one for all, or each its own."""
    neighbours, answers = (tuple(column) for column in zip(*near, strict=True)) if near else ((), ())
    if len(set(answers)) <= 1:
        return replace(fact, neighbours=neighbours, neighbour_true=answers[0] if answers else "")
    return replace(fact, neighbours=neighbours, neighbour_answers=answers)


ASKED = (("prompt", ("ground_truth", "target", "answers")), ("loc", ("loc_ans",)), ("New Question", ("New Answer",)))


def _probes(name: str, value: object, kind: str) -> Iterator[Probe]:
    """Prompts with answers, under the names of what they ask for: lists and records within each other."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _probes(name, one, kind)
    elif not isinstance(value, Mapping):
        raise FieldError(name, f"is {kind_of(value)} where prompts with answers are needed.")
    elif asked := next(((q, a) for q, names in ASKED for a in names if q in value and a in value), None):
        question, answer = value[asked[0]], value[asked[1]]
        questions = question if isinstance(question, (list, tuple)) else [question]
        answers = answer if isinstance(question, (list, tuple)) else [answer]
        if not isinstance(answers, (list, tuple)) or len(questions) != len(answers):
            raise FieldError(name, f"has {len(questions)} prompts and not as many answers.")
        for one, right in zip(questions, answers, strict=True):
            yield Probe(text_of(name, one), first_of(name, right), kind)
    else:
        for axis, inner in value.items():
            yield from _probes(name, inner if inner is not None else [], str(axis))


# ------------------------------------------------------------------------------------------------------------- nested


def _counterfact(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """CounterFact; MQuAKE, whose records hold several rewrites; zsRE as MEMIT's loader writes it."""
    rewrites = record["requested_rewrite"]
    several = isinstance(rewrites, (list, tuple))
    probes = []
    if several and len(rewrites) == 1 and record.get("questions") and record.get("new_answer"):
        questions, answer = texts_of("questions", record["questions"]), text_of("new_answer", record["new_answer"])
        probes = [Probe(question, answer, "multi-hop") for question in questions]
    for at, rewrite in enumerate(rewrites if several else [rewrites], 1):
        part = f"rewrite {at}" if several and len(rewrites) > 1 else ""
        try:
            yield part, _rewrite(record, rewrite, number, f"/{at}" if part else "", probes)
        except RomeError as error:
            yield part, str(error)
    if several and not rewrites:
        yield "", "It has no rewrite."


def _rewrite(record: Cells, rewrite: object, number: int, suffix: str, probes: Sequence[Probe]) -> Fact:
    if not isinstance(rewrite, Mapping):
        raise FieldError("requested_rewrite", f"is {kind_of(rewrite)} where a record is needed.")
    fields = Fields.of(rewrite)
    true = fields.text(TRUE, first_of)
    true = "" if true.startswith("<|") and true.endswith("|>") else true  # MEMIT's stand-in where zsRE has none
    near = record.get("neighborhood_prompts") or []
    if not isinstance(near, (list, tuple)):
        raise FieldError("neighborhood_prompts", f"is {kind_of(near)} where a list is needed.")
    pairs = [
        (text_of("neighborhood_prompts", one.get("prompt")), text_of("neighborhood_prompts", one.get("target")))
        if isinstance(one, Mapping)
        else (text_of("neighborhood_prompts", one), true)
        for one in near
    ]
    asked = texts_of("paraphrase_prompts", record["paraphrase_prompts"]) if record.get("paraphrase_prompts") else ()
    generations = (
        texts_of("generation_prompts", record["generation_prompts"]) if record.get("generation_prompts") else ()
    )
    fact = Fact(
        id=(Fields.of(record).text(ID) or str(number - 1)) + suffix,
        relation=fields.text(("relation id",)),
        prompt=prompt_of(fields.needed(("prompt",)), fields.needed(("subject",))),
        target_true=true,
        target_new=fields.needed(("target new",)),
        paraphrases=asked or fields.texts(("question",)),
        generations=tuple(dict.fromkeys(generations)),
        portability=tuple(probes),
    )
    return _beside(fact, pairs)


STAYS = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")  # RippleEdits' axes of what must not change


def _ripple(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """RippleEdits: the edit is a whole sentence; the prompt is what it shares with the original fact's sentence."""
    edit = record["edit"]
    if not isinstance(edit, Mapping):
        raise FieldError("edit", f"is {kind_of(edit)} where a record is needed.")
    sentence, original = text_of("prompt", edit.get("prompt")).rstrip("."), ""
    if isinstance(edit.get("original_fact"), Mapping):
        original = text_of("original_fact", edit["original_fact"].get("prompt")).rstrip(".")
    new, true = (text_of("target", edit["target"]) if edit.get("target") else ""), ""
    if new and sentence.endswith(new):
        text = sentence.removesuffix(new).strip()
    else:
        text, _, new = (part.strip() for part in sentence.rpartition(" is "))
        text = f"{text} is"
    if original.startswith(text):
        true = original.removeprefix(text).strip()
    relation = text_of("relation", edit["relation"]) if edit.get("relation") else ""
    subject = text_of("subject", edit["subject"]) if edit.get("subject") else _ripple_subject(text, relation)
    if not subject:
        raise FieldError("edit", f"names no subject, and none is found in '{text}'. Add the field 'subject' to it.")
    stays, follows = list[Probe](), list[Probe]()
    for axis, tests in record.items():
        if isinstance(tests, (list, tuple)):
            (stays if axis in STAYS else follows).extend(_queries(axis, tests))
    fact = Fact(str(number - 1), relation, Prompt.from_text(text, subject), true, new, portability=tuple(follows))
    yield "", _beside(fact, [(probe.prompt, probe.answer) for probe in stays])


def _ripple_subject(text: str, relation: str) -> str:
    """'The name of the country of citizenship of X is': what stands behind the words of the relation."""
    words = re.escape(relation.replace("_", " "))
    found = re.search(rf"\b{words} of (.+) is$", text, re.IGNORECASE) if words else None
    return found[1] if found else ""


def _queries(axis: str, tests: Sequence[object]) -> Iterator[Probe]:
    for test in tests:
        for query in test.get("test_queries", ()) if isinstance(test, Mapping) else ():
            answers = [answer.get("value") for answer in query.get("answers", ())]
            if answers and answers[0]:
                yield Probe(text_of("prompt", query.get("prompt")), text_of("value", answers[0]), axis)


def _languages(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """MzsRE and Bi-ZsRE: one zsRE record a language."""
    for language, inner in record.items():
        assert isinstance(inner, Mapping)
        try:
            for _, fact in _flat(inner, number, templates):
                yield language, fact if isinstance(fact, str) else replace(fact, id=f"{fact.id} {language}")
        except RomeError as error:
            yield language, str(error)


def _relation(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """A relation of LRE (Hernandez et al. 2024): templates once, and samples of subject and object."""
    samples, relation = record["samples"], text_of("name", record.get("name"))
    asked = [from_lama(t) if "[X]" in t else t for t in texts_of("prompt_templates", record["prompt_templates"])]
    if record.get("prompt_templates_zs"):
        asked += texts_of("prompt_templates_zs", record["prompt_templates_zs"])
    first, *others = dict.fromkeys(asked)
    if not isinstance(samples, (list, tuple)) or not samples:
        raise FieldError("samples", "is no list of subjects and objects.")
    pairs: list[tuple[str, str] | str] = []
    for sample in samples:
        try:
            fields = Fields.of(sample if isinstance(sample, Mapping) else {})
            pairs.append((fields.needed(SUBJECT), first_of("object", sample["object"])))
        except (RomeError, KeyError) as error:
            pairs.append(str(error) if isinstance(error, RomeError) else "'object' is missing.")
    known: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if isinstance(pair, tuple):
            known[pair[1]].append(pair[0])
    for at, pair in enumerate(pairs, 1):
        try:
            if isinstance(pair, str):
                raise DataError(pair)
            subject, true = pair
            near = [first.replace("{}", other) for other in known[true] if other != subject][:N_NEIGHBOURS]
            fact = Fact(
                id=f"{relation}/{at - 1}",
                relation=relation,
                prompt=prompt_of(first, subject),
                target_true=true,
                target_new="",
                paraphrases=tuple(template.replace("{}", subject) for template in others),
                neighbours=tuple(near),
                neighbour_true=true if near else "",
            )
            yield f"sample {at}", fact
        except RomeError as error:
            yield f"sample {at}", str(error)


# ------------------------------------------------------------------------------------------------- LAMA and ParaRel


def from_lama(template: str) -> str:
    """'[X] was born in [Y] .' as a prompt with {}; raises DataError where the object is not what comes last."""
    before, found, behind = template.partition("[Y]")
    if not found:
        return template.replace("[X]", "{}").strip()
    if template.count("[X]") != 1 or "[X]" in behind:
        raise DataError(f"'{template}' has [Y] before [X]: a decoder meets the answer before the subject.")
    if behind.strip(" .!?\u3002"):
        raise DataError(f"'{template}' goes on behind [Y]: a decoder is asked for what comes last.")
    return before.replace("[X]", "{}").strip()


def is_template(record: Cells) -> bool:
    """Whether a record is a template of LAMA or ParaRel, not a fact."""
    return any(
        isinstance(record.get(name), str) and "[X]" in str(record[name]) for name in ("template", "pattern")
    ) and (not any(plain(name) in SUBJECT for name in record))


def templates_of(records: Iterable[Cells]) -> dict[str, list[str]]:
    """The templates that stand among the records (LAMA's relations.jsonl, ParaRel's patterns), by relation."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if is_template(record):
            relation = record.get("relation") if isinstance(record.get("relation"), str) else ""
            found[str(relation)].append(str(record.get("pattern") or record.get("template")))
    return found


def _template(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """A template of LAMA or ParaRel: it is used for the facts of its relation."""
    from_lama(str(record.get("pattern") or record.get("template")))
    yield from ()


def _triple(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """A fact of T-REx (LAMA, ParaRel): subject and object; the prompt is its relation's first usable template."""
    fields = Fields.of(record)
    relation = fields.text(RELATION)
    usable = []
    for template in templates.get(relation) or templates.get("") or ():
        try:
            usable.append(from_lama(template))
        except DataError:
            continue
    if not usable:
        name = f"relation {relation}" if relation else "its relation"
        raise DataError(f"There is no template for {name}: give one beside the facts, with [X] and [Y].")
    subject = fields.needed(SUBJECT)
    true = fields.needed(OBJECT)
    others = tuple(template.replace("{}", subject) for template in usable[1:])
    yield "", Fact(fields.text(ID) or str(number - 1), relation, Prompt(usable[0], subject), true, "", others)


# ------------------------------------------------------------------------------------------------- the project's own


def _own(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """The project's own set: templates once a relation, and facts as triples."""
    relations = record["relations"]
    if not isinstance(relations, list):
        raise FieldError("relations", f"is {kind_of(relations)} where a list is needed.")
    for relation in relations:
        try:
            yield from (("", fact) for fact in expand_relation(relation))
        except RomeError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            name = relation.get("id", "?") if isinstance(relation, Mapping) else kind_of(relation)
            yield f"relation {name}", "It cannot be read: it has not the form of those in assets/facts.json."


def expand_relation(data: Cells) -> list[Fact]:
    """One relation of the project's own set in full: the file keeps templates once and facts as triples.

    Neighbours are the same template about other subjects with the same object; the choice is seeded by the subject,
    so that it is the same everywhere.
    """
    facts, subjects = [], defaultdict[str, list[str]](list)
    for subject, true, *_ in [*data["facts"], *data.get("neighbours", ())]:
        subjects[true].append(subject)
    for index, (subject, true, new) in enumerate(data["facts"]):
        template = data["prompts"][0]
        others = [other for other in subjects[true] if other != subject]
        random.Random(subject).shuffle(others)
        facts.append(
            Fact(
                id=f"{data['id']}/{index}",
                relation=str(data["id"]),
                prompt=Prompt(template, subject),
                target_true=true,
                target_new=new,
                paraphrases=tuple(t.replace("{}", subject) for t in data["paraphrases"][:2]),
                neighbours=tuple(template.replace("{}", other) for other in others[:N_NEIGHBOURS]),
                neighbour_true=true,
                generations=tuple(t.replace("{}", subject) for t in data["generation"][:2]),
                reversed=str(data["reversed"]).replace("{}", new) if data.get("reversed") else None,
            )
        )
    return facts


# -------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Format:
    """fits: whether a record is one, by its fields. fields: those on top that its reader uses, by their plain names."""

    name: str
    fits: Callable[[Cells], bool]
    read: Callable[[Cells, int, Templates], Iterator[Found]]
    fields: frozenset[str]


def _has(*names: str) -> Callable[[Cells], bool]:
    return lambda record: all(name in record for name in names)


def _is_by_language(record: Cells) -> bool:
    return bool(record) and all(isinstance(inner, Mapping) and "src" in inner for inner in record.values())


def _is_triple(record: Cells) -> bool:
    names = {plain(name) for name in record}
    return {"sub label", "obj label"} <= names and not names & {"prompt", "template", "src", "question"}


_REWRITE = {"requested rewrite", "paraphrase prompts", "neighborhood prompts", "generation prompts", *ID}
_AXES = {plain(name) for name in STAYS} | {
    *("logical generalization", "compositionality i", "compositionality ii", "subject aliasing", "edit")
}
# The first that fits is taken.
FORMATS = (
    Format("the project's own", _has("relations"), _own, frozenset({"relations", "version", "licence"})),
    Format("CounterFact", _has("requested_rewrite"), _counterfact, frozenset(_REWRITE | {"questions", "new answer"})),
    Format("RippleEdits", _has("edit"), _ripple, frozenset(_AXES)),
    Format(
        "LRE",
        _has("samples", "prompt_templates"),
        _relation,
        frozenset({"name", "samples", "prompt templates", "prompt templates zs", "properties"}),
    ),
    Format("templates", is_template, _template, frozenset({"template", "pattern", "relation"})),
    Format("T-REx", _is_triple, _triple, FLAT),
    Format("a table", lambda record: not _is_by_language(record), _flat, FLAT),
    Format("zsRE by language", _is_by_language, _languages, frozenset()),
)


# What a flat record is called where one looks at it, by fields that it has; the first that fits is taken.
_KINDS = (
    ({"known id"}, "known facts"),
    ({"src", "alt"}, "zsRE"),
    ({"portability"}, "KnowEdit or EasyEdit"),
    ({"locality"}, "KnowEdit or EasyEdit"),
    ({"locality prompt", "rephrase prompt"}, "flat CounterFact"),
)


def format_of(record: Cells) -> Format:
    return next(form for form in FORMATS if form.fits(record))


def name_of(record: Cells) -> str:
    """What its format is called."""
    form, fields = format_of(record), {plain(name) for name in record}
    return next((name for marks, name in _KINDS if marks <= fields), form.name) if form.read is _flat else form.name


def notes_on(records: Iterable[Cells]) -> tuple[str, ...]:
    """What stands in records and is not used: fields that their readers do not look at, the most frequent first."""
    unused = Counter[str]()
    for record in records:
        known = format_of(record).fields
        unused.update(str(name) for name in record if known and plain(name) not in known)
    return (f"Not used: {', '.join(name for name, _ in unused.most_common(12))}.",) if unused else ()


def read_record(record: Cells, number: int, templates: Templates) -> Iterator[Found]:
    """What one record holds: facts, and a sentence for each thing that is none."""
    try:
        for part, item in format_of(record).read(record, number, templates):
            yield part, item if isinstance(item, str) else _undamaged(item)
    except RomeError as error:
        yield "", str(error)
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError):  # nested otherwise than it should be
        yield "", f"A field of it has not the form that {name_of(record)} has there."


def _undamaged(fact: Fact) -> Fact | str:
    try:
        for text in (fact.prompt.text, fact.target_new, fact.target_true, *fact.paraphrases, *fact.neighbours):
            check_letters(text)
    except RomeError as error:
        return str(error)
    return fact


def with_flat_neighbours(facts: Sequence[Fact], flat: Sequence[bool]) -> list[Fact]:
    """Flat CounterFact has one neighbour a record; others with the same right answer stand in other records."""
    pool: dict[str, list[str]] = defaultdict(list)
    for fact in compress(facts, flat):
        pool[fact.neighbour_true] += fact.neighbours

    def fill(fact: Fact) -> Fact:
        others = (prompt for prompt in pool[fact.neighbour_true] if fact.prompt.subject not in prompt)
        return replace(fact, neighbours=tuple(dict.fromkeys([*fact.neighbours, *others]))[:N_NEIGHBOURS])

    return [fill(fact) if is_flat else fact for fact, is_flat in zip(facts, flat, strict=True)]
