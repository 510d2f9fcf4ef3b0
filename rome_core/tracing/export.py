"""Heat maps to take away: one row a cell as CSV, the arrays as NPZ, and what they were made from."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from rome_core.files import csv_text
from rome_core.tracing.heat_map import GRIDS, Trace, restored_layers

COLUMNS = (
    *("kind", "position", "token", "in_subject", "layer", "first_restored", "last_restored"),
    *("p", "spread", "indirect_effect", "p_clean", "p_corrupted", "answer"),
)


def heat_maps_csv(maps: Mapping[str, Trace]) -> str:
    """One row a finished cell of the heat maps by kind."""
    return csv_text(COLUMNS, (row for kind, trace in maps.items() for row in _rows(kind, trace)))


def _rows(kind: str, trace: Trace) -> Iterator[list[object]]:
    for token, layer in torch.argwhere(~trace.indirect_effect.isnan()).tolist():
        place = (kind, token, trace.labels[token], int(trace.subject[0] <= token < trace.subject[1]), layer)
        values = (float(getattr(trace, grid)[token, layer]) for grid in GRIDS)
        yield [*place, *restored_layers(trace, layer), *values, trace.clean, trace.corrupted, trace.answer]


def heat_maps_npz(maps: Mapping[str, Trace]) -> bytes:
    """The arrays [pos, layer] of each kind, and everything else as JSON under "about"."""
    arrays: dict[str, Any] = {
        f"{kind}.{grid}": getattr(trace, grid).cpu().numpy() for kind, trace in maps.items() for grid in GRIDS
    }
    arrays["about"] = np.array(json.dumps(describe(maps), ensure_ascii=False))
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def describe(maps: Mapping[str, Trace]) -> dict[str, Any]:
    """What the numbers of one prompt's heat maps were made from."""
    trace = next(iter(maps.values()))
    names = ("model", "fingerprint", "labels", "subject", "answer", "foil", "clean", "corrupted", "edits")
    return {
        "template": trace.prompt.template,
        "subject": trace.prompt.subject,
        **{f"trace.{name}": getattr(trace, name) for name in names},
        "config": {**asdict(trace.config), "site": list(maps)},
    }
