"""The fact sets of a session: the project's own and the user's uploads, and what the model knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import streamlit as st

from pages.parts.averages.form import own_facts, text_of
from pages.shared import session
from rome_core import LanguageModel, RomeError
from rome_core.evaluation import hash_of, known_facts
from rome_core.evaluation.runs.store import OWN_SET
from rome_core.facts.datasets import Fact, Facts, parse_facts, part_of
from rome_core.progress import Track

AT_ONCE = 16  # facts of one step towards what the model knows


def sets() -> dict[str, Facts]:
    """By name, the project's own set first."""
    return {OWN_SET: own_facts(), **uploads()}


def uploads() -> MutableMapping[str, Facts]:
    return st.session_state.setdefault("_fact_sets", {})


def upload() -> None:
    """An uploader; a file that can be read joins this session's sets and becomes the chosen one."""
    file = st.file_uploader(
        "Facts as JSON: CounterFact, zsRE as MEND ships it, known facts as ROME ships them, or flat CounterFact",
        type=["json"],
        key="set-file",
    )
    if file is None or session.recall(("fact set", file.file_id)):
        return
    try:
        uploads()[file.name] = parse_facts(text_of(file), file.name)
    except RomeError as error:
        session.show_error(error)
        return
    session.remember(("fact set", file.file_id), True)
    st.session_state["fact-set"] = file.name


def choose() -> tuple[str, Facts]:
    """The set in use, the same on every page that asks."""
    found = sets()
    if st.session_state.get("fact-set") not in found:
        st.session_state["fact-set"] = OWN_SET
    name = st.selectbox("Fact set", list(found), key="fact-set", help="Uploads of the Fact sets page stand here, too.")
    return name, found[name]


# ------------------------------------------------------------------------------------------------------ what is known


def knowledge(lm: LanguageModel, facts: Sequence[Fact]) -> MutableMapping[Fact, bool]:
    """This session's answers for this model; a job fills them."""
    key = ("known", lm.fingerprint)
    if (found := session.recall(key)) is None:
        found = {}
    session.remember(key, found)
    return found


def learn(lm: LanguageModel, facts: Sequence[Fact], found: MutableMapping[Fact, bool], track: Track) -> Iterator[None]:
    """Ask the model for the facts that are not in `found` yet, some at a time."""
    todo = [fact for fact in facts if fact not in found]
    steps = range(0, len(todo), AT_ONCE)
    for at in track(steps, "Asking the model", len(steps)):
        some = todo[at : at + AT_ONCE]
        found.update(zip(some, known_facts(lm, some), strict=True))
        yield


# -------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Wish:
    """Which facts are shown: all that fit every filter; an empty filter lets all through."""

    text: str = ""
    relations: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    known: str = ""

    def fits(self, fact: Fact, known: Mapping[Fact, bool]) -> bool:
        words = f"{fact.prompt.text} {fact.target_true} {fact.target_new}".casefold()
        return (
            self.text.strip().casefold() in words
            and (not self.relations or fact.relation in self.relations)
            and (not self.parts or part_of(fact) in self.parts)
            and (not self.known or told(fact, known) == self.known)
        )


def told(fact: Fact, known: Mapping[Fact, bool]) -> str:
    """Whether the model knows it, in a word."""
    return "not asked" if fact not in known else "yes" if known[fact] else "no"


def table(facts: Sequence[Fact], known: Mapping[Fact, bool]) -> dict[str, list[object]]:
    """Columns of the facts, for a data frame."""
    return {
        "known": [told(fact, known) for fact in facts],
        "prompt": [fact.prompt.text for fact in facts],
        "subject": [fact.prompt.subject for fact in facts],
        "true object": [fact.target_true for fact in facts],
        "new object": [fact.target_new for fact in facts],
        "relation": [fact.relation for fact in facts],
        "part": [part_of(fact) for fact in facts],
        "paraphrases": [len(fact.paraphrases) for fact in facts],
        "neighbours": [len(fact.neighbours) for fact in facts],
        "id": [fact.id for fact in facts],
    }


def hash_of_set(name: str, facts: Facts) -> str:
    """The hash of a set, found once: the session keeps the set beside it, so that another of its name has its own."""
    kept, found = session.recall(("set hash", name)) or (None, "")
    if kept is not facts:
        found = hash_of(facts)
        session.remember(("set hash", name), (facts, found))
    return str(found)
