"""What others have printed: whole tables, of measures that are in the table of measures."""

from __future__ import annotations

import pytest

from rome_core.evaluation.measures import MEASURES
from rome_core.evaluation.published import PUBLISHED


def test_published_numbers_are_whole() -> None:
    for some in PUBLISHED:
        assert all(len(values) == len(some.columns) for values in some.rows.values())
        for values in some.rows.values():
            if "S" in some.columns:  # S is the harmonic mean of what stands beside it, as printed
                row = dict(zip(some.columns, values, strict=True))
                harmonic = 3 / sum(1 / row[name] for name in ("ES", "PS", "NS"))
                assert row["S"] == pytest.approx(harmonic, abs=0.12)


def test_published_columns_are_measures_of_this_project() -> None:
    assert {column for published in PUBLISHED for column in published.columns} <= MEASURES.keys()
