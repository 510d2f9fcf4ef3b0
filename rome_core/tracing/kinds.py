"""The three heat maps of one prompt: residual stream, MLP and attention, as they fill.

All start from one clean and one corrupted run. First come previews of the three (a few cells measured, the others
estimated), then the exact cells of one kind after the other, its strongest rows first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent
from rome_core.tracing.heat_map import Trace, cells_of, empty_trace, fill, lay_over
from rome_core.tracing.preview import N_STEPS, preview_steps
from rome_core.tracing.restoration import n_steps, restored_states
from rome_core.tracing.runs import SITES, TracedSite, TraceRequest, prepare


@dataclass(frozen=True, eq=False)
class TraceRun:
    """The three heat maps so far: approximate ones at first, exact ones as their cells are finished."""

    request: TraceRequest
    preview: Mapping[str, Trace] = field(default_factory=dict)
    exact: Mapping[str, Trace] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.finished) == len(SITES)

    @property
    def finished(self) -> dict[str, Trace]:
        """The heat maps that are exact throughout: only these allow a conclusion."""
        return {site: trace for site, trace in self.exact.items() if trace.complete}

    @property
    def n_exact(self) -> tuple[int, int]:
        """How many cells are exact, and how many there are, all kinds together."""
        shown = [trace for site in SITES if (trace := self.best(site))]
        exact = sum(int(trace.exact.sum()) for trace in shown)
        return exact, len(SITES) * shown[0].indirect_effect[shown[0].subject[0] :].numel() if shown else 0

    @property
    def first(self) -> Trace | None:
        """Any of the heat maps, for what they have in common."""
        return next(iter([*self.exact.values(), *self.preview.values()]), None)

    def best(self, site: str) -> Trace | None:
        """The heat map of a kind as far as it is: exact cells where they are finished, the preview elsewhere."""
        exact, preview = self.exact.get(site), self.preview.get(site)
        if exact is None or preview is None or exact.complete:
            return exact or preview
        return lay_over(exact, preview)


def trace_kinds(lm: LanguageModel, request: TraceRequest, *, track: Track = silent) -> Iterator[TraceRun]:
    """The run as it grows: previews of all kinds at once, then the exact cells of each, the strongest rows first.

    Every row is run as `trace` runs it, the few measured cells once more: the numbers are the same to the last bit.
    """
    runs = prepare(lm, request)
    run = TraceRun(request)
    for maps in track(preview_steps(lm, runs), "Preview", N_STEPS):
        run = replace(run, preview=maps)
        yield run
    cells = {site: cells_of(lm, runs, site) for site in SITES}
    rows = [(site, [cell for cell in cells[site] if cell.token == token]) for site, token in promising(run.preview)]
    run = replace(run, exact={site: empty_trace(lm, runs, site) for site in SITES})
    steps = ((site, finished) for site, row in rows for finished in restored_states(lm, runs, row))
    for site, finished in track(steps, "Exact cells", sum(n_steps(lm, runs, row) for _, row in rows)):
        if finished:
            run = replace(run, exact={**run.exact, site: fill(run.exact[site], runs, finished)})
        yield run


def promising(preview: Mapping[str, Trace]) -> list[tuple[TracedSite, int]]:
    """Rows of one kind after the other, a kind and a token each, within a kind by the strongest cell in the preview.

    One kind at a time: a heat map that has changed is drawn again, and drawing three takes the time of computing them.
    """
    rows = [(site, token) for site in SITES for token in range(preview[site].subject[0], len(preview[site].labels))]
    strongest = {(site, token): float(preview[site].indirect_effect[token].max()) for site, token in rows}
    return sorted(rows, key=lambda row: (SITES.index(row[0]), -strongest[row]))
