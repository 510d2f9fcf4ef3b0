"""The fact sets of a session, the same on every page: the project's own and the user's uploads, one of them in use;
and what the model knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import streamlit as st

from pages.shared import session
from pages.shared.fact_at_hand import FactAtHand
from pages.shared.text import count, literal
from pages.shared.uploads import account_of, first_time, uploaded
from rome_core import LanguageModel
from rome_core.evaluation import hash_of, known_facts
from rome_core.evaluation.runs.store import OWN_SET
from rome_core.facts.datasets import Fact, Facts, load_facts, part_of, read_sets
from rome_core.facts.new_objects import with_new_objects
from rome_core.progress import Track

AT_ONCE = 16  # facts of one step towards what the model knows
SHOWN_PROBLEMS = 5


@st.cache_resource(show_spinner=False)
def own_facts() -> Facts:
    return load_facts()


def uploads() -> MutableMapping[str, Facts]:
    """This session's own sets, by the name of their file."""
    return session.keep("fact sets", dict[str, Facts])


def upload() -> None:
    """An uploader; each file that can be read joins this session's sets, and the last becomes the one in use."""
    given = uploaded("Facts in any of the field's formats", "set-file", read_sets)
    if given and first_time("set-file"):
        uploads().update(given)
        st.session_state["fact-set"] = list(given)[-1]


def choose() -> tuple[str, Facts]:
    """The set in use, by its name."""
    sets = {OWN_SET: own_facts(), **uploads()}
    if st.session_state.get("fact-set") not in sets:
        st.session_state["fact-set"] = OWN_SET
    name = st.selectbox(
        "Fact set",
        list(sets),
        key="fact-set",
        persist_state="session",
        help="Uploads of the Fact sets page stand here, too.",
    )
    return name, sets[name]


def is_own() -> bool:
    """Whether the set in use is the project's own."""
    return bool(st.session_state.get("fact-set", OWN_SET) == OWN_SET)


def offer_new_objects(name: str, facts: Facts) -> None:
    """Where a set has nothing to edit its facts to: say so, and offer objects of the same relation, as another set."""
    if not facts.lacking:
        return
    n = len(facts.lacking)
    lacking = f"{count(n, 'fact')} of {name} {'has' if n == 1 else 'have'} no new object, or the true one"
    st.info(literal(f"{lacking}: {'it' if n == 1 else 'they'} can be located, and edited to nothing."))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="new-objects-seed", width=110, help="Of the choice.")
        st.button(
            "Take new objects of the same relation",
            key="new-objects",
            on_click=take_new_objects,
            args=(name, facts, int(seed)),
            help="For each such fact a true object of another fact of its relation. The set joins the others, its name "
            "with the seed; facts that have no other object in their relation are left out, with the reason.",
        )


def take_new_objects(name: str, facts: Facts, seed: int) -> None:
    """A set with new objects joins this session's sets and becomes the one in use."""
    made = f"{name}, new objects by seed {seed}"
    uploads()[made] = with_new_objects(facts, seed)
    st.session_state["fact-set"] = made


def choose_or_upload() -> Facts:
    """The set in use, or another one at once; records of it that cannot be read are named."""
    with st.expander("Another fact set"):
        upload()
        name, facts = choose()
        st.caption(f"In use: {count(len(facts), 'fact')} of {literal(name)}. {account_of(facts)}")
        offer_new_objects(name, facts)
        for problem in facts.problems[:SHOWN_PROBLEMS]:
            st.warning(literal(str(problem)))
        if len(facts.problems) > SHOWN_PROBLEMS:
            st.caption(f"And {len(facts.problems) - SHOWN_PROBLEMS} more such records.")
    return facts


# ------------------------------------------------------------------------------------------------------ what is known


def knowledge(lm: LanguageModel) -> MutableMapping[Fact, bool]:
    """This session's answers for this model; a job fills them."""
    return session.keep(("known", lm.fingerprint), dict[Fact, bool])


def learn(lm: LanguageModel, facts: Sequence[Fact], known: MutableMapping[Fact, bool], track: Track) -> Iterator[None]:
    """Ask the model for the facts that are not in `known` yet, some at a time."""
    todo = [fact for fact in facts if fact not in known]
    steps = range(0, len(todo), AT_ONCE)
    for at in track(steps, "Asking the model", len(steps)):
        batch = todo[at : at + AT_ONCE]
        known.update(zip(batch, known_facts(lm, batch), strict=True))
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


def link_of(fact: Fact) -> dict[str, str]:
    """The query of a page that opens with a fact."""
    return FactAtHand.of(fact.request).link


def hash_of_set(name: str, facts: Facts) -> str:
    """The hash of a set, found once: the session keeps the set beside it, so that another of its name has its own."""
    hashed, digest = session.keep("set hashes", dict[str, tuple[Facts, str]]).get(name, (None, ""))
    if hashed is not facts:
        digest = hash_of(facts)
        session.keep("set hashes", dict[str, tuple[Facts, str]])[name] = facts, digest
    return digest
