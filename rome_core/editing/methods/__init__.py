"""The editing methods under one interface: METHODS[name](...) is a config, solve(...) makes an Edit of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

from rome_core.editing.edit import Edit
from rome_core.editing.hypernetworks.ke import Ke
from rome_core.editing.hypernetworks.mend import Mend
from rome_core.editing.method import EditContext, MethodConfig, Report, ignore
from rome_core.editing.methods.alphaedit import AlphaEdit
from rome_core.editing.methods.emmet import Emmet
from rome_core.editing.methods.finetune import FineTune, FineTuneL, FineTuneM
from rome_core.editing.methods.memit import Memit
from rome_core.editing.methods.n_rome import NRome
from rome_core.editing.methods.rome import CRome, HRome, PRome, Rome, RRome
from rome_core.editing.presets import resolve
from rome_core.editing.second_moment import Moment
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent

GROUP = "rome_explorer.methods"  # of the entry points by which other packages add methods
OWN = (
    *(Rome, RRome, PRome, CRome, HRome, NRome),
    *(Memit, Emmet, AlphaEdit, FineTune, FineTuneM, FineTuneL, Mend, Ke),
)
DEFAULT_METHOD = NRome.name
log = logging.getLogger(__name__)


def collect_methods(points: Iterable[EntryPoint]) -> dict[str, type[MethodConfig]]:
    """The project's methods by name, then other packages'; one that cannot be loaded is logged and left out."""
    methods: dict[str, type[MethodConfig]] = {method.name: method for method in OWN}
    for point in sorted(points, key=lambda point: point.name):
        try:
            method = point.load()
            if not issubclass(method, MethodConfig) or method.name in methods:
                raise TypeError("it is no MethodConfig, or its name is taken")
            methods[method.name] = method
        except Exception:  # another package's fault must not keep the project's own methods from working
            log.exception("The method '%s' (%s) cannot be used.", point.name, point.value)
    return methods


METHODS = collect_methods(entry_points(group=GROUP))


def markdown_table(methods: Mapping[str, type[MethodConfig]]) -> str:
    """The methods for the docs: what each is, whether it takes many facts at once and can be judged by its key."""
    rows = [["method", "what it is", "many facts", "judged by its key"], ["---"] * 4]
    rows += [
        [f"`{name}`", method.title, "yes" if method.batches else "", "yes" if method.single_key else ""]
        for name, method in methods.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def solve(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    config: MethodConfig,
    *,
    moments: Mapping[int, Moment] | None = None,
    edits: Sequence[Edit] = (),
    track: Track = silent,
    report: Report = ignore,
) -> Edit:
    """Solve requests into an edit, which does nothing until it is passed to a call.

    moments: C by layer; None takes the shipped or cached one, or estimates it. edits: those that are active already;
    the new one is solved on top of them. report: called with every step of the optimisation.

        edit = solve(lm, [EditRequest(Prompt("The {} is in the city of", "Eiffel Tower"), "Rome", "Paris")],
                     METHODS["r-rome"](layer=5))
    """
    lm.require("edit")
    config, asked = resolve(lm, config, requests), list(requests)
    return config.solve(EditContext(lm, list(edits), moments, track, report), asked)
