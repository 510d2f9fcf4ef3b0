"""The numbers that a change of the code must not change: written before it, and compared after it, to the bit.

python -m tests.golden before.json                       # the tiny model of each family, and the default model
python -m tests.golden after.json --against before.json  # says what differs, and by how much

One thread, so that sums have one order. Values depend on the machine: both files must come from the same one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rome_core import METHODS, EditRequest, Prompt, TraceConfig, diagnose, load_facts, load_model, preview, solve, trace
from rome_core.editing.edit import Edit
from rome_core.editing.hypernetworks.hypernetwork import Checkpoint, edited_matrices, save_checkpoint
from rome_core.editing.hypernetworks.training import KINDS
from rome_core.editing.second_moment import Moment, stored_moment
from rome_core.evaluation import MeasureSettings, Pace, create_run, edit_in_sequence, measure_fact, plan_sequence
from rome_core.model.language_model import LanguageModel
from rome_core.tracing.averages import FactEffect, average, fact_effects, group_effects
from tests.tiny import FAMILIES, random_moment, tiny_model

SITES = ("resid_post", "mlp_out", "attn_out")
FACT = EditRequest(Prompt("The {} is located in the city of", "Eiffel Tower"), "Rome", "Paris")
OTHER = EditRequest(Prompt("The {} is located in the city of", "Colosseum"), "Paris", "Rome")
SECONDS = ("solve_seconds", "measure_seconds", "seconds")
UNNUMBERED = ("config", "moment_key", "moment_keys", "other_moment")  # what a result is called, not what it is
Entry = dict[str, Any]


def numbers(value: Any, name: str) -> Iterator[tuple[str, Entry]]:
    """Every number in a result, by its place: tensors as a hash with their norm, the rest as it is."""
    if isinstance(value, torch.Tensor):
        whole = value.detach().cpu().contiguous()
        digest = hashlib.blake2b(whole.numpy().tobytes(), digest_size=8).hexdigest()
        yield name, {"hash": digest, "norm": float(whole.double().nan_to_num().norm()), "shape": list(whole.shape)}
    elif isinstance(value, Edit):
        keys = {} if value.keys is None else {key: getattr(value, key) for key in ("k_star", "v_star", "k_0", "v_0")}
        names = ("requests", "method", "deltas", "history", "base", "on", "corpus")
        yield from numbers({**{key: getattr(value, key) for key in names}, **keys}, name)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name not in (*SECONDS, *UNNUMBERED) and not field.name.startswith("_"):
                yield from numbers(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key in value:
            yield from numbers(value[key], f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from numbers(item, f"{name}.{index}")
    elif hasattr(value, "tobytes") and hasattr(value, "dtype"):
        yield from numbers(torch.from_numpy(value), name)
    elif isinstance(value, float):
        yield name, {"value": repr(value)}
    else:
        yield name, {"value": str(value)}


def of_model(lm: LanguageModel, small: bool, folder: Path) -> Iterator[tuple[str, Any]]:
    """Results by name: heat maps, a preview, an average, an edit by every method, verdicts, batches, a sequence of
    three, the measures of five facts."""
    settings = TraceConfig(samples=3, window=3 if small else 10, seed=1)
    maps = []
    for site in SITES:
        config = replace(settings, site=site)  # type: ignore[arg-type]
        maps.append(trace(lm, FACT.prompt, config, answer=" Paris"))
        yield f"trace.{site}", maps[-1]
    yield "preview", preview(lm, FACT.prompt, settings, answer=" Paris")
    effects = [FactEffect(str(i), m.clean, m.corrupted, {"mlp_out": group_effects(m)}) for i, m in enumerate(maps)]
    yield "average", average(effects)
    if not small:
        yield "average.known", list(fact_effects(lm, load_facts()[:2], replace(settings, samples=2), sites=["mlp_out"]))

    layers = range(lm.n_layers) if small else (5,)
    moments: dict[int, Moment] = {layer: _moment(lm, layer, small) for layer in layers}
    edits: dict[str, Edit] = {}
    for name, config in _configs(lm, small, folder).items():
        edits[name] = solve(lm, [FACT], config, moments=moments)
        yield f"edit.{name}", edits[name]
    yield "edit.on", solve(lm, [OTHER], edits["r-rome"].config, moments=moments, edits=[edits["memit"]])
    for name in ("rome", "r-rome", "n-rome"):
        found = diagnose(lm, edits[name], moments)
        yield f"diagnosis.{name}", {f.name: getattr(found, f.name) for f in fields(found) if f.name not in UNNUMBERED}
    for name in ("memit", "emmet", "alphaedit", "ft"):
        yield f"batch.{name}", solve(lm, [FACT, OTHER], edits[name].config, moments=moments)

    pace = Pace(passages=1, new_tokens=5, check_every=2)
    config = edits["n-rome"].config
    plan = plan_sequence(lm, load_facts()[:3], config, pace)
    yield "sequence", list(edit_in_sequence(lm, create_run(folder / "run", lm, plan), moments=moments))
    measures = MeasureSettings(neighbours=3, generated=8, passages=1)
    for fact in load_facts()[:5]:
        before = measure_fact(lm, fact, measures)
        after = measure_fact(lm, fact, measures, edits=[edits["r-rome"]])
        yield f"measures.{fact.id}", (before.values(), after.values(before), before.texts, after.known)


def _moment(lm: LanguageModel, layer: int, small: bool) -> Moment:
    found = random_moment(lm, layer) if small else stored_moment(lm, layer)
    assert found is not None
    return found


def _configs(lm: LanguageModel, small: bool, folder: Path) -> dict[str, Any]:
    """Every method with few steps; networks for the tiny models are made on the spot, untrained."""
    configs: dict[str, Any] = {}
    for name, method in METHODS.items():
        known = {field.name for field in fields(method)}
        chosen = {"layer": 1 if small else 5, "steps": 6, "n_prefixes": 3, "span": 1, "clamp": 2.0}
        if small and name in KINDS:
            torch.manual_seed(0)
            network = KINDS[name](edited_matrices(lm), **KINDS[name].sizes(lm))
            path = folder / f"{name}.safetensors"
            training = {"facts": 0, "steps": 0, "seed": 0}
            save_checkpoint(path, Checkpoint(network, lm.fingerprint, training), edited_matrices(lm))
            chosen["checkpoint"] = str(path)
        configs[name] = method(**{key: value for key, value in chosen.items() if key in known})
    return configs


def compare(now: Mapping[str, Entry], then: Mapping[str, Entry]) -> int:
    """Print what differs; the number of differences."""
    names = now.keys() | {name for name, entry in then.items() if 0 not in entry.get("shape", ())}
    different = [name for name in names if now.get(name) != then.get(name)]
    for name in sorted(different)[:200]:
        print(f"{name}: {_short(then.get(name))} -> {_short(now.get(name))}")
    print(f"{len(now)} values, {len(different)} differ")
    return len(different)


def _short(entry: Entry | None) -> str:
    if entry is None:
        return "absent"
    return f"‖{entry['norm']:.12g}‖" if "norm" in entry else str(entry["value"])[:60]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--models", default=",".join((*FAMILIES, "default")))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Entry] = {}
    for family in args.models.split(","):
        lm = load_model() if family == "default" else tiny_model(family)
        with tempfile.TemporaryDirectory() as folder:
            for name, result in of_model(lm, family != "default", Path(folder)):
                found.update(numbers(result, f"{family}.{name}"))
    args.out.write_text(json.dumps(found, indent=0, sort_keys=True), encoding="utf-8")
    if not args.against:
        return 0
    then = json.loads(args.against.read_text(encoding="utf-8"))
    return int(bool(compare(found, {k: v for k, v in then.items() if k.split(".")[0] in args.models.split(",")})))


if __name__ == "__main__":
    raise SystemExit(main())
