"""The main job in Chromium on the default model: change a fact, and see an edit that would break the model."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rome_core import DEFAULT_METHOD
from tests.pages.conftest import LONG, screenshot

pytestmark = pytest.mark.browser


def metric(page: Any, label: str) -> str:
    """The large number of a metric."""
    box = page.get_by_test_id("stMetric").filter(has_text=label).first
    return str(box.get_by_test_id("stMetricValue").inner_text())


def test_the_eiffel_tower_moves_to_rome(page: Any, base_url: str, tmp_path: Any) -> None:
    page.goto(f"{base_url}/edit?subject=Eiffel+Tower&target=Rome")
    page.locator(".st-key-run button").wait_for(timeout=LONG)
    page.locator(".st-key-target input").press("Control+Enter")
    page.get_by_test_id("stProgress").first.wait_for(timeout=LONG)
    page.get_by_role("tab", name="Before / after").wait_for(timeout=LONG)

    assert float(metric(page, "p(Rome)")) > 0.9
    assert metric(page, "Rank of Rome") == "1"
    assert "safe" in metric(page, "Verdict")
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_text("Eiffel Tower → Rome").wait_for()
    assert re.search(r"\b(Rome|Roman)\b", page.locator("small", has_text="after").first.locator("..").inner_text())
    screenshot(page, "edit")

    own = page.locator(".st-key-own textarea")
    own.fill("The Louvre is located in the city of")
    own.press("Control+Enter")
    page.locator(".js-plotly-plot", has_text="Louvre").wait_for()  # a click during the rerun may be lost
    page.get_by_text("The same as a table").click()
    row = page.get_by_role("row").filter(has_text="yours").last
    row.wait_for()
    p_rome, p_paris = (float(row.get_by_role("cell").nth(i).inner_text()) for i in (3, 5))
    assert p_paris > p_rome

    for name in ("Search for v*", "k*", "v*", "Δ"):
        page.get_by_role("tab", name=name, exact=True).click()
        page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_role("tab", name="Save").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the edit").click()
    assert download.value.suggested_filename == f"{DEFAULT_METHOD}-Eiffel_Tower-Rome.safetensors"
    assert page.get_by_test_id("stAlert").count() == 0


def test_an_edit_that_breaks_the_model_is_seen_before_it_is_applied(page: Any, base_url: str) -> None:
    from playwright.sync_api import expect

    page.goto(f"{base_url}/diagnostics")
    page.get_by_role("button", name="Paris → Italy").click()
    expect(page.locator(".st-key-method input")).to_have_value("rome", timeout=LONG)
    page.locator(".st-key-diagnose button").click()
    page.get_by_role("tab", name="Quantities").wait_for(timeout=LONG)

    assert "disabling" in page.get_by_role("status").filter(has_text="disabling").inner_text()
    assert page.get_by_text("The subject is the first token").is_visible()
    assert page.get_by_test_id("stSidebar").get_by_text("Paris → Italy").count() == 0
    screenshot(page, "diagnosis")

    page.locator(".st-key-apply button").click()
    page.get_by_text("Outcome").wait_for(timeout=LONG)
    assert "broken" in metric(page, "Outcome")
    page.locator(".st-key-apply-safe button").click()
    page.get_by_text("unharmed").wait_for(timeout=LONG)
    assert "safe" in metric(page, "Forecast")
    assert page.get_by_test_id("stAlert").count() == 0
    screenshot(page, "applied")
