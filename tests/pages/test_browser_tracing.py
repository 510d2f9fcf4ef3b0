"""The tracing page as a visitor sees it: Chromium, the running app, the default model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.pages.conftest import screenshot, served

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def open_page(page: Any, url: str, heading: str = "Locate a fact") -> None:
    page.goto(url)
    page.get_by_role("heading", name=heading).wait_for()
    page.get_by_test_id("stApp").and_(page.locator("[data-test-script-state='notRunning']")).wait_for()


def trace(page: Any) -> None:
    page.locator(".st-key-run button:enabled").click()
    page.get_by_text("done in").or_(page.get_by_test_id("stAlert")).first.wait_for()
    assert page.get_by_test_id("stAlert").all_inner_texts() == []


def metric(page: Any, label: str) -> str:
    return str(page.get_by_test_id("stMetric").filter(has_text=label).get_by_test_id("stMetricValue").inner_text())


def click_cell(page: Any, site: str, token: int, layer: int, n_tokens: int, n_layers: int) -> None:
    area = page.locator(f"[class*='st-key-heat-{site}-'] .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    x, y = (layer + 0.5) / n_layers * box["width"], (token + 0.5) / n_tokens * box["height"]
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    page.mouse.click(box["x"] + x, box["y"] + y)


def value(page: Any, label: str) -> str:
    return str(page.get_by_label(label, exact=True).first.input_value())


def test_a_deep_link_works_on_a_cold_server(page: Any) -> None:
    with served() as url:
        open_page(page, f"{url}/tracing?template=The+capital+of+%7B%7D+is&subject=France&trace-samples=3")

        page.get_by_text("The model continues with").wait_for()
        assert page.get_by_test_id("stSidebarNav").inner_text().split("\n")[:1] == ["Start here"]
        assert (value(page, "Prompt"), value(page, "Subject")) == ("The capital of {} is", "France")
        assert page.get_by_text("·Paris").count()
        assert page.get_by_role("dialog").count() == 0
        page.goto(url)
        page.get_by_role("heading", name="ROME Explorer").wait_for()
        assert page.url.rstrip("/").endswith("/home")


def test_a_fact_is_located_and_handed_to_the_edit_page(page: Any, base_url: str, tmp_path: Path) -> None:
    open_page(page, f"{base_url}/tracing")
    trace(page)

    assert float(metric(page, "clean")) == pytest.approx(0.726, abs=0.01)
    assert float(metric(page, "corrupted")) == pytest.approx(0.016, abs=0.005)
    for kind, token, layer in (("MLP", "um", 4), ("attention", "·of", 20)):
        cell = page.get_by_test_id("stMetric").filter(has_text=f"Strongest {kind} cell")
        assert metric(page, f"Strongest {kind} cell") == token
        assert cell.get_by_test_id("stMetricDelta").inner_text() == f"layer {layer}"

    page.locator(".circuitsvis canvas").first.wait_for()  # attention heads
    page.locator(".circuitsvis").filter(has_text=re.compile("The.*osse.*um")).last.wait_for()  # coloured tokens
    screenshot(page, "tracing")

    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, one row a cell").click()
    download.value.save_as(tmp_path / "trace.csv")
    assert (tmp_path / "trace.csv").read_text().startswith("kind,position,token")

    click_cell(page, "attn_out", token=9, layer=20, n_tokens=10, n_layers=30)
    page.get_by_text("not into this cell").wait_for()
    assert (value(page, "Token"), value(page, "Layer")) == ("9", "20")
    page.get_by_text("Restored: Attention, layers 15–24, at ·of").wait_for()

    page.get_by_text("Edit this fact at layer 5 (recommended)").click()
    page.wait_for_url("**/edit?**")
    page.get_by_role("heading", name="Edit a fact").wait_for()
    page.get_by_text("Solved on the original model.").wait_for()
    assert [value(page, label) for label in ("Subject", "New object")] == ["Colosseum", "Paris"]
    assert "layer=5" in page.url


def test_a_run_survives_a_page_switch_and_can_be_stopped(page: Any, base_url: str) -> None:
    open_page(page, f"{base_url}/tracing?trace-samples=20")
    page.locator(".st-key-run button:enabled").click()
    main, sidebar = page.get_by_test_id("stMain"), page.get_by_test_id("stSidebar")
    main.get_by_test_id("stProgress").wait_for()

    page.get_by_test_id("stSidebarNav").get_by_text("Start here").click()
    page.get_by_role("heading", name="ROME Explorer").wait_for()
    sidebar.get_by_test_id("stProgress").wait_for()
    page.get_by_test_id("stSidebarNav").get_by_text("Locate", exact=True).click()
    heat_maps = page.locator("[class*='st-key-heat-'] .js-plotly-plot")
    heat_maps.first.wait_for()

    page.locator("[class*='st-key-stop-'] button").first.click()  # Streamlit's own header has a Stop, too
    main.get_by_text("stopped after").first.wait_for()
    heat_maps.nth(2).wait_for()
    screenshot(page, "tracing-stopped")


def test_a_model_that_cannot_be_loaded_is_one_sentence(page: Any, base_url: str) -> None:
    open_page(page, f"{base_url}/tracing")
    page.get_by_text("The model continues with").wait_for()

    page.get_by_label("Model", exact=True).first.fill("/no/such/folder")
    page.keyboard.press("Enter")

    page.get_by_text("The model '/no/such/folder' could not be loaded.").wait_for()
    page.get_by_text("SmolLM2-135M-Instruct stays in use.").wait_for()
    assert page.get_by_test_id("stAlert").count() == 1
