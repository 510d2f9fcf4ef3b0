"""What the tests of tracing share."""

from __future__ import annotations

from typing import Any

import pytest

from rome_core.model.hooks import Batch
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import Recording
from rome_core.tracing import runs


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every run that is recorded for replay."""
    rows, record = list[int](), runs.record

    def count(lm: LanguageModel, batch: Batch, **options: Any) -> Recording:
        rows.append(len(batch.ids))
        return record(lm, batch, **options)

    monkeypatch.setattr(runs, "record", count)
    return rows
