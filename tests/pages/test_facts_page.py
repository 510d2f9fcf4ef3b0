"""The page of fact sets: browsing, filters, uploads with what is wrong in them, and what the model knows."""

from __future__ import annotations

import json

from streamlit.testing.v1 import AppTest

from pages.shared.fact_sets import Wish, learn, table, uploads
from rome_core.evaluation import known_facts
from rome_core.facts.datasets import part_of
from rome_core.progress import silent
from tests.pages.conftest import end_of_jobs, goto, session_of, texts
from tests.pages.test_averages_page import facts
from tests.tiny import tiny_model

GOOD = {"known_id": 1, "prompt": "Paris is in", "subject": "Paris", "attribute": "France"}


def test_the_own_set_is_shown_and_filtered(app: AppTest) -> None:
    page = goto(app, "facts")

    assert not page.error, texts(page.error)
    shown = page.dataframe[0].value
    whole = len(shown)
    assert whole > 500 and page.metric[0].value == str(whole)
    assert {"known", "prompt", "subject", "true object", "new object", "part"} <= set(shown.columns)
    page.text_input(key="set-search").set_value("colosseum").run()
    found = page.dataframe[0].value
    assert 0 < len(found) < 10 and found["prompt"].str.contains("Colosseum").all()
    page.text_input(key="set-search").set_value("").run()
    page.multiselect(key="set-part").set_value(["validation"]).run()
    assert set(page.dataframe[0].value["part"]) == {"validation"}


def test_an_upload_says_which_records_are_wrong_and_is_asked(app: AppTest) -> None:
    page = goto(app, "facts")
    data = json.dumps([GOOD, {"known_id": 2, "prompt": "no subject"}, {"colour": 1}]).encode()

    page.file_uploader(key="set-file").upload("mine.json", data, "application/json").run()

    assert page.selectbox(key="fact-set").value == "mine.json"
    assert "2 rows of mine.json cannot be read" in texts(page.warning)
    wrong = page.dataframe[0].value
    assert list(wrong["where"]) == ["record 2", "record 3"]
    assert "'subject' is not among its fields" in wrong["what is wrong"][0]
    assert "The format is not known. Its fields are colour." in wrong["what is wrong"][1]
    assert "1 fact, 2 left out" in texts(page.caption)
    end_of_jobs(page.button(key="ask").click().run())
    answer = known_facts(tiny_model("llama", layers=4), [_only(page)])[0]
    assert list(page.dataframe[-1].value["known"]) == ["yes" if answer else "no"]
    assert page.button(key="ask").disabled
    page.selectbox(key="set-known").set_value("not asked").run()
    assert "0 facts of 1" in texts(page.caption)

    page.file_uploader(key="set-file").upload("bad.json", b"[", "application/json").run()
    assert "is not JSON" in texts(page.error)


def test_any_form_and_encoding_is_taken_and_windows_1252_is_offered(app: AppTest) -> None:
    page = goto(app, "facts")
    head = "subject,template,target_new,target_true\n"
    files = {
        "bom.json": ("\ufeff" + json.dumps([GOOD])).encode(),
        "lines.jsonl": "\n".join(json.dumps({**GOOD, "known_id": n}) for n in range(3)).encode(),
        "mac.csv": (head + "Paris,{} is in,Italy,France\n").replace("\n", "\r").encode("utf-16"),
    }
    for name, data in files.items():
        page.file_uploader(key="set-file").upload(name, data, "text/plain").run()
        assert not page.error and not page.exception, texts(page.error)
        assert page.selectbox(key="fact-set").value == name

    data = (head + "São Paulo,The city of {} is in,Chile,Brazil\n").encode("cp1252")
    page.file_uploader(key="set-file").upload("excel.csv", data, "text/csv").run()
    assert "In Windows-1252 it would read 'São Paulo,The" in texts(page.error)
    page.button(key="set-file-windows").click().run()
    assert page.selectbox(key="fact-set").value == "excel.csv" and not page.error
    with session_of(page):
        assert uploads()["excel.csv"][0].prompt.subject == "São Paulo"


def test_a_set_without_new_objects_offers_those_of_its_relation_and_says_the_seed(app: AppTest) -> None:
    page = goto(app, "facts")
    known = [{**GOOD, "relation_id": "P1"}, {**GOOD, "known_id": 2, "prompt": "Rome is in", "subject": "Rome"}]
    known[1] |= {"attribute": "Italy", "relation_id": "P1"}
    page.file_uploader(key="set-file").upload("known.json", json.dumps(known).encode(), "application/json").run()
    assert "2 facts of known.json have no new object" in texts(page.info)

    page.number_input(key="new-objects-seed").set_value(3).run()
    page.button(key="new-objects").click().run()

    assert page.selectbox(key="fact-set").value == "known.json, new objects by seed 3" and not page.info
    with session_of(page):
        made = uploads()["known.json, new objects by seed 3"]
    assert [(fact.prompt.subject, fact.target_new) for fact in made] == [("Paris", "Italy"), ("Rome", "France")]


def _only(page: AppTest):
    with session_of(page):
        (fact,) = uploads()["mine.json"]
    return fact


def test_what_is_known_is_asked_once() -> None:
    lm, some = tiny_model("llama", layers=4), facts()
    known = {some[0]: True}  # taken as it is, though the model would say no

    list(learn(lm, some, known, silent))

    assert known == {some[0]: True, **dict.fromkeys(some[1:], True)}
    assert [fact for fact in some if Wish(known="no").fits(fact, known)] == []


def test_filters_are_joined() -> None:
    some, known = facts(), {facts()[1]: True}

    assert [f for f in some if Wish(relations=("r1",)).fits(f, known)] == [f for f in some if f.relation == "r1"]
    assert [f for f in some if Wish(known="yes").fits(f, known)] == [some[1]]
    assert [f for f in some if Wish(parts=("test",)).fits(f, known)] == [f for f in some if part_of(f) == "test"]
    assert [f for f in some if Wish("DRAGON", known="not asked").fits(f, known)] == [some[0]]
    assert table(some, known)["known"][:2] == ["not asked", "yes"]


def test_an_upload_is_in_use_on_every_page_about_many_facts(app: AppTest) -> None:
    page = goto(app, "facts")
    page.file_uploader(key="set-file").upload("mine.json", json.dumps([GOOD]).encode(), "application/json").run()

    for other in ("averages", "evaluate", "sequential"):
        there = goto(page, other)
        assert not there.error and not there.exception, texts(there.error)
        assert there.selectbox(key="fact-set").value == "mine.json", other

    assert "1 fact of mine.json" in texts(goto(page, "sequential").caption)
    assert "1 fact to choose from" in texts(goto(page, "averages").caption)
