"""The three heat maps of one prompt: residual stream, MLP and attention, as they fill.

All start from one clean and one corrupted run. First come previews of the three (attribution patching), then the exact
cells of one kind after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.tracing.attribution import previews
from rome_core.tracing.heat_map import Trace, heat_map_steps
from rome_core.tracing.runs import SITES, TraceRequest, prepare


@dataclass(frozen=True, eq=False)
class TraceRun:
    """The three heat maps so far: approximate ones at first, exact ones as their cells are finished."""

    request: TraceRequest
    preview: Mapping[str, Trace] = field(default_factory=dict)
    exact: Mapping[str, Trace] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.exact) == len(SITES) and all(trace.complete for trace in self.exact.values())

    @property
    def first(self) -> Trace | None:
        """Any of the heat maps, for what they have in common."""
        return next(iter([*self.exact.values(), *self.preview.values()]), None)

    def best(self, site: str) -> Trace | None:
        """The exact heat map of a kind if it has begun, else the approximate one."""
        return self.exact.get(site) or self.preview.get(site)


def trace_kinds(lm: LanguageModel, request: TraceRequest, *, track: Track = silent) -> Iterator[TraceRun]:
    """The run as it grows: previews of all kinds at once, then the exact cells of each kind."""
    runs = prepare(lm, request)
    run = TraceRun(request, previews(lm, runs))
    yield run
    for site in track(SITES, "Heat maps", len(SITES)):
        for heat_map in heat_map_steps(lm, runs, site, track=track):
            run = replace(run, exact={**run.exact, site: heat_map})
            yield run
