"""The frame around the pages: navigation, the model chooser, the list of active edits, jobs."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared import text
from pages.shared.track import Job, describe
from rome_core import DEFAULT_MODEL
from tests.pages.conftest import ROOT, edits_of, end_of_jobs, goto, texts
from tests.tiny import random_edit, save_model, tiny_model

PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens(app: AppTest, page: str) -> None:
    goto(app, page)

    assert not app.exception
    assert not app.error, texts(app.error)
    assert app.title


def test_home_is_shown_first_and_links_to_every_step(app: AppTest) -> None:
    links = [link.proto.page for link in app.get("page_link")]

    assert app.title[0].value == "ROME Explorer"
    assert {"tracing", "edit", "diagnostics"} <= set(links)


# --------------------------------------------------------------------------------------------------------------- model


def test_the_sidebar_describes_the_model_once_it_is_loaded(app: AppTest) -> None:
    assert "Loaded when a page needs it" in texts(app.sidebar.caption)

    goto(app, "tracing")

    assert "4 layers" in texts(app.sidebar.caption)


def test_an_unknown_model_id_is_one_sentence_and_the_former_model_stays(app: AppTest) -> None:
    goto(app, "tracing")

    app.text_input(key="model").set_value("nobody/no-such-model").run()

    assert len(app.error) == 1
    assert app.error[0].value.startswith("The model 'nobody/no-such-model' could not be loaded.")
    assert f"{DEFAULT_MODEL} stays in use" in texts(app.caption)
    assert "4 layers" in texts(app.sidebar.caption)
    assert app.button(key="run").disabled is False


def test_a_model_of_an_unknown_type_is_one_sentence(app: AppTest, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    goto(app, "tracing")

    app.text_input(key="model").set_value(str(tmp_path)).run()

    assert len(app.error) == 1
    assert "is of type 't5', and no model of that type continues a text." in app.error[0].value


def test_a_mixture_of_experts_is_traced_and_the_sidebar_says_why_it_is_not_edited(app: AppTest, tmp_path: Path) -> None:
    save_model(tiny_model("mixtral"), tmp_path / "experts")
    goto(app, "tracing")

    app.text_input(key="model").set_value(str(tmp_path / "experts")).run()

    assert not app.error and not app.exception
    assert texts(app.sidebar.warning).startswith(
        "Not possible on this model: edit, hypernetworks, because its MLP has no"
    )
    page = goto(app, "edit", template="The {} is located in the city of", subject="Eiffel Tower", target="Rome")
    assert not page.exception
    page.button(key="run").click().run()
    end_of_jobs(page)
    assert "cannot be used for this: its MLP has no single matrix W" in texts(page.error)


def test_a_model_that_comes_with_code_is_one_sentence_and_its_code_is_not_run(app: AppTest, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": code}))
    goto(app, "tracing")

    app.text_input(key="model").set_value(str(tmp_path)).run()

    assert len(app.error) == 1 and "comes with code of its own" in app.error[0].value
    assert not (tmp_path / "ran").exists()


def test_a_folder_in_the_users_home_can_be_named_from_there(
    app: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model("llama", layers=3), tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    goto(app, "tracing")

    app.text_input(key="model").set_value("~/mine").run()

    assert not app.error and "3 layers" in texts(app.sidebar.caption)


# --------------------------------------------------------------------------------------------------------------- edits


def with_edits(app: AppTest, n: int) -> list[str]:
    """Put edits into the session, as the edit page does; returns their ids."""
    from pages.shared.session import ActiveEdit

    lm = tiny_model("llama", layers=4)
    items = [ActiveEdit(random_edit(lm, seed=seed), f"edit {seed}") for seed in range(n)]
    edits_of(app)[:] = items
    app.run()
    return [item.edit.id for item in items]


def test_edits_are_listed_switched_scaled_reordered_and_removed(app: AppTest) -> None:
    first, second = with_edits(app, 2)
    assert "2 on" in texts(app.sidebar.markdown)

    app.toggle(key=f"on-{first}").set_value(False).run()
    app.slider(key=f"scale-{second}").set_value(0.5).run()
    assert "1 on" in texts(app.sidebar.markdown)
    assert [(item.on, item.scale) for item in edits_of(app)] == [(False, 1.0), (True, 0.5)]

    app.button(key=f"up-{second}").click().run()
    assert [item.edit.id for item in edits_of(app)] == [second, first]

    app.button(key=f"remove-{second}").click().run()
    assert [item.edit.id for item in edits_of(app)] == [first]


def test_the_tracing_page_says_that_it_looks_at_the_edited_model(app: AppTest) -> None:
    with_edits(app, 2)
    goto(app, "tracing")
    assert "edited model" in texts(app.info)
    assert "2 edits" in texts(app.info)

    app.toggle(key="original_model").set_value(True).run()
    assert not app.info
    assert "all off" in texts(app.sidebar.markdown)


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_counts_nested_loops_as_one() -> None:
    job = Job("work")
    seen = []

    def work(job: Job) -> str:
        for _ in job.track("ab", "outer", 2):
            for _ in job.track(range(4), "inner", 4):
                seen.append((job.what, job.done, job.fraction))
        return "result"

    job.run(work)

    assert [fraction for _, _, fraction in seen] == [i / 8 for i in range(8)]
    assert seen[5] == ("inner", 1, 5 / 8)
    assert (job.state, job.result) == ("done", "result")


def test_a_stopped_job_keeps_what_it_had() -> None:
    job, begun = Job("work"), threading.Event()

    def work(job: Job) -> None:
        for item in job.track(range(1_000_000), "counting", 1_000_000):
            job.partial = item
            begun.set()

    thread = threading.Thread(target=job.run, args=(work,))
    thread.start()
    begun.wait(10)
    job.stop()
    thread.join(10)

    assert job.state == "stopped"
    assert job.partial is not None
    assert "stopped" in describe(job)


# ---------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("The Colosseum is located in the city of", "Colosseum"),
        ("What is the capital of France", "France"),
        ("Who founded the Bank of America in 1904", "Bank of America"),
        ("In Paris, the Eiffel Tower is", "Eiffel Tower"),
        ("Mount St. Helens is in", "Mount St. Helens"),
        ("The iPhone 12 is made by", "iPhone 12"),
        ("Île de la Cité is in", "Île de la Cité"),
        ("the sky is", ""),
        ("The", ""),
        ("", ""),
    ],
)
def test_the_subject_is_guessed(sentence: str, subject: str) -> None:
    assert text.guess_subject(sentence) == subject


def test_numbers_have_three_significant_digits() -> None:
    assert [text.number(x) for x in (0.45, 0.0163, 12.34, 123.4, 0.0, 4.56e-5)] == [
        *("0.450", "0.0163", "12.3", "123", "0", "4.56e-05")
    ]
