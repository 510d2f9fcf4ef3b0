"""Script injection in Chromium: what a visitor, a file or a model writes is text, on every page and in every view.

Each channel (prompt, subject, targets, address, file names, facts, an edit's fields, records, tokens that the model
writes) carries HTML, a script, links, formulas and plotly's placeholders. Nothing of it may run, become an element, or
be asked of another machine (which the fixture `page` sees to).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch

from rome_core import EditRequest, Prompt, load_model, save_edit
from rome_core.files import csv_text
from rome_core.tracing.averages import GROUPS
from tests.pages.conftest import LONG, served
from tests.tiny import random_edit, save_model, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.browser

IMAGE = '<img/src="x"/onerror="window.ran=1">'
SCRIPT = "<script>window.ran=1</script>"
BOLD = "<b>hostile</b>$hostile^2$"
LINK = '<a href="javascript:window.ran=1">hostile</a>[hostile](//evil.example)![hostile](//evil.example/i.png)%{x}'
WRITTEN = (f" {IMAGE}", f" {SCRIPT}", " $hostile^2$", " [hostile](//evil.example)", " <b>hostile</b>")  # tokens
PROMPT = {"template": f"The {{}} {IMAGE} is in", "subject": f"Eiffel {BOLD}", "target": f"Rome {LINK}", "true": SCRIPT}
# What must not be there: elements that came of a text. The pages' own formulas, links and bold words are other ones.
MADE = """() => [
  ...document.querySelectorAll('img[src="x"], a[href^="javascript"], [href*="//evil"], [src*="//evil"]'),
  ...[...document.querySelectorAll('script')].filter(e => e.textContent.includes('window.ran')),
  ...[...document.querySelectorAll('b, strong, tspan, a, em, mark')].filter(e => e.textContent.trim() === 'hostile'),
  ...[...document.querySelectorAll('.katex')].filter(e => e.textContent.includes('hostile')),
].map(e => e.parentElement.outerHTML.slice(0, 300))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that likes to write tokens which are HTML, links and formulas."""
    tokenizer = type(tiny_tokenizer())(
        tokenizer_object=tiny_tokenizer().backend_tokenizer.__class__.from_str(
            tiny_tokenizer().backend_tokenizer.to_str()
        ),
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
    )
    tokenizer.add_tokens(list(WRITTEN))
    lm = tiny_model(layers=3, tokenizer=tokenizer, vocab_size=400 + len(WRITTEN), max_position_embeddings=1024)
    with torch.no_grad():
        head: Any = lm.hf.get_output_embeddings()
        head.weight[400:] *= 4
    return save_model(lm, tmp_path_factory.mktemp("models") / "hostile")


@pytest.fixture(scope="module")
def app(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROME_EXPLORER_CACHE", str(tmp_path_factory.mktemp("cache")))
        with served() as url:
            yield url


@pytest.fixture
def look(page: Any, app: str, folder: Path) -> Callable[..., None]:
    """Opens a page on the hostile model, or looks at the one that is open: nothing ran, nothing was made of a text."""
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog said {dialog.message}"))

    def check(name: str = "", **query: str) -> None:
        if name:
            page.goto(f"{app}/{name}?{urlencode({'model': str(folder), **query})}")
            page.get_by_role("heading", level=1).first.wait_for(timeout=LONG)
        settle(page)
        for expander in page.locator("details:not([open]) > summary").all():
            if expander.is_visible():
                expander.click()
        settle(page)
        for plot in page.locator(".js-plotly-plot .nsewdrag").all()[:8]:
            if plot.is_visible():
                plot.scroll_into_view_if_needed()
                plot.hover(force=True)
                page.wait_for_timeout(100)
        assert page.evaluate("window.ran") is None
        assert page.evaluate(MADE) == []

    return check


def settle(page: Any) -> None:
    """Wait until no script of the app runs and no job is under way."""
    page.wait_for_timeout(300)
    page.wait_for_function(
        "() => !document.querySelector('[data-testid=stStatusWidget], [data-testid=stSkeleton]')"
        " && ![...document.querySelectorAll('button')].some(b => b.textContent.trim() === 'Stop')",
        timeout=LONG,
    )
    page.wait_for_timeout(300)


def press(page: Any, key: str) -> None:
    page.locator(f".st-key-{key} button").first.click()
    page.wait_for_timeout(500)
    settle(page)


def walk(page: Any, look: Callable[..., None]) -> int:
    """Look at every tab of the page; how many there are."""
    tabs = page.get_by_role("tab")
    for at in range(tabs.count()):
        if tabs.nth(at).is_visible():
            tabs.nth(at).click()
            look()
    return int(tabs.count())


def facts_file() -> bytes:
    rows = [
        [f"{PROMPT['subject']} {n}", PROMPT["template"], PROMPT["target"], f"{PROMPT['true']} {IMAGE}", f"{BOLD}{LINK}"]
        for n in range(4)
    ]
    return csv_text(["subject", "template", "target_new", "target_true", "relation_id"], rows).encode()


def bring(page: Any, key: str, name: str, data: bytes) -> None:
    page.locator(f".st-key-{key} input[type=file]").set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": data}]
    )
    page.wait_for_timeout(500)
    settle(page)


FILE = "<img src=x onerror=window.ran=1><b>hostile<b>$hostile^2$[hostile](evil)*x*.csv"  # a name has no slash in it


def test_a_trace_and_an_address(page: Any, look: Callable[..., None]) -> None:
    look("tracing", **{**PROMPT, "answer": f" {LINK}", "foil": SCRIPT, "trace-samples": "1", "trace-window": IMAGE})
    assert "cannot be used; the form's own value stands" in page.content()
    press(page, "run")
    page.get_by_text("Take it away").wait_for(timeout=LONG)
    look()
    assert IMAGE in page.locator(".stMain").inner_text()
    for button in page.locator("[class*=st-key-study] button, [class*=st-key-further] button").all():
        button.click()
        settle(page)
    look()
    look("home", subject=IMAGE)
    look("nowhere", subject=SCRIPT, model=SCRIPT)


def test_an_edit_and_what_the_model_writes(page: Any, look: Callable[..., None]) -> None:
    look("edit", **PROMPT, method="r-rome")
    press(page, "run")
    page.get_by_role("tab", name="Before / after").wait_for(timeout=LONG)
    look()
    assert any(token.strip() in page.locator(".stMain").inner_text() for token in WRITTEN), "the model writes them"
    assert walk(page, look) > 6
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the edit").click()
    assert "/" not in download.value.suggested_filename
    for view in ("All methods", "Where to edit"):
        look("edit", **PROMPT, view=view, method="r-rome")
    for name in ("home", "facts", "averages", "evaluate", "sequential"):
        look(name)  # the list of edits stands beside every page
    look("diagnostics", **PROMPT, method="r-rome")
    press(page, "diagnose")
    page.get_by_role("tab", name="Quantities").wait_for(timeout=LONG)
    look()
    walk(page, look)
    look("diagnostics", question="Between edits")
    look("diagnostics", question="A changed model")


def test_facts_from_a_file(page: Any, look: Callable[..., None]) -> None:
    look("facts")
    bring(page, "set-file", FILE, facts_file())
    look()
    assert "4 facts of 4" in page.locator(".stMain").inner_text()
    press(page, "ask")
    look()
    for name, button in (("evaluate", "run-evaluate"), ("sequential", "run-sequence")):
        page.get_by_test_id("stSidebarNavLink").filter(
            has_text={"evaluate": "Evaluate", "sequential": "Edit in sequence"}[name]
        ).click()
        look()
        press(page, button)
        look()
        walk(page, look)


def test_a_batch_and_many_diagnoses(page: Any, look: Callable[..., None]) -> None:
    look("edit", view="A batch", method="emmet")
    bring(page, "batch-file", FILE, facts_file())
    look()
    press(page, "batch-run")
    look()
    with page.expect_download() as download:
        page.get_by_role("button", name="Outcomes as CSV").click()
    saved = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert len(saved) > 4 and not [cell for row in saved for cell in row if cell.startswith(("=", "+", "@"))]
    look("diagnostics", question="Many edits")
    page.locator(".st-key-many-list textarea").fill(
        "\n".join(f"{{}} {IMAGE} is in | {BOLD} {n} | {LINK} | {SCRIPT}" for n in range(3))
    )
    page.locator(".st-key-many-list textarea").press("Control+Enter")
    settle(page)
    look()
    press(page, "diagnose-all")
    look()


def test_an_edit_file_and_records(page: Any, look: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    lm = load_model(folder, device="cpu")
    request = EditRequest(Prompt(PROMPT["template"], PROMPT["subject"]), PROMPT["target"], SCRIPT)
    hostile = replace(random_edit(lm, size=0.01), requests=(request,), corpus=f"{IMAGE}{LINK}", on=(BOLD,))
    save_edit(hostile, tmp_path / "edit.safetensors")
    look("edit")
    bring(page, "edit-file", FILE.replace(".csv", ".safetensors"), (tmp_path / "edit.safetensors").read_bytes())
    page.get_by_role("tab", name="Before / after").wait_for(timeout=LONG)
    look()
    walk(page, look)

    effects = {site: [[0.1] * 3 for _ in GROUPS] for site in ("resid_post", "mlp_out", "attn_out")}
    row = {"fact": BOLD, "clean": 0.5, "corrupted": 0.1, "dropped": "", "effects": effects}
    about = {"model": f"{IMAGE}{LINK}", "fingerprint": SCRIPT, "facts": BOLD, "edits": [LINK]}
    rows = [row, {**row, "fact": "2", "dropped": f"{IMAGE}{LINK}"}]
    look("averages")
    bring(page, "average-file", FILE.replace(".csv", ".json"), json.dumps({"about": about, "rows": rows}).encode())
    look()
    page.get_by_test_id("stButtonGroup").get_by_text("hostile").first.click()
    settle(page)
    look()
    assert IMAGE in page.locator(".stMain").inner_text()
