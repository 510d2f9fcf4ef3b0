"""The edit page: its form, a whole edit on a tiny model, what it says of it, and the figures and words behind it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from pages.parts.edit import figures as edit_figures
from pages.parts.edit import files as edit_files
from pages.parts.edit import part_figures
from pages.parts.edit import views as edit_views
from pages.parts.edit.part_views import matrix_rows
from pages.shared import edit_form
from pages.shared.style import LIGHT
from pages.shared.text import literal, word_differences
from rome_core import METHODS, EditError, Step
from rome_core.diagnosis.objective import Changed
from rome_core.editing import published
from rome_core.editing.edit import Delta
from rome_core.editing.hypernetworks.hypernetwork import Checkpoint, edited_matrices, save_checkpoint
from rome_core.editing.methods import MethodConfig
from rome_core.evaluation.before_after import Report
from rome_core.settings import setting
from tests.pages.conftest import draw_tabs, edits_of, finish, goto, job_of, texts, wait_for
from tests.tiny import REQUEST, change_by_hand, random_edit, tiny_model

FORM = ("template", "subject", "target", "true")


@pytest.fixture
def page(app: AppTest, random_moments: None) -> AppTest:
    """The edit page with a fact, and a C that need not be estimated."""
    return goto(app, "edit", template=REQUEST.prompt.template, subject="Eiffel Tower", target="Rome", true="Paris")


def run(app: AppTest) -> Report:
    """Press Edit and wait for the report."""
    app.button(key="run").click().run()
    return finish(app, ("edit", "job"))


def job(app: AppTest) -> Any:
    return job_of(app, ("edit", "job"))


def field(app: AppTest, key: str) -> Any:
    return app.text_area(key=key) if key == "template" else app.text_input(key=key)


def typed(app: AppTest) -> list[str | None]:
    return [field(app, key).value for key in FORM]


# --------------------------------------------------------------------------------------------------------------- form


def test_it_opens_with_a_fact_and_says_what_to_do(app: AppTest) -> None:
    goto(app, "edit")

    assert typed(app) == ["The {} is located in the city of", "Colosseum", "Paris", "Rome"]
    assert "Press Edit" in texts(app.info)


def test_a_link_fills_the_form(app: AppTest) -> None:
    goto(app, "edit", template="{} is the capital of", subject="Paris", target="Italy", layer="3", method="h-rome")

    assert typed(app)[:3] == ["{} is the capital of", "Paris", "Italy"]
    assert app.number_input(key="layer").value == 3
    assert app.selectbox(key="method").value == "h-rome"


def test_a_link_without_a_new_object_takes_one_that_fits(app: AppTest) -> None:
    goto(app, "edit", template="The capital of {} is", subject="France")

    assert typed(app)[2:] == ["London", "Paris"]


def test_a_link_to_an_unknown_fact_leaves_the_new_object_open(app: AppTest) -> None:
    goto(app, "edit", template="The home of {} is", subject="the green dragon")

    assert typed(app)[2:] == ["", ""]
    assert texts(app.error).startswith("The new object is empty.")


def settings(app: AppTest) -> tuple[float | None, ...]:
    return tuple(app.number_input(key=key).value for key in ("layer", "edit-clamp", "edit-steps"))


@pytest.mark.usefixtures("presets_of_first_tokens")
def test_settings_that_nobody_touched_follow_the_subject(page: AppTest) -> None:
    assert settings(page) == (2, 1.5, 4)

    page.text_area(key="template").set_value("{} is the capital of")
    page.text_input(key="subject").set_value("Paris").run()
    assert settings(page) == (0, 6.0, 9)
    assert any("layer 0, clamp 6, 9 steps" in one.value for one in page.caption)

    page.number_input(key="edit-steps").set_value(5).run()
    page.text_area(key="template").set_value("The city of {} is the capital of").run()
    assert settings(page) == (2, 1.5, 5)


@pytest.mark.usefixtures("presets_of_first_tokens", "random_moments")
def test_a_layer_that_somebody_chose_keeps_its_own_settings(app: AppTest) -> None:
    goto(app, "edit", template="{} is the capital of", subject="Paris", target="Italy", layer="3")
    assert settings(app) == (3, 1.5, 4)

    app.button(key="example-1").click().run()
    app.button(key=f"example-{len(edit_form.EXAMPLES) - 1}").click().run()  # it is about one layer
    assert settings(app)[1:] == (1.5, 4)


def test_a_link_with_a_new_object_takes_over_no_true_one_of_another_fact(app: AppTest) -> None:
    goto(app, "edit", template="{} is the capital of", subject="Paris", target="Italy")
    assert typed(app)[2:] == ["Italy", "France"]


def test_examples_fill_the_form(page: AppTest) -> None:
    last = len(edit_form.EXAMPLES) - 1
    page.button(key=f"example-{last}").click().run()

    assert typed(page) == ["{} is the capital of", "Paris", "Italy", "France"]
    assert page.selectbox(key="method").value == "rome"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("template", "is located in the city of", "'Eiffel Tower' is not in the prompt"),
        ("template", "{} and {} are in", "'{} and {} are in' has 2 {}s."),
        ("target", " ", "The new object is empty."),
    ],
)
def test_bad_input_is_one_sentence_and_stays_in_the_form(page: AppTest, name: str, value: str, sentence: str) -> None:
    field(page, name).set_value(value).run()

    assert not page.exception and page.button(key="run").disabled
    assert len(page.error) == 1
    assert page.error[0].value.startswith(sentence)
    assert field(page, name).value == value
    assert "Press Edit" in texts(page.info)


@dataclass(frozen=True)
class Settings(MethodConfig):
    """One field of every kind that a method may have."""

    layer: int | None = setting(None, "Where", "Where.", bounds=(0, None, None), within="layers")
    rate: float = setting(0.5, "Rate", "How fast.", source="somebody's paper", unit="nats", bounds=(0.1, 2.0, 0.1))
    way: str = setting("up", "Way", "Which way.", choices=("up", "down"))
    careful: bool = setting(True, "Careful", "Whether.")
    late: int = setting(3, "Late", "Waits in the expander.", bounds=(1, 9, 1))
    hidden: tuple[str, ...] | None = None


def _form_page() -> None:
    import streamlit as st

    from pages.shared.forms import config_form
    from tests.pages.test_edit_page import Settings
    from tests.tiny import tiny_model

    st.session_state["config"] = config_form(tiny_model(layers=4), Settings, "test", bound={"layer": "layer"})


def test_a_form_is_drawn_from_the_fields_of_a_config() -> None:
    app = AppTest.from_function(_form_page, default_timeout=30).run()
    layer, rate, late = app.number_input
    assert app.session_state["config"] == Settings(layer=1)
    assert (layer.max, rate.label, rate.min, rate.max, late.label) == (3, "Rate (nats)", 0.1, 2.0, "Late")
    assert "How fast." in rate.help
    assert "somebody's paper" in rate.help

    layer.set_value(2)
    app.selectbox[0].select("down")
    app.toggle[0].set_value(False).run()
    assert app.session_state["config"] == Settings(layer=2, way="down", careful=False)


# ------------------------------------------------------------------------------------------------------------ an edit


def test_an_edit_is_solved_measured_and_switched_on(page: AppTest) -> None:
    report = run(page)

    assert not page.exception
    assert report.request == REQUEST
    assert [metric.label for metric in page.metric][-1] == "Verdict"
    assert report.edit.history[-1].p_target > report.edit.history[0].p_target
    kinds = {change.question.kind for change in report.changes}
    assert kinds == {"edit", "paraphrase", "neighbour", "namesake", "reversed"}
    (item,) = edits_of(page)
    assert item.edit is report.edit
    assert item.on == (report.diagnosis.verdict != "disabling")


def test_the_same_fact_again_takes_the_place_of_the_former_edit(page: AppTest) -> None:
    first = run(page)
    page.number_input(key="layer").set_value(2).run()
    second = run(page)

    assert second.edit.id != first.edit.id
    assert second.below == ()
    assert [item.edit.id for item in edits_of(page)] == [second.edit.id]


def test_another_fact_is_solved_on_top_of_the_active_edits_and_says_so(page: AppTest) -> None:
    first = run(page)
    edits_of(page)[0].on = True
    page.button(key="example-2").click().run()
    assert "Solved on top of 1 active edit." in texts(page.caption)
    second = run(page)

    assert second.edit.on == (first.edit.id,)
    assert len(edits_of(page)) == 2


def test_an_edit_that_would_break_the_model_is_not_switched_on(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rome_core.diagnosis.verdict.DISABLING", 1e-9)
    run(page)

    assert edits_of(page)[0].on is False
    assert "would break the model" in texts(page.caption)


def test_every_tab_draws(page: AppTest) -> None:
    run(page)
    draw_tabs(page)


def test_a_second_method_stands_beside_the_first(page: AppTest) -> None:
    run(page)
    page.session_state["edit-tab"] = "Compare"
    page.run()
    page.button(key="compare").click().run()
    rival = finish(page, ("edit", "rival")).edit

    assert rival.method != "r-rome"
    assert rival.config.prefixes == job(page).result.edit.config.prefixes
    assert len(edits_of(page)) == 1


def test_an_edit_of_another_model_is_not_shown(page: AppTest) -> None:
    run(page)
    other = tiny_model("llama", layers=4, seed=1)
    job_of(page, ("edit", "job")).result = replace(job(page).result, edit=random_edit(other))
    page.run()

    assert not page.exception
    assert "Press Edit" in texts(page.info)


# -------------------------------------------------------------------------------------------------------------- files


def test_an_edit_goes_to_a_file_and_comes_back() -> None:
    lm = tiny_model()
    edit = random_edit(lm)

    assert edit_files.read_edit(lm, edit_files.edit_file(edit)).id == edit.id


def test_the_edited_model_goes_to_a_new_folder(page: AppTest, tmp_path: Path) -> None:
    report = run(page)
    page.session_state["edit-tab"] = "Save"
    page.run()
    folder = page.text_input(key=f"merged-folder-{report.edit.id}")
    folder.set_value("there").run()
    page.button(key="merged-write").click().run()
    assert "is no full path" in texts(page.error)

    folder.set_value(str(tmp_path / "merged")).run()
    page.button(key="merged-write").click().run()
    finish(page, ("merged", report.edit.id))
    assert list((tmp_path / "merged").glob("*.safetensors"))
    with pytest.raises(EditError, match="not empty"):
        edit_files.new_folder(str(tmp_path / "merged"))


def test_the_adapter_is_a_zip_that_peft_can_read() -> None:
    with zipfile.ZipFile(io.BytesIO(edit_files.adapter_zip(random_edit(tiny_model())))) as archive:
        assert set(archive.namelist()) == {"adapter_config.json", "adapter_model.safetensors"}
        assert json.loads(archive.read("adapter_config.json"))["peft_type"] == "LORA"


# -------------------------------------------------------------------------------------------------- questions, words


def step(p: float, *, loss: float = 0.1, norm: float = 1.0, rank: int = 1) -> Step:
    return Step(0, loss, loss, 0.0, 0.0, p, norm, 2.0, rank)


@pytest.mark.parametrize(
    ("before", "after", "history", "reason"),
    [
        (0.9, 0.95, (step(0.9),), "answered “Rome” before"),
        (0.01, 0.02, (step(0.01), step(0.9)), "does not bring it about on the bare prompt"),
        (0.01, 0.02, (step(0.01, loss=5), step(0.1, loss=2, norm=2.0)), "ran into its clamp"),
        (0.01, 0.02, (step(0.01, loss=5), step(0.02, loss=4.9)), "hardly fell"),
        (0.01, 0.02, (step(0.01, loss=5), step(0.2, loss=2)), "Allow more steps"),
        (0.01, 0.9, (step(0.01), step(0.9)), None),
    ],
)
def test_no_effect_has_its_reason(before: float, after: float, history: tuple[Step, ...], reason: str | None) -> None:
    report: Any = SimpleNamespace(
        changes=(change_by_hand("edit", "x", (before,), (after,)),),
        edit=SimpleNamespace(history=history, keys=random_edit(tiny_model()).keys),
        request=REQUEST,
        rank=(12, 1 if after > 0.5 else 7),
        diagnosis=SimpleNamespace(cosine=0.1),
    )

    found = edit_views.why_no_effect(report)

    assert (found is None) if reason is None else (found is not None and reason in found)


def test_words_that_differ_are_marked_and_markup_is_shown_as_text() -> None:
    before, after = word_differences("a tower in Paris today", "a tower in <b>Rome today")

    assert before.startswith("a tower in <mark")
    assert ">Paris</mark> today" in before
    assert "&lt;b&gt;Rome</mark> today" in after


def test_stars_are_no_markup() -> None:
    assert literal("k_0ᵀC⁻¹k* [x]") == "k\\_0ᵀC⁻¹k\\* \\[x\\]"


# ------------------------------------------------------------------------------------------------------------ figures


def test_the_search_is_drawn_term_by_term_and_before_it_began() -> None:
    steps = [replace(step(p, rank=r), index=i) for i, (p, r) in enumerate([(0.01, 500), (0.9, 1)])]
    fig = edit_figures.steps_figure(steps, "Rome", 20, "caption", LIGHT)

    assert fig.layout.title.text == "p(Rome) 0.0100 → 0.900 in 2 evaluations"
    assert [trace.stackgroup for trace in fig.data[:3]] == ["loss"] * 3
    assert list(fig.data[5].y) == [500, 1]
    assert edit_figures.steps_figure([], "Rome", 20, "caption", LIGHT).layout.title.text.endswith("say Rome?")


def test_a_dumbbell_has_a_row_a_prompt_and_keeps_markup_out() -> None:
    probes = [
        change_by_hand("edit", "x <b>", (0.1, 0.8), (0.9, 0.1)),
        change_by_hand("reversed", "y", (0.2,), (0.3,)),
    ]
    fig = edit_figures.dumbbell(probes, ["Rome", "Paris"], "caption", LIGHT)

    words = [annotation.text for annotation in fig.layout.annotations]
    assert "<i>edit</i>  x &lt;b&gt;" in words
    assert words.count("caption") == 1
    after = [list(trace.x) for trace in fig.data if trace.name == "after"]
    assert after == [pytest.approx([0.9, 0.3]), [pytest.approx(0.1), None]]


def test_equal_tokens_do_not_share_a_bar() -> None:
    fig = part_figures.promoted_figure([(" the", 2.0), (" the", 1.0)], [(" Rome", 3.0), ("\n", 1.0)], "c", LIGHT)

    assert list(fig.data[0].y) == [0, 1]
    assert list(fig.layout.yaxis.ticktext) == ["·the", "·the"]


def test_the_key_is_drawn_by_its_loudest_neurons_and_how_alike_it_is_behind_prefixes() -> None:
    neurons = part_figures.neurons_figure([(3, 1.0), (1, -0.5)], "c", LIGHT)
    cosines = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.5], [0.2, 0.5, 1.0]])
    alike = part_figures.cosines_figure(cosines, "c", LIGHT)

    assert neurons.layout.title.text == "Neuron 3 is the loudest in k*"
    assert (list(neurons.data[0].x), list(neurons.layout.yaxis.ticktext)) == ([1.0, -0.5], ["neuron 3", "neuron 1"])
    assert alike.layout.title.text == "Cosine between keys behind different prefixes: 0.20 to 0.90"
    assert np.array_equal(alike.data[0].z, cosines)
    assert "1.00 to 1.00" in part_figures.cosines_figure(np.ones((1, 1)), "c", LIGHT).layout.title.text


def test_the_update_is_drawn_factor_by_factor() -> None:
    U, V = torch.ones(3, 1), torch.cat([torch.full((1, 20), 2.0), torch.full((1, 80), 1.0)], 1)
    factors = part_figures.factors_figure(Delta("m", U, V), "c", LIGHT)

    assert factors.layout.title.text == "20 of 100 neurons carry 50% of what Δ listens to"  # 20·2² of 20·2² + 80·1²
    assert [list(bars.y) for bars in factors.data] == [U[:, 0].tolist(), V[0].tolist()]
    nothing = part_figures.factors_figure(Delta("m", 0 * U, 0 * V), "c", LIGHT)
    assert "carry 0%" in nothing.layout.title.text


def test_the_spectrum_is_drawn_before_and_after() -> None:
    fig = part_figures.spectrum_figure([2.0, 1.0], [3.0, 0.5], "c", LIGHT)

    assert fig.layout.title.text == "Largest singular value 2.00 → 3.00"
    assert {line.name: list(line.y) for line in fig.data} == {"W": [2.0, 1.0], "W + Δ": [3.0, 0.5]}
    assert list(fig.data[0].x) == [1, 2]


@pytest.mark.parametrize("method", ["memit", "emmet", "alphaedit"])
def test_methods_without_a_single_key_are_shown_in_every_tab(page: AppTest, method: str) -> None:
    page.selectbox(key="method").set_value(method)
    page.number_input(key="layer").set_value(2).run()

    report = run(page)

    assert report.diagnosis is None and report.size.verdict in ("safe", "caution", "disabling")
    assert report.size.relative_F == max(report.size.modules.values())
    draw_tabs(page)
    assert "by size alone" in "".join(str(metric.delta) for metric in page.metric)


@pytest.mark.parametrize("method", ["ft", "ft-m", "ft-l"])
def test_methods_that_train_the_weights_show_their_training_and_no_key(page: AppTest, method: str) -> None:
    page.selectbox(key="method").set_value(method)
    page.number_input(key="layer").set_value(2).run()
    assert page.number_input(key="edit-lr").value == METHODS[method]().lr

    report = run(page)

    assert report.edit.history[-1].nll < report.edit.history[0].nll
    names = ["Before / after", "Training", "Δ", "Objective", "Knowing or saying", "Compare", "Save"]
    assert draw_tabs(page) == names
    below = "".join(str(metric.delta) for metric in page.metric)
    assert ("no clamp" in below) == (method != "ft-l")


def test_the_second_method_keeps_its_own_settings_where_they_mean_something_else() -> None:
    rome = METHODS["r-rome"](layer=3, lr=0.7, clamp=2.0, kl_weight=0.5)

    assert edit_form.with_settings_of(rome, METHODS["h-rome"]) == METHODS["h-rome"](
        layer=3, lr=0.7, clamp=2.0, kl_weight=0.5
    )
    assert edit_form.with_settings_of(rome, METHODS["ft"]) == METHODS["ft"](layer=3)
    assert edit_form.with_settings_of(METHODS["ft"](lr=1e-3), METHODS["ft-l"]) == METHODS["ft-l"](lr=1e-3)


def test_a_method_without_its_network_says_how_to_train_one(page: AppTest) -> None:
    page.selectbox(key="method").set_value("mend").run()
    page.button(key="run").click().run()
    wait_for(page, lambda app: not job(app).live)

    assert not page.exception
    assert "There is no MEND network for" in texts(page.error) and "rome-train mend" in texts(page.error)
    assert page.selectbox(key="method").value == "mend"


@pytest.mark.parametrize("method", ["mend", "ke"])
def test_an_edit_by_a_trained_network_is_shown_in_every_tab(
    page: AppTest, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lm = tiny_model(layers=4)  # the page's model
    kind = METHODS[method].network
    network = kind(edited_matrices(lm), **kind.sizes(lm))
    path = tmp_path / "network.safetensors"
    training = {"facts": 1, "steps": 2, "seed": 3}
    save_checkpoint(path, Checkpoint(network, lm.fingerprint, training), edited_matrices(lm))
    monkeypatch.setattr("rome_core.editing.hypernetworks.hypernetwork.find_checkpoint", lambda lm, kind: path)
    page.selectbox(key="method").set_value(method).run()

    report = run(page)

    assert len(report.edit.deltas) == 9 and report.edit.corpus.startswith("network trained on")
    assert draw_tabs(page)[:2] == ["Before / after", "Δ"]


def test_the_objective_shows_a_column_only_where_there_is_a_number() -> None:
    elsewhere = Changed("m.x", None, 3, 0.1, None, None, None, None)
    rows = matrix_rows([elsewhere, Changed("m", 5, 1, 0.2, 2.0, 0.1, 1.5, 0)])

    assert "left over" in rows[0] and rows[2].endswith("| 3 | 0.100 |  |  |  |  |")
    assert "left over" not in matrix_rows([elsewhere])[0]


# ----------------------------------------------------------------------------------------------------- published sets


@pytest.fixture
def published_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets of n-rome for a model of the tiny one's shape, which disagree."""
    lm = tiny_model("llama", layers=4)
    shape = published.Shape("llama", lm.n_layers, lm.d_model, lm.d_mlp)
    sets = tuple(
        published.PublishedSet("n-rome", "Tiny", repository, "a.json", values, None, note)
        for repository, values, note in (
            ("them/first", {"layer": 1, "clamp": 4, "steps": 25}, ""),
            ("them/second", {"layer": 3, "lr": 0.1}, "The first has layer 1."),
        )
    )
    monkeypatch.setattr(published, "published", lambda: ({"Tiny": shape}, sets))


def test_a_published_set_is_chosen_by_name_and_fills_its_fields(published_here: None, page: AppTest) -> None:
    offered = page.selectbox(key="edit-n-rome-set")
    assert [option.split(",")[0] for option in offered.options[1:]] == ["first", "second"]
    assert offered.options[0].startswith("Preset:")
    usual = {name: page.number_input(key=f"edit-{name}").value for name in ("clamp", "steps", "lr")}

    offered.set_value(offered.options[1]).run()
    assert (page.number_input(key="layer").value, page.number_input(key="edit-clamp").value) == (1, 4.0)
    assert page.number_input(key="edit-steps").value == 25
    assert "Published for Tiny: them/first, a.json." in texts(page.caption)
    assert "Changed since" not in texts(page.caption)

    page.number_input(key="edit-steps").set_value(7).run()
    assert "Changed since" in texts(page.caption)

    page.selectbox(key="edit-n-rome-set").set_value(offered.options[2]).run()
    assert (page.number_input(key="layer").value, page.number_input(key="edit-lr").value) == (3, 0.1)
    assert page.number_input(key="edit-clamp").value == usual["clamp"], "what the second set leaves open"
    assert "The first has layer 1." in texts(page.caption)

    page.selectbox(key="edit-n-rome-set").set_value(offered.options[0]).run()
    assert {name: page.number_input(key=f"edit-{name}").value for name in usual} == usual
    assert not page.exception


def test_without_a_published_set_nothing_is_offered(page: AppTest) -> None:
    assert not [box for box in page.selectbox if box.label == "Settings"]
