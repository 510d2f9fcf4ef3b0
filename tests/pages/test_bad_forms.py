"""Hundreds of inputs that nobody should type, into every form of every page: each ends in a sentence or a result.

What a browser sends is what is set here: texts of any kind, numbers within a widget's own range, any of its choices,
addresses with anything in them, and files. Buttons of work are pressed, and work that is long is stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared import track
from rome_core.errors import RomeError
from tests.bad_values import NASTY
from tests.pages.conftest import SECONDS, goto, session_of, texts

# Streamlit's protocol knows no half letters, and AppTest's addresses no zeros.
TEXTS = [text for text in NASTY if not any("\ud800" <= letter <= "\udfff" for letter in text)]
FILES: dict[str, list[bytes]] = {
    "csv": [b"subject,template,target_new\n{},{},{}\n", b'subject,template\n"a', b"\xff\xfe\x00", b"a;b;c\n1;2"],
    "json": [b"[]", b"{", b'[{"prompt": "{} {}", "subject": 3}]', b'{"rows": [{}]}', b"[" * 5000, b'{"a": ' * 2000],
    "jsonl": [b"{}\n[]\n", b"null"],
    "parquet": [b"PAR1", b"PAR1" * 9],
    "safetensors": [b"", b"\x02" + b"\0" * 7 + b"{}", b"\xff" * 16, b"[" * 40],
}
PAGES = ("home", "tracing", "edit", "diagnostics", "facts", "averages", "evaluate", "sequential")
VIEWS = {
    "edit": ("view", ("This method", "All methods", "A batch", "Where to edit")),
    "diagnostics": ("question", ("One edit", "Many edits", "Between edits", "A changed model", "Calibration")),
}
PLACES = [(page, key, view) for page in PAGES for key, views in [VIEWS.get(page, ("", ("",)))] for view in views]
EMPTY = ("Between edits", "Calibration")  # views without a form, as long as there is no edit
ROUNDS, FIELDS = 4, 6  # of each view; fields that are set at once


def widgets(app: AppTest) -> list[Any]:
    """The fields of the page, those of its sidebar left out but for the model."""
    kinds = ("text_input", "text_area", "number_input", "selectbox", "multiselect", "toggle", "slider", "file_uploader")
    return [one for kind in kinds for one in app.main.get(kind) if not getattr(one, "disabled", False)]


def value_for(draw: random.Random, widget: Any) -> Any:
    """Something that a browser could send for a widget."""
    if widget.type in ("text_input", "text_area"):
        return draw.choice(TEXTS)
    if widget.type in ("number_input", "slider"):
        low, high = widget.min, widget.max
        ends = [end for end in (low, high) if end is not None] or [0]
        return type(widget.value)(draw.choice([*ends, widget.value]))
    if widget.type == "selectbox":
        return draw.choice(widget.options)
    if widget.type == "multiselect":
        return draw.sample(widget.options, min(len(widget.options), draw.randrange(3)))
    if widget.type == "file_uploader":
        suffix = draw.choice([kind.lstrip(".") for kind in widget.proto.type] or ["json"])
        data = draw.choice(FILES.get(suffix, [b"\0", b"words"]))
        files = [(f"{draw.choice(('a', '=1', '<b>'))}.{suffix}", data, "")]
        return files if widget.proto.multiple_files else files[0]
    return draw.choice([True, False])


def stop_all(app: AppTest) -> None:
    """Stop what was begun; it has ended well or with a sentence."""
    with session_of(app):
        jobs = list(track.my_jobs())
    for job in jobs:
        job.stop()
    end = time.monotonic() + SECONDS
    while any(job.live for job in jobs) and time.monotonic() < end:
        time.sleep(0.01)
    assert all(job.error is None or isinstance(job.error, RomeError) for job in jobs), [job.error for job in jobs]


def fill_and_press(app: AppTest, draw: random.Random) -> Iterator[str]:
    """Set some fields, then press each of the buttons that begin something."""
    fields = widgets(app)
    for widget in draw.sample(fields, min(FIELDS, len(fields))):
        value = value_for(draw, widget)
        widget.set_value(value)
        yield f"{widget.type} {getattr(widget, 'label', '')} = {str(value)[:60]!r}"
    app.run()
    for key in [button.key for button in app.main.button if button.key and not button.disabled]:
        button = next((one for one in app.main.button if one.key == key and not one.disabled), None)
        if button is not None:
            button.click().run()
            stop_all(app)
            yield f"button {key}"


@pytest.mark.parametrize(("page", "key", "view"), PLACES, ids=[" ".join(filter(None, place)) for place in PLACES])
def test_whatever_is_typed_and_pressed(
    app: AppTest, random_moments: None, few_facts: None, page: str, key: str, view: str
) -> None:
    draw = random.Random(f"{page} {view}")
    for _ in range(ROUNDS):
        goto(app, page, **({key: view} if key else {}))
        done = []
        for step in fill_and_press(app, draw):
            done.append(step)
            assert not app.exception, (done, texts(app.exception))
        assert done or page == "home" or view in EMPTY
        said = texts(app.error)
        assert "unforeseen" not in said, (done, said)
    stop_all(app)


NAMES = ("template", "subject", "target", "true", "answer", "foil", "method", "layer", "model", "chat", "occurrence")


@pytest.mark.parametrize("page", PAGES)
def test_whatever_an_address_says(app: AppTest, random_moments: None, page: str) -> None:
    draw = random.Random(page)
    names = [*NAMES, "view", "question", "trace-samples", "trace-window", "evaluate-n", "edit-steps", "sequence-facts"]
    for _ in range(2 * ROUNDS):
        query = {name: draw.choice(TEXTS) for name in draw.sample(names, 5)}
        goto(app, page, **query)
        assert not app.exception and "unforeseen" not in texts(app.error), (query, texts(app.error))
