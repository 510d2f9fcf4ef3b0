"""Inputs that real files and public reports suggest, each through every door: the library, the commands, the page.

What is expected is written once, and all doors are held to it: one reader stands behind them.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit import batch_view
from pages.shared import fact_sets
from rome_core.cli import evaluate
from rome_core.errors import DataError
from rome_core.facts.datasets import load_facts, parse_facts
from rome_core.facts.requests import read_requests
from rome_core.model.tokens import EditRequest, Prompt
from tests.pages.conftest import app as app_fixture
from tests.pages.conftest import goto, session_of, texts

app = app_fixture
HEAD = "subject,template,target_new,target_true\n"
GOOD = {"subject": "Eiffel Tower", "template": "The {} is in", "target_new": "Rome", "target_true": "Paris"}
TOWER = EditRequest(Prompt("The {} is in", "Eiffel Tower"), "Rome", "Paris")
TOWER_LINE = "Eiffel Tower,The {} is in,Rome,Paris\n"
SPORT = {"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}
PAULO = EditRequest(Prompt("The city of {} is in", "São Paulo"), "Chile", "Brazil")


@dataclass(frozen=True)
class Case:
    """A file; the requests that it asks for; what is said of the rest, or of the whole where nothing can be read."""

    name: str
    data: bytes
    requests: tuple[EditRequest, ...] = ()
    said: str = ""


def as_json(*records: object) -> bytes:
    return json.dumps(records, ensure_ascii=False).encode()


CASES = {
    "a request of a notebook": Case(
        "r.json", as_json(SPORT), (EditRequest(Prompt("{} plays the sport of", "LeBron James"), "football"),)
    ),
    "several new objects": Case(
        "r.json",
        as_json(GOOD, {**GOOD, "template": "{} is", "target_new": ["Rome", "Roma"]}),
        (TOWER,),
        "record 2: 'target_new' is a list of 2 where one text is needed.",
    ),
    "a number with a fraction": Case(
        "r.json",
        as_json(GOOD, {**GOOD, "template": "{} is", "target_new": 1949.0}),
        (TOWER,),
        "record 2: 'target_new' is the number 1949.0 where one text is needed.",
    ),
    "Windows-1252": Case(
        "w.csv",
        (HEAD + "São Paulo,The city of {} is in,Chile,Brazil\n").encode("cp1252"),
        said="In Windows-1252 it would read 'São Paulo,The'",
    ),
    "UTF-16": Case("u.csv", (HEAD + "São Paulo,The city of {} is in,Chile,Brazil\n").encode("utf-16"), (PAULO,)),
    "JSON with a byte order mark": Case("b.json", b"\xef\xbb\xbf" + as_json(GOOD), (TOWER,)),
    "JSON Lines": Case("l.jsonl", b"\n".join([as_json(GOOD)[1:-1]]), (TOWER,)),
    "line ends of a Mac": Case("m.csv", (HEAD + TOWER_LINE).replace("\n", "\r").encode(), (TOWER,)),
    "a separator in a cell without quotes": Case(
        "s.csv",
        (HEAD + TOWER_LINE + "Eiffel Tower,The {} is near,Rome, Italy,x\n").encode(),
        (TOWER,),
        "line 3: 5 cells stand under 4 columns.",
    ),
    "a quotation mark that is left open": Case(
        "q.csv",
        (HEAD + '"The Matrix,{} is by,a,b\n' + TOWER_LINE + TOWER_LINE).encode(),
        said="'q.csv', line 2: a quotation mark is opened and not closed.",
    ),
    "records that are none": Case(
        "n.json",
        as_json(GOOD, {"edit": {"subject": "B"}}, "text"),
        (TOWER,),
        "record 3: It is a text, not a record with fields.",
    ),
    "spaces around a subject": Case("s.json", as_json({**GOOD, "subject": "Eiffel Tower "}), (TOWER,)),
    "a subject within another word": Case(
        "i.json",
        as_json({"prompt": "In Iranian cities Iran is on", "subject": "Iran", "target_new": "Africa"}),
        (EditRequest(Prompt("In Iranian cities {} is on", "Iran"), "Africa"),),
    ),
    "another apostrophe": Case(
        "a.json",
        as_json(GOOD, {"prompt": "Qui dirige l’IAAF ?", "subject": "l'IAAF", "target_new": "Bob"}),
        (TOWER,),
        "Did you mean 'l’IAAF'?",
    ),
    "letters that are composed otherwise": Case(
        "c.json",
        as_json({"prompt": "In Sa\u0303o Paulo one speaks", "subject": "São Paulo", "target_new": "Greek"}),
        (EditRequest(Prompt("In {} one speaks", "Sa\u0303o Paulo"), "Greek"),),
    ),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@CASE
def test_in_the_library(case: Case, tmp_path: Path) -> None:
    (tmp_path / case.name).write_bytes(case.data)
    if not case.requests:
        for read in (read_requests, parse_facts):
            with pytest.raises(DataError) as caught:
                read(case.data, case.name)
            assert case.said in str(caught.value)
        return
    facts, requests = load_facts(tmp_path / case.name), read_requests(case.data, case.name)

    assert [fact.request for fact in facts] == list(case.requests) == list(requests.requests)
    for problems in (facts.problems, requests.problems):
        assert case.said in " ".join(map(str, problems)) and bool(case.said) == bool(problems)


@CASE
def test_in_a_command(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / case.name).write_bytes(case.data)
    args = evaluate.arguments(["--out", str(tmp_path / "run"), "--facts", str(tmp_path / case.name)])
    if not case.requests:
        with pytest.raises(DataError) as caught:
            evaluate.facts_from(args)
        assert case.said in str(caught.value)
        return
    scored = [request for request in case.requests if request.target_true]
    if scored:
        assert [fact.request for fact in evaluate.facts_from(args)] == scored
    else:  # nothing to score by: said, and nothing is run
        with pytest.raises(DataError, match="There is no fact in"):
            evaluate.facts_from(args)
    said = capsys.readouterr().err
    assert case.said in said
    if len(scored) < len(case.requests):
        assert "which have no true object to score by" in said


@CASE
def test_on_the_page(case: Case, app: AppTest) -> None:
    page = goto(app, "edit", view="A batch", method="emmet")
    page.file_uploader(key="batch-file").upload(case.name, case.data, "text/plain").run()
    with session_of(page):
        rows = [row for row in batch_view.current_sheet().typed if not row.empty]

    assert not page.exception
    if not case.said:  # shown as typed: the same letters, however they are composed
        same = [unicodedata.normalize("NFC", row.subject) for row in rows]
        assert same == [unicodedata.normalize("NFC", request.prompt.subject) for request in case.requests]
    shown = " ".join(str(cell) for table in page.table for cell in table.value.to_numpy().ravel())
    if case.said:
        assert all(words in plain(shown + texts(page.error)) for words in case.said.split(": ", 1))
    expected = f"Edit {len(case.requests)} fact" if case.requests else "Edit"
    assert page.button(key="batch-run").label == expected

    facts = goto(page, "facts")
    facts.file_uploader(key="set-file").upload(case.name, case.data, "text/plain").run()
    assert not facts.exception
    with session_of(facts):
        brought = fact_sets.uploads().get(case.name, [])
    assert [fact.request for fact in brought] == list(case.requests)


def plain(text: str) -> str:
    """A text without the marks that keep it from being read as Markdown."""
    return text.replace("\\", "").replace("\u2060", "")
