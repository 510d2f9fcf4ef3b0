"""The editing methods under one interface: METHODS[name](...) is a config, solve(...) makes an Edit of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rome_core.editing.hypernetworks.ke import Ke
from rome_core.editing.hypernetworks.mend import Mend
from rome_core.editing.method import MethodConfig
from rome_core.editing.methods.alphaedit import AlphaEdit
from rome_core.editing.methods.emmet import Emmet
from rome_core.editing.methods.finetune import FINE_TUNING
from rome_core.editing.methods.memit import Memit
from rome_core.editing.methods.rome import POLICIES
from rome_core.editing.presets import resolve
from rome_core.editing.second_moment import Moment
from rome_core.editing.value import Report, ignore
from rome_core.model.edits import Edit
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent

METHODS: dict[str, type[MethodConfig]] = {
    method.name: method for method in (*POLICIES, Memit, Emmet, AlphaEdit, *FINE_TUNING, Mend, Ke)
}
DEFAULT_METHOD = "n-rome"


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
    config, asked = resolve(lm, config, requests), list(requests)
    return config.solve(lm, asked, moments=moments, edits=list(edits), track=track, report=report)
