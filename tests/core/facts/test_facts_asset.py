"""The structure of the project's own fact set (assets/facts.json)."""

import json
import re
import unicodedata
from collections import Counter

import pytest

from rome_core.files import ASSETS

PATH = ASSETS / "facts.json"
DATA = json.loads(PATH.read_text(encoding="utf-8"))
RELATIONS = DATA["relations"]
KEYS = {"id", "name", "subject_first", "prompts", "paraphrases", "generation", "reversed", "facts", "neighbours"}

each_relation = pytest.mark.parametrize("relation", RELATIONS, ids=[r["id"] for r in RELATIONS])


def templates(relation):
    return [*relation["prompts"], *relation["paraphrases"], *relation["generation"], relation["reversed"]]


def neighbours(relation):
    return relation.get("neighbours", [])


def plain(text):
    return unicodedata.normalize("NFC", text).casefold()


def test_header():
    assert set(DATA) == {"version", "licence", "relations"}
    assert DATA["version"] == 1 and DATA["licence"] == "MIT"


def test_counts():
    assert len(RELATIONS) >= 14
    assert sum(len(r["facts"]) for r in RELATIONS) >= 440


def test_both_positions_of_the_subject_are_well_covered():
    first = [f for r in RELATIONS if r["subject_first"] for f in r["facts"]]
    later = [f for r in RELATIONS if not r["subject_first"] for f in r["facts"]]
    assert len(first) >= 150 and len(later) >= 150
    assert sum(" " not in subject for subject, _, _ in first) >= 100
    share = sum(r["subject_first"] for r in RELATIONS) / len(RELATIONS)
    assert 0.35 <= share <= 0.65


def test_relation_names_are_unique():
    for key in ("id", "name"):
        assert len({r[key] for r in RELATIONS}) == len(RELATIONS)


def test_a_fact_subject_occurs_once_in_the_file():
    counts = Counter(plain(f[0]) for r in RELATIONS for f in r["facts"])
    assert [s for s, n in counts.items() if n > 1] == []


def test_edit_prompts_are_unique():
    prompts = [r["prompts"][0].format(f[0]) for r in RELATIONS for f in r["facts"]]
    assert len(set(prompts)) == len(prompts)


def test_some_subjects_are_not_ascii_and_some_have_several_words():
    subjects = [f[0] for r in RELATIONS for f in r["facts"]]
    assert sum(not s.isascii() for s in subjects) >= 10
    assert sum(" " in s for s in subjects) >= 50


@each_relation
def test_fields(relation):
    assert KEYS - {"neighbours"} <= set(relation) <= KEYS
    assert 25 <= len(relation["facts"]) <= 45
    assert len(relation["prompts"]) >= 1
    assert len(relation["paraphrases"]) >= 3
    assert len(relation["generation"]) >= 2
    assert all(len(f) == 3 for f in relation["facts"])
    assert all(len(n) == 2 for n in neighbours(relation))


@each_relation
def test_templates(relation):
    found = templates(relation)
    assert len(set(found)) == len(found)
    for template in found:
        assert template.count("{}") == 1 and template.count("{") == template.count("}") == 1, template
        assert template == template.strip() and "  " not in template, template
        assert not template.endswith((".", ",", ":")), template
        assert not template.endswith("{}"), template
        assert template.startswith("{}") or (template[0].isupper() and template[0].isalpha()), template


@each_relation
def test_subject_first_tells_the_truth(relation):
    assert isinstance(relation["subject_first"], bool)
    assert relation["prompts"][0].startswith("{}") == relation["subject_first"]


@each_relation
def test_a_template_that_begins_with_the_subject_begins_a_sentence(relation):
    """Lower-case subjects (animals, dishes) must not stand at the beginning of a template."""
    if any(t.startswith("{}") for t in templates(relation) if t != relation["reversed"]):
        small = [f[0] for f in relation["facts"] + neighbours(relation) if f[0][0].islower()]
        assert small == []


@each_relation
def test_words(relation):
    for text in [w for row in relation["facts"] + neighbours(relation) for w in row]:
        assert text and text == text.strip() and "  " not in text and "{" not in text and "}" not in text, text
        assert text == unicodedata.normalize("NFC", text), text
        assert not text.casefold().startswith(("the ", "a ", "an ")), text
    for word in {f[1] for f in relation["facts"]}:
        assert len(word.split()) <= 2 and len(word) <= 20, word


@each_relation
def test_subjects_are_unique_and_do_not_give_the_object_away(relation):
    rows = relation["facts"] + neighbours(relation)
    subjects = [plain(row[0]) for row in rows]
    assert len(set(subjects)) == len(subjects)
    for row in rows:
        assert not re.search(rf"\b{re.escape(plain(row[1]))}\b", plain(row[0])), row


@each_relation
def test_counterfactual_objects(relation):
    objects = {f[1] for f in relation["facts"]}
    assert {n[1] for n in neighbours(relation)} <= objects
    for subject, true, new in relation["facts"]:
        assert new != true, subject
        assert new in objects, (subject, new)
    # the counterfactual is not always the same one
    for true in objects:
        assert len({new for _, old, new in relation["facts"] if old == true}) >= 3, true


@each_relation
def test_each_fact_has_five_neighbours(relation):
    sharing = Counter(row[1] for row in relation["facts"] + neighbours(relation))
    for subject, true, _ in relation["facts"]:
        assert sharing[true] - 1 >= 5, (subject, true)
