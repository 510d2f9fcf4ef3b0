"""Where to edit: the same facts edited in one layer after another, by every key policy from one δ (ES, PS, NS, S)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rome_core.editing.edit import Edit
from rome_core.editing.method import MethodConfig
from rome_core.editing.second_moment import moments_for
from rome_core.editing.shared_search import policies
from rome_core.evaluation.answers import Pairs, ask, pairs_of, questions_about
from rome_core.evaluation.fact_measures import score_pairs
from rome_core.evaluation.scores import Score, summarise
from rome_core.evaluation.solving import FAILURES, explain, solve_by_each
from rome_core.facts.datasets import Fact
from rome_core.facts.fact import tell_apart
from rome_core.facts.new_objects import require_new_objects
from rome_core.model.language_model import LanguageModel
from rome_core.progress import Track, silent

NEIGHBOURS = 4  # of a fact's ten: scoring is as long as solving
UPDATES = {name: method for name, method in policies().items() if not method.same_update_as}


@dataclass(frozen=True)
class Swept:
    """One fact edited in one layer: by policy the probabilities on its prompts, and ‖Δ‖/‖W‖; or the reason why there is
    no edit."""

    layer: int
    fact: str
    clamp: float
    loss: float
    cases: Mapping[str, Pairs]
    norms: Mapping[str, float]
    error: str = ""


def coarse_to_fine(n: int) -> list[int]:
    """0 … n−1, every eighth first, then what is between, so that a stopped sweep covers the whole depth."""
    order: list[int] = []
    for step in (8, 4, 2, 1):
        order += [layer for layer in range(0, n, step) if layer not in order]
    return order


def sweep(
    lm: LanguageModel,
    facts: Sequence[Fact],
    config: MethodConfig,
    *,
    layers: Sequence[int] | None = None,
    done: Collection[tuple[int, str]] = (),
    edits: Sequence[Edit] = (),
    track: Track = silent,
) -> Iterator[Swept]:
    """A record a layer and fact, as they finish. config: the search's settings, its layer aside. layers: None is all of
    them, coarse to fine. done: pairs of layer and fact, as records name them, to pass over: facts that share an id have
    names of their own (`facts.fact.tell_apart`). Raises DataError if some have no new object.

    What C lacks is estimated for all layers in one pass. A policy's own settings are its defaults.
    """
    require_new_objects(facts)
    config = config.with_prefixes(lm, edits)
    order = coarse_to_fine(lm.n_layers) if layers is None else list(layers)
    named = list(zip(tell_apart(facts), facts, strict=True))
    todo = [(layer, name, fact) for layer in order for name, fact in named if (layer, name) not in done]
    moments = moments_for(lm, sorted({layer for layer, *_ in todo}), None, track)
    for layer, name, fact in track(todo, "Layers and facts", len(todo)):
        fact = replace(fact, neighbours=fact.neighbours[:NEIGHBOURS])
        questions, here = questions_about(fact), {layer: moments[layer]}
        configs = [config.like(method).at_layer(layer) or method() for method in UPDATES.values()]
        solutions = list(solve_by_each(lm, fact.request, configs, moments=here, edits=edits, track=track))
        made = {solved.config.name: solved.edit for solved in solutions if solved.edit is not None}
        error = next((solved.error for solved in solutions if solved.error), "")
        try:
            cases = {policy: pairs_of(ask(lm, questions, edits=[*edits, edit])) for policy, edit in made.items()}
        except FAILURES as failure:
            error = explain(failure)
        if error:
            yield Swept(layer, name, float("nan"), float("nan"), {}, {}, error)
            continue
        norm = float(lm.weight(layer).norm())
        norms = {policy: edit.delta_norm / norm for policy, edit in made.items()}
        first = next(iter(made.values()))
        yield Swept(layer, name, vars(first.config)["clamp"], first.history[-1].loss, cases, norms)


def by_layer(records: Sequence[Swept], policy: str) -> dict[int, dict[str, Score]]:
    """Scores with intervals of one policy, layers in ascending order; facts that could not be edited are left out."""
    values: dict[int, list[dict[str, float]]] = {}
    for record in sorted(records, key=lambda record: record.layer):
        if policy in record.cases:
            values.setdefault(record.layer, []).append(score_pairs(record.cases[policy]))
    return {layer: summarise(of_layer) for layer, of_layer in values.items()}


# --------------------------------------------------------------------------------------------------------------- files


def as_record(swept: Swept) -> dict[str, Any]:
    """Plain data for one line of JSON."""
    return asdict(swept) | ({"clamp": None, "loss": None} if swept.error else {})  # JSON has no NaN


def from_record(record: Mapping[str, Any]) -> Swept:
    """The record of such a line."""
    cases = {
        policy: {kind: [(float(new), float(true)) for new, true in pairs] for kind, pairs in by_kind.items()}
        for policy, by_kind in record["cases"].items()
    }
    clamp, loss = (float("nan") if record[name] is None else float(record[name]) for name in ("clamp", "loss"))
    return Swept(record["layer"], record["fact"], clamp, loss, cases, record["norms"], record.get("error", ""))
