"""One fact at hand on all pages, and addresses that carry the whole form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from streamlit.testing.v1 import AppTest

from pages.parts.edit.files import edit_file
from pages.parts.tracing import way_on
from pages.parts.tracing.view import LATEST
from pages.shared import address, session
from pages.shared.fact_at_hand import EXAMPLES, FIELDS, FactAtHand, objects_of, of_link
from pages.shared.recommendation import recommend
from rome_core import Prompt, TraceConfig
from rome_core.tracing.kinds import trace_kinds
from rome_core.tracing.runs import TraceRequest
from tests.pages.conftest import ROOT, finish, goto, job_of, session_of, texts, wait_for
from tests.tiny import random_edit, tiny_model

COLOSSEUM, EIFFEL, FRANCE, BRAZIL = EXAMPLES


def form(app: AppTest) -> FactAtHand:
    """What stands in the fields of the Edit page."""
    typed = [app.text_area(key="template"), *(app.text_input(key=name) for name in FIELDS[1:])]
    return FactAtHand(*(one.value or "" for one in typed))


def follow(app: AppTest, label: str, nth: int = 0) -> AppTest:
    """Click a link of the page."""
    links = [link.proto for link in app.get("page_link") if link.proto.label.startswith(label)]
    return goto(app, links[nth].page, **dict(parse_qsl(links[nth].query_string, keep_blank_values=True)))


def in_a_fresh_tab(app: AppTest, page: str) -> AppTest:
    """Another session that opens the address of this one."""
    other = AppTest.from_file(ROOT / "app.py", default_timeout=60).run()
    return goto(other, page, **app.query_params)


# ------------------------------------------------------------------------------------------------- one fact, as a whole


def test_the_second_card_opens_its_own_fact(app: AppTest) -> None:
    goto(app, "home")
    follow(app, "Change it", 3)
    assert form(app) == BRAZIL
    goto(app, "home")
    follow(app, "Change it", 0)
    assert form(app) == COLOSSEUM


def test_the_second_card_is_located_and_not_the_first(app: AppTest) -> None:
    goto(app, "home")
    follow(app, "Locate it", 3)
    assert app.text_input(key="subject").value == "Brazil"
    goto(app, "home")
    follow(app, "Locate it", 0)
    assert (app.text_area(key="template").value, app.text_input(key="subject").value) == (
        COLOSSEUM.template,
        COLOSSEUM.subject,
    )


@pytest.mark.parametrize("fact", [COLOSSEUM, BRAZIL, FactAtHand("The home of {} is", "Köln")], ids=lambda f: f.subject)
def test_a_traced_fact_is_not_edited_to_what_the_model_says(app: AppTest, fact: FactAtHand) -> None:
    goto(app, "tracing", **fact.link, **{"trace-samples": "1", "trace-window": "2"})
    app.button(key="run").click().run()
    wait_for(app, lambda app: not job_of(app, LATEST).live)
    answer = job_of(app, LATEST).partial.first.answer.strip()
    follow(app, "Edit this fact at layer")

    opened = form(app)
    assert (opened.template, opened.subject, opened.target) == (fact.template, fact.subject, fact.target)
    assert opened.target.casefold() not in {answer.casefold(), opened.true.casefold()}
    assert opened.true == (fact.true or answer)


@pytest.mark.parametrize("target", ["", "x"])
def test_a_new_object_that_the_model_answers_is_left_open(app: AppTest, target: str) -> None:
    goto(app, "tracing", template="The home of {} is", subject="Köln", **{"trace-samples": "1", "trace-window": "2"})
    app.button(key="run").click().run()
    wait_for(app, lambda app: not job_of(app, LATEST).live)
    answer = job_of(app, LATEST).partial.first.answer.strip()
    app.session_state["_fact"] = FactAtHand("The home of {} is", "Köln", target or answer, answer)
    app.run()
    follow(app, "Edit this fact at layer")

    assert form(app).target == target


def test_an_example_stays_at_hand_on_every_page(app: AppTest) -> None:
    goto(app, "tracing")
    app.button(key="example-3").click().run()
    goto(app, "edit")
    assert form(app) == BRAZIL
    goto(app, "home")
    goto(app, "diagnostics")
    assert form(app) == BRAZIL
    goto(app, "home")
    follow(app, "Locate it", 1)
    goto(app, "edit")
    assert form(app) == EIFFEL


def test_objects_of_another_subject_are_dropped_and_known_ones_are_taken(app: AppTest) -> None:
    goto(app, "edit")
    app.text_input(key="subject").set_value("Louvre Museum").run()
    assert (form(app).target, form(app).true) == ("", "")
    assert texts(app.error).startswith("The new object is empty.")
    app.text_input(key="target").set_value("Oslo").run()
    app.text_area(key="template").set_value("The {} stands in the city of").run()
    assert form(app).target == "Oslo", "the subject is the same"
    app.text_area(key="template").set_value(EIFFEL.template).run()
    app.text_input(key="subject").set_value("Eiffel Tower").run()
    assert form(app) == EIFFEL


def test_the_answer_that_is_followed_belongs_to_its_fact(app: AppTest) -> None:
    goto(app, "tracing")
    app.text_input(key="answer").set_value("Rome").run()
    app.text_input(key="subject").set_value("Eiffel Tower").run()

    assert app.text_input(key="answer").value == ""


# ------------------------------------------------------------------------------------------------------------ addresses


def test_the_address_carries_the_whole_form(app: AppTest) -> None:
    goto(app, "edit")
    app.text_input(key="subject").set_value("Louvre").run()
    app.number_input(key="edit-steps").set_value(7).run()

    said = dict(app.query_params)
    assert {name: said[name] for name in FIELDS} == {
        **COLOSSEUM.link,
        "subject": "Louvre",
        "target": "",
        "true": "",
    }
    assert {"method", "layer", "view"} <= said.keys() and said["edit-steps"] == "7"
    other = in_a_fresh_tab(app, "edit")
    assert form(other) == form(app) == FactAtHand(COLOSSEUM.template, "Louvre")
    assert other.number_input(key="edit-steps").value == 7
    assert dict(other.query_params) == said


def test_every_field_of_a_trace_is_in_its_address(app: AppTest) -> None:
    goto(app, "tracing", **FRANCE.link)
    app.number_input(key="trace-samples").set_value(3).run()
    app.text_input(key="answer").set_value("Lyon").run()

    said = dict(app.query_params)
    assert {name: said[name] for name in FIELDS} == FRANCE.link
    other = in_a_fresh_tab(app, "tracing")
    assert [other.text_input(key="answer").value, other.number_input(key="trace-samples").value] == ["Lyon", 3]
    assert dict(other.query_params) == said


def test_a_link_that_tells_the_fact_is_left_as_it_is(app: AppTest) -> None:
    goto(app, "edit", **BRAZIL.link)
    assert dict(app.query_params) == BRAZIL.link, "one press of Back leaves the page again"

    app.text_input(key="target").set_value("Dutch").run()
    assert app.query_params["target"] == "Dutch"


def test_a_link_is_a_whole_form_also_for_what_it_leaves_out(app: AppTest) -> None:
    goto(app, "edit")
    app.selectbox(key="method").set_value("rome").run()
    app.number_input(key="layer").set_value(3).run()
    goto(app, "home")
    follow(app, "Change it", 2)
    linked = app.selectbox(key="method").value, app.number_input(key="layer").value
    goto(app, "home")
    goto(app, "edit")
    fresh = in_a_fresh_tab(AppTest.from_file(ROOT / "app.py", default_timeout=60).run(), "edit")

    assert linked == (fresh.selectbox(key="method").value, fresh.number_input(key="layer").value)


def test_links_of_old_are_read_as_they_were_meant() -> None:
    assert of_link({"subject": "Eiffel Tower", "target": "Rome"}) == EIFFEL
    assert of_link({"template": FRANCE.template, "subject": "France"}) == FRANCE
    assert of_link({"subject": "Louvre"}) == FactAtHand(COLOSSEUM.template, "Louvre")
    assert of_link({**FRANCE.link, "true": ""}).true == "", "empty is told, not left out"


@pytest.mark.parametrize(("name", "value"), [("layer", "4000"), ("layer", "five"), ("method", "none"), ("view", "x")])
def test_a_value_of_a_link_that_cannot_be_used_is_said(app: AppTest, name: str, value: str) -> None:
    goto(app, "edit", **FRANCE.link, **{name: value})

    assert not app.exception
    assert f"the link's “{value}” cannot be used" in texts(app.warning)
    assert form(app) == FRANCE


@pytest.mark.parametrize(
    ("read", "good", "value", "bad"),
    [
        (address.yes_or_no, "TRUE", True, "maybe"),
        (address.one_of([1, "b"]), "1", 1, "c"),
        (address.a_number(int, 1, 5), "5", 5, "6"),
        (address.a_number(float, 0.5, None), "1e3", 1000.0, "nan"),
        (address.a_number(int, 0, None), "7", 7, "seven"),
    ],
)
def test_texts_of_links_are_read_strictly(read: Any, good: str, value: object, bad: str) -> None:
    assert read(good) == value
    with pytest.raises(ValueError, match=f"^{bad}$|'{bad}'"):
        read(bad)


def test_known_objects_are_found_by_the_full_prompt() -> None:
    assert objects_of(FactAtHand("The capital of France is", "France")) == ("London", "Paris")
    assert objects_of(FactAtHand("", "France")) == ("", "")


# ---------------------------------------------------------------------------------------- what is meant by the subject


def test_a_subject_that_is_spelt_otherwise_is_offered_as_the_prompt_spells_it(app: AppTest) -> None:
    goto(app, "tracing", template="The seat of l’IAAF is in", subject="l'IAAF")
    assert app.button(key="run").disabled and "l’IAAF" in texts(app.error)

    app.button(key="use-suggestion").click().run()
    assert not app.error and app.text_input(key="subject").value == "l’IAAF"
    goto(app, "edit")
    assert form(app).subject == "l’IAAF"


@pytest.mark.parametrize("page", ["edit", "tracing"])
def test_one_of_several_places_of_a_subject_is_chosen_and_linked(app: AppTest, page: str) -> None:
    goto(app, page, template="Of Rome they say that Rome is in", subject="Rome", target="Oslo", true="")
    choice = next(one for one in app.get("button_group") if one.key == "occurrence")
    assert "2 times" in choice.label
    first = app.session_state["_read"]
    app.session_state["occurrence"] = 1
    app.run()

    second = app.session_state["_read"]
    assert (first.template, second.template) == ("Of {} they say that Rome is in", "Of Rome they say that {} is in")
    assert app.query_params["occurrence"] == "1"
    other = in_a_fresh_tab(app, page)
    assert other.session_state["_read"] == second
    other.button(key="example-0").click().run()
    assert other.session_state["occurrence"] == 0 and not other.error


def test_a_prompt_of_several_lines_is_shown_on_one(app: AppTest) -> None:
    goto(app, "tracing", template="User: where is the {}?\nAssistant: It is in", subject="Colosseum")
    app.number_input(key="trace-samples").set_value(1).run()
    app.button(key="run").click().run()

    assert app.session_state["_read"].text == "User: where is the Colosseum?\nAssistant: It is in"
    assert "**“User: where is the Colosseum? ⏎ Assistant: It is in”**" in texts(app.markdown)
    other = in_a_fresh_tab(app, "tracing")
    assert other.session_state["_read"] == app.session_state["_read"]


def test_a_prompt_becomes_a_chat_message_where_the_model_is_one_to_chat_with(app: AppTest) -> None:
    goto(app, "edit", **FRANCE.link)
    assert not [one for one in app.toggle if one.key == "chat"], "this tokenizer has no chat template"

    with session_of(app):
        lm = session.loaded()
    assert lm is not None
    lm.tokenizer.chat_template = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}<a>"
    try:
        app.run().toggle(key="chat").set_value(True).run()
        assert app.session_state["_read"].text == "<u>The capital of France is</u><a>"
        assert app.query_params["chat"] == "yes" and form(app) == FRANCE
        goto(app, "tracing").run()
        assert app.session_state["_read"].text == "<u>The capital of France is</u><a>"
    finally:
        lm.tokenizer.chat_template = None


def test_another_model_is_a_part_of_the_address(app: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pages.shared.models.load_model", lambda name, **options: tiny_model("llama", layers=4))
    goto(app, "edit", **FRANCE.link)
    assert "model" not in app.query_params
    app.text_input(key="model").set_value("other/model").run()

    assert app.query_params["model"] == "other/model"
    other = in_a_fresh_tab(app, "edit")
    assert other.text_input(key="model").value == "other/model" and form(other) == FRANCE
    goto(app, "home")
    follow(app, "Change it", 0)
    assert app.text_input(key="model").value == "other/model", "a link of the app keeps the model"


def test_an_opened_edit_brings_its_fact(app: AppTest, random_moments: None) -> None:
    goto(app, "edit", **BRAZIL.link)
    data = edit_file(random_edit(tiny_model("llama", layers=4)))
    app.file_uploader(key="edit-file").upload("mine.safetensors", data).run()
    finish(app, ("edit", "job"))

    assert form(app) == EIFFEL
    assert "**Eiffel Tower → Rome (r-rome), layer 1**" in texts(app.markdown)
    assert "Solved in" not in texts(app.caption) and "It is on in this session" in texts(app.caption)


def test_a_file_that_is_no_edit_is_called_by_its_name(app: AppTest) -> None:
    goto(app, "edit")
    app.file_uploader(key="edit-file").upload("mine.safetensors", b"no tensors").run()

    assert "'mine.safetensors' is not an edit saved by ROME Explorer." in texts(app.error)
    assert "'Download the edit'" in texts(app.error)


def test_an_answer_of_a_mere_space_still_leads_to_the_edit_page() -> None:
    lm = tiny_model("llama", layers=4)
    *_, run = trace_kinds(lm, TraceRequest(Prompt("The {} is in", "Köln"), TraceConfig(samples=1, window=2)))
    trace = replace(run.exact["mlp_out"], answer=" ")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamlit.session_state", {})
        assert way_on.fact_to_edit(trace) == FactAtHand("The {} is in", "Köln")
        assert recommend(lm, trace.prompt).layer == 1
