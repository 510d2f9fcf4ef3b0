"""Over a thousand inputs that nobody should give, through every door: each ends in a RomeError or a normal result.

The doors are the public functions, the commands, and every reader of a file; the pages' forms have theirs in
tests/pages/test_bad_forms.py. The model is tiny, sizes are bounded, and the draws are seeded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rome_core
from rome_core import METHODS, EditRequest, Prompt, TraceConfig
from rome_core.cli import evaluate as evaluate_command
from rome_core.cli import sequence as sequence_command
from rome_core.cli import train as train_command
from rome_core.diagnosis.forensics import changes_of
from rome_core.editing.hypernetworks.hypernetwork import Checkpoint, edited_matrices, load_checkpoint, save_checkpoint
from rome_core.editing.hypernetworks.training import KINDS
from rome_core.editing.second_moment import load_moment
from rome_core.evaluation.before_after import measure_edit
from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.generation_measures import load_references
from rome_core.evaluation.runs.execution import carry_out
from rome_core.evaluation.runs.store import Store
from rome_core.evaluation.runs.tables import export, score_lines
from rome_core.evaluation.runs.work import Plan
from rome_core.evaluation.sequence.curves import curves, records_csv, retention_matrix
from rome_core.evaluation.sequence.folder import Pace, create_run, open_run, runs_in
from rome_core.evaluation.sequence.steps import edit_in_sequence, load_merged, plan_sequence
from rome_core.facts.corpora import split_texts
from rome_core.facts.datasets import read_sets
from rome_core.facts.fact import Fact
from rome_core.facts.requests import read_requests
from rome_core.progress import silent
from rome_core.tracing.average_records import averages_csv, read_records, write_records
from rome_core.tracing.averages import average
from tests.bad_values import ends_well, generated, number, text, tree, whole
from tests.tiny import REQUEST, random_edit, random_moment, tiny_model

LM = tiny_model("llama", layers=4)
MOMENTS = {layer: random_moment(LM, layer, seed=layer) for layer in range(4)}
EDIT = random_edit(LM)
FACTS = (
    Fact("1", "P1", Prompt("The {} is located in the city of", "Eiffel Tower"), "Paris", "Rome"),
    Fact("2", "P1", Prompt("The {} is located in the city of", "Colosseum"), "Rome", "Paris"),
)
SMALL = {"layer": 1, "steps": 2, "clamp": 2.0, "prefixes": ("", "x. ")}
GONE = object()  # in place of a value: the field is taken out

good_prompt = st.just(("The {} is in", "Eiffel Tower"))
prompts = st.one_of(good_prompt, good_prompt, st.tuples(text, text))
few = partial(settings, generated)


# --------------------------------------------------------------------------------------------------- public functions


@few(max_examples=60)
@given(text, text, whole)
def test_prompts(template: str, subject: str, occurrence: int) -> None:
    ends_well(Prompt, template, subject)
    ends_well(Prompt.from_text, template, subject, occurrence)


@few(max_examples=60)
@given(text | st.just("a"), whole, st.just(0.0) | number, st.none() | whole, st.just(0) | whole)
def test_generation(opening: str, length: int, temperature: float, top_k: int | None, seed: int) -> None:
    length = min(length, 5)
    ends_well(rome_core.generate, LM, opening, length, temperature=temperature, top_k=top_k, seed=seed, edits=[EDIT])


@few(max_examples=40)
@given(text | st.just("a"), st.lists(text, max_size=3))
def test_probabilities(opening: str, continuations: list[str]) -> None:
    ends_well(rome_core.continuation_probabilities, LM, opening, continuations)


TRACE = st.fixed_dictionaries(
    {"samples": st.sampled_from((2, 2, 1, 0, -1))},
    optional={
        "window": whole,
        "noise_scale": number,
        "seed": whole,
        "site": st.sampled_from(("resid_post", "attn_out")),
    },
)


@few(max_examples=60)
@given(prompts, TRACE, st.none() | text, st.none() | text, st.sampled_from((2**31, 1, 0, -1)))
def test_traces(
    asked: tuple[str, str], config: dict[str, Any], answer: str | None, foil: str | None, budget: int
) -> None:
    def both() -> None:
        prompt, wanted = Prompt(*asked), TraceConfig(**config, metric="logit difference" if foil else "p")
        rome_core.preview(LM, prompt, wanted, answer=answer, foil=foil)
        rome_core.trace(LM, prompt, wanted, answer=answer, foil=foil, budget=budget)

    ends_well(both)


def values_of(field: Field[Any]) -> st.SearchStrategy[Any]:
    """Of the field's type, which the tests check wherever something is made; in files and forms others come, too."""
    kinds = {"int": whole, "float": number, "str": text, "bool": st.booleans(), "tuple": st.tuples(text, text)}
    annotation = str(field.type)
    fitting = next((kinds[kind] for kind in kinds if annotation.startswith(kind)), st.just(field.default))
    return fitting | st.none() if "None" in annotation else fitting


@pytest.mark.parametrize("method", METHODS)
@few(max_examples=15)
@given(data=st.data(), asked=prompts, new=st.just("Rome") | text, true=st.none() | text)
def test_every_setting_of_every_method(
    method: str, data: st.DataObject, asked: tuple[str, str], new: str, true: str | None
) -> None:
    config = METHODS[method]
    names = [field.name for field in fields(config)]
    chosen: dict[str, Any] = {name: value for name, value in SMALL.items() if name in names}
    field = data.draw(st.sampled_from(fields(config)))
    name, value = field.name, data.draw(values_of(field))
    if name not in ("steps", "prefixes") or not isinstance(value, int) or value < 3:  # a search of 2³¹ steps is none
        chosen[name] = value
    if "prefixes" in names and chosen["prefixes"] is None:
        chosen["prefixes"] = ("",)  # the model would write some, which takes a while
    if "steps" in names and chosen["steps"] is None:
        chosen["steps"] = 2

    def solve() -> None:
        edit = rome_core.solve(LM, [EditRequest(Prompt(*asked), new, true)], config(**chosen), moments=MOMENTS)
        ends_well(rome_core.diagnose, LM, edit, MOMENTS)

    ends_well(solve)


@few(max_examples=30)
@given(
    st.lists(st.sampled_from((1, 1, -1, 4, 10**30)), max_size=2),
    st.sampled_from((60, 1, 0, -1)),
    st.just(0) | whole,
    st.none() | st.lists(text, max_size=3),
)
def test_second_moments(layers: list[int], n_tokens: int, seed: int, texts: list[str] | None) -> None:
    if texts is None and n_tokens > 1:  # 128 texts of the model's own take a second
        n_tokens = 1
    ends_well(rome_core.estimate_moment, LM, layers, n_tokens, seed=seed, texts=texts)


FACT = st.fixed_dictionaries(
    {"target_true": st.just("Paris") | text, "target_new": st.just("Rome") | text},
    optional={
        **dict.fromkeys(("id", "relation", "neighbour_true"), text),
        **{name: st.lists(text, max_size=2).map(tuple) for name in ("paraphrases", "neighbours", "generations")},
    },
)


@few(max_examples=30)
@given(prompts, FACT)
def test_evaluations(asked: tuple[str, str], values: dict[str, Any]) -> None:
    def evaluate() -> None:
        fact = Fact(**{"id": "1", "relation": "", **values, "prompt": Prompt(*asked)})
        measures = MeasureSettings(neighbours=2, generated=2, passages=0)
        found = rome_core.evaluate(LM, [fact], METHODS["r-rome"](**SMALL), measures=measures, moments=MOMENTS)
        assert not any("unforeseen" in row.error.casefold() for row in found.rows)

    ends_well(evaluate)


@few(max_examples=40)
@given(text)
def test_names_of_files_and_models(tmp_path: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for read in (rome_core.load_facts, rome_core.load_model, partial(rome_core.load_edit, lm=LM)):
            if name:  # no name at all is the current folder, or the default model
                ends_well(read, name)
        ends_well(rome_core.load_facts, "facts.json", encoding=name)
        if not name.startswith("/") and ".." not in name:
            ends_well(rome_core.save_edit, EDIT, name)
            ends_well(rome_core.export_adapter, EDIT, name, name)


# ------------------------------------------------------------------------------------------------------ files of facts

SEPARATORS = st.sampled_from([",", ";", "\t", "|"])
TABLES = st.builds(
    lambda rows, by: "\n".join(by.join(row) for row in rows),
    st.lists(st.lists(text, max_size=5), max_size=4),
    SEPARATORS,
)
RECORDS = st.one_of(tree.map(json.dumps), st.lists(tree, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows))))
DEEP = [f'[{{"prompt":"The {{}} is","subject":"A","target_new":{"[" * n}1{"]" * n}}}]' for n in (50, 500, 100_000)]
BYTES = st.one_of(
    RECORDS.map(str.encode),
    TABLES.map(lambda table: table.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.binary(max_size=30).map(lambda data: b"PAR1" + data),
    st.builds(
        lambda words, encoding: words.encode(encoding, "replace"),
        TABLES,
        st.sampled_from(("utf-16", "utf-32", "cp1252")),
    ),
    st.sampled_from(DEEP).map(str.encode),
    st.integers(4000, 6000).map(lambda digits: b'[{"prompt": ' + b"9" * digits + b"}]"),
)
FILES = st.sampled_from(("a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.txt", "a", "../a.json"))
ENCODINGS = st.sampled_from((None, "utf-8", "windows-1252", "utf-16", "hex", "punycode", "undefined", "none", "a\0b"))


@few(max_examples=150)
@given(BYTES, FILES, ENCODINGS)
def test_files_of_facts_of_texts_and_of_records(tmp_path: Path, data: bytes, name: str, encoding: str | None) -> None:
    ends_well(read_sets, [(name, data), ("b.json", data)], encoding)
    ends_well(read_requests, data, name, encoding)
    (tmp_path / "references.json").write_bytes(data)
    ends_well(load_references, tmp_path / "references.json")
    words = data.decode("utf-8", "replace")
    ends_well(split_texts, words, name)
    ends_well(read_records, words, name)


CELL = st.one_of(number, st.none(), text)
EFFECTS = st.builds(
    lambda size, cell: {site: [[cell] * size[1]] * size[0] for site in ("resid_post", "mlp_out", "attn_out")},
    st.sampled_from(((6, 4), (6, 4), (6, 0), (5, 4))),
    CELL,
)
AVERAGED = st.fixed_dictionaries(
    {
        "fact": st.just("1") | tree,
        "clean": CELL,
        "corrupted": CELL,
        "dropped": st.just("") | tree,
        "effects": EFFECTS | tree,
    }
)
ABOUT = tree | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("model", "fingerprint", "facts", "edits", "config", "order_seed"), tree)
)


@few(max_examples=60)
@given(ABOUT, st.lists(AVERAGED, max_size=3))
def test_records_of_averages(about: object, rows: list[object]) -> None:
    def take_up() -> None:
        source = read_records(json.dumps({"about": about, "rows": rows}), "a.json")
        averages_csv(average(source.rows), "p")
        write_records(source)

    ends_well(take_up)


# ------------------------------------------------------------------------------------------------- files with tensors

SHAPES = st.sampled_from(
    ((), (0,), (1,), (16,), (24,), (16, 1), (1, 24), (16, 0), (16, 2), (24, 16), (3, 24), (2, 2, 2))
)
KINDS_OF_NUMBERS = st.sampled_from((torch.float32, torch.float16, torch.int8, torch.bool, torch.float64, torch.int64))
MODULES = (
    *("lm_head", "model", "model.layers.1", "model.layers.1.input_layernorm", "model.layers.1.mlp.act_fn", ""),
    *("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.-1.mlp.down_proj"),
)
VALUES = st.one_of(tree, st.just(GONE), st.lists(st.sampled_from(MODULES), max_size=2), st.just([10**9, 10**9]))


def changed(data: Any, path: Sequence[Any], value: object) -> Any:
    """A copy of JSON with another value at a path."""
    if not path:
        return None if value is GONE else value
    copy = json.loads(json.dumps(data))
    place = copy
    for step in path[:-1]:
        place = place[step]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


def places(data: Any, depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in JSON; of a list to the first two."""
    yield ()
    inside = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, value in inside if depth else ():
        yield from ((key, *path) for path in places(value, depth - 1))


@dataclass(frozen=True)
class Parts:
    """A sound file in parts: its tensors, and what it says of itself under a name."""

    tensors: Mapping[str, torch.Tensor]
    name: str
    about: dict[str, Any]

    @classmethod
    def of(cls, path: Path, name: str) -> Parts:
        with safe_open(path, "pt") as file:
            return cls(load_file(path), name, json.loads(file.metadata()[name]))

    def write(self, path: Path, **changes: Any) -> bool:
        """Write it with another value at a path, and another tensor; False where no such file can be written."""
        tensors = {**self.tensors, **changes.get("tensors", {})}
        try:
            save_file(tensors, path, {self.name: json.dumps(changed(self.about, changes["at"], changes["value"]))})
        except Exception:  # half a letter in a name: no such file can reach anybody
            return False
        return True


def tensor_of(data: st.DataObject, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """None, or one tensor of another shape and kind."""
    if not data.draw(st.booleans()):
        return {}
    return {data.draw(st.sampled_from(names)): torch.ones(data.draw(SHAPES)).to(data.draw(KINDS_OF_NUMBERS))}


def use(edit: rome_core.Edit, folder: Path) -> None:
    """What the pages do with an edit that somebody brings."""
    measure_edit(LM, edit, (), silent)
    ends_well(rome_core.diagnose, LM, edit, MOMENTS)
    rome_core.save_edit(edit, folder / "again.safetensors")
    assert rome_core.load_edit(folder / "again.safetensors", LM).id == edit.id


@few(max_examples=120)
@given(data=st.data())
def test_edit_files(tmp_path: Path, data: st.DataObject) -> None:
    rome_core.save_edit(EDIT, tmp_path / "sound.safetensors")
    sound = Parts.of(tmp_path / "sound.safetensors", "edit")
    at, value = data.draw(st.sampled_from(list(places(sound.about)))), data.draw(VALUES)
    if sound.write(tmp_path / "bad", at=at, value=value, tensors=tensor_of(data, sorted(sound.tensors))):
        ends_well(rome_core.load_edit, tmp_path / "bad")
        ends_well(lambda: use(rome_core.load_edit(tmp_path / "bad", LM), tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@few(max_examples=40)
@given(data=st.data())
def test_hypernetworks(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    network, path = KINDS[kind], tmp_path / "bad.safetensors"
    trained = {"facts": 1, "steps": 1, "seed": 0}
    made = network(edited_matrices(LM), **network.sizes(LM))
    save_checkpoint(tmp_path / "sound", Checkpoint(made, LM.fingerprint, trained), edited_matrices(LM))
    sound = Parts.of(tmp_path / "sound", "about")
    at, value = data.draw(st.sampled_from([p for p in places(sound.about) if p])), data.draw(VALUES)
    if sound.write(path, at=at, value=value, tensors=tensor_of(data, sorted(sound.tensors))):
        ends_well(load_checkpoint, path, LM, network)
        ends_well(rome_core.solve, LM, [REQUEST], METHODS[kind](checkpoint=str(path)))


MOMENT = {"upper": np.ones(300), "layer": 1, "n_tokens": 5, "seed": 0, "corpus": "x", "fingerprint": LM.fingerprint}


@few(max_examples=40)
@given(st.sampled_from(sorted(MOMENT)), st.one_of(number, st.integers(-(2**60), 2**60), text, st.just([1, 2])))
def test_second_moments_from_files(tmp_path: Path, name: str, value: object) -> None:
    np.savez(tmp_path / "C.npz", **{**MOMENT, name: np.array(value)})
    ends_well(load_moment, tmp_path / "C.npz", LM)


@few(max_examples=60)
@given(data=st.data(), value=tree)
def test_adapters(tmp_path: Path, data: st.DataObject, value: object) -> None:
    rome_core.export_adapter(EDIT, tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    about, tensors = json.loads(config.read_text()), load_file(weights)
    more = ("modules_to_save", "use_dora", "layers_to_transform", "layers_pattern", "exclude_modules")
    config.write_text(json.dumps({**about, data.draw(st.sampled_from([*about, *more])): value}))
    save_file({**tensors, **tensor_of(data, [*tensors, "base_model.model.lm_head.weight", "x"])}, weights)
    ends_well(changes_of, LM, str(tmp_path))


@few(max_examples=40)
@given(st.binary(max_size=50), st.none() | st.integers(0, 2**64 - 1))
@example(b"{}" + b" " * 100, 102)
@example(b"[" * 40, 40)
def test_bytes_in_place_of_tensors(tmp_path: Path, data: bytes, size: int | None) -> None:
    data = data if size is None else size.to_bytes(8, "little") + data
    for name in ("a.safetensors", "C.npz", "adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes(data)
    ends_well(rome_core.load_edit, tmp_path / "a.safetensors", LM)
    ends_well(load_moment, tmp_path / "C.npz", LM)
    ends_well(changes_of, LM, str(tmp_path))
    for network in KINDS.values():
        ends_well(load_checkpoint, tmp_path / "a.safetensors", LM, network)


# -------------------------------------------------------------------------------------------------------- runs' folders


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a sound sequential run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rome_core.editing.second_moment.stored_moment", random_moment)
        pace = Pace(check_every=1, passages=1, new_tokens=2)
        folder = tmp_path_factory.mktemp("runs") / "sound"
        run = create_run(folder, LM, plan_sequence(LM, FACTS, METHODS["r-rome"](**SMALL), pace))
        assert len(list(edit_in_sequence(LM, run))) == 3
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".jsonl")}


@few(max_examples=80)
@given(data=st.data(), value=tree | st.just(GONE))
def test_folders_of_sequences(sequence: dict[str, str], tmp_path: Path, data: st.DataObject, value: object) -> None:
    name = data.draw(st.sampled_from(sorted(sequence)))
    lines = [json.loads(line) for line in sequence[name].splitlines()] if name.endswith("l") else []
    whole_file = lines[1] if lines else json.loads(sequence[name])
    bad = json.dumps(changed(whole_file, data.draw(st.sampled_from(list(places(whole_file)))), value))
    for other, content in sequence.items():
        (tmp_path / other).write_text(content)
    (tmp_path / name).write_text("\n".join([json.dumps(lines[0]), bad, ""]) if lines else bad)

    def show() -> None:
        run = open_run(tmp_path)
        records = run.records
        curves(records), records_csv(records), retention_matrix(records)
        load_merged(LM, run, len(records))

    ends_well(show)
    runs_in(tmp_path.parent)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], bytes]:
    """A sound run of two facts by one method: its folder, what it says of itself, and its part."""
    folder = tmp_path_factory.mktemp("runs") / "sound"
    plan = Plan(FACTS, {"r-rome": METHODS["r-rome"](**SMALL)}, MeasureSettings(neighbours=1, generated=0, passages=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rome_core.editing.second_moment.stored_moment", random_moment)
        assert len(list(carry_out(LM, plan, folder))) > 2
    (part, *_) = folder.glob("parts/*/*.parquet")
    return part, json.loads((folder / "run.json").read_text()), part.read_bytes()


@few(max_examples=60)
@given(data=st.data(), value=tree | st.just(GONE), junk=st.binary(max_size=30))
def test_folders_of_evaluations(
    evaluation: tuple[Path, dict[str, Any], bytes], data: st.DataObject, value: object, junk: bytes
) -> None:
    part, about, sound = evaluation
    folder = part.parents[2]
    in_part = data.draw(st.booleans())
    part.write_bytes(sound[: data.draw(st.integers(0, len(sound)))] + junk if in_part else sound)
    at = () if in_part else data.draw(st.sampled_from([path for path in places(about) if path]))
    (folder / "run.json").write_text(json.dumps(changed(about, at, value) if at else about))
    (folder / "sittings.jsonl").write_bytes(junk + b"\n" if in_part else b"")

    def show() -> None:
        store = Store(folder)
        score_lines(store.rows())
        export(store)

    ends_well(show)
    ends_well(lambda: Store(folder).sittings())


# ------------------------------------------------------------------------------------------------------------ commands

Command = Callable[[Sequence[str]], int]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_moments: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rome_core.cli.terminal.load_model", lambda name, **options: LM)
    return tmp_path


SETTING = st.tuples(st.sampled_from(("layer", "clamp", "ridge", "kl_at", "colour", "")), text).map("=".join)


@few(max_examples=30)
@given(data=BYTES, setting=SETTING, name=FILES, known=st.booleans(), measured=st.sampled_from(("0", "1", "-1", "x")))
def test_commands(
    commands: Path,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    setting: str,
    name: str,
    known: bool,
    measured: str,
) -> None:
    """From the arguments to the exit code: 2 for a wrong one, else a RomeError's sentence or a result."""
    (commands / Path(name).name).write_bytes(data)
    facts = ["--facts", Path(name).name, "--records", "1", "--passages", measured, *["--choose", "known"] * known]
    quick = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    lines: list[tuple[Command, list[str]]] = [
        (evaluate_command.main, ["--out", "a", *facts, "--methods", "ft", "--generated", "0", "--neighbours", "0"]),
        (sequence_command.main, ["--out", "b", *facts, "--method", "r-rome", *quick, "--set", setting]),
        (sequence_command.main, ["--out", "b", "--resume"]),
        (evaluate_command.main, ["--out", "a", "--show"]),
        (train_command.main, ["mend", "--out", "c.safetensors", "--steps", measured, "--clip", "nan"]),
    ]
    for main, line in lines:
        capsys.readouterr()
        code: object = 0
        try:
            ends_well(main, line)
        except SystemExit as leaving:
            code = leaving.code
        assert code == 0 or (code == 2 and ": error: " in capsys.readouterr().err)


def test_the_doors_are_all_there() -> None:
    """Whatever the package offers is either tried above, or a name for what is given to what is tried."""
    tried = {"Prompt", "generate", "continuation_probabilities", "trace", "trace_steps", "preview", "solve", "diagnose"}
    tried |= {"estimate_moment", "evaluate", "load_facts", "load_model", "load_edit", "save_edit", "export_adapter"}
    given_to = {"EditRequest", "TraceConfig", "Moment", "Fact", "LanguageModel", "Point", "Trace", "Edit", "Step"}
    given_to |= {"Delta", "METHODS", "DEFAULT_METHOD", "DEFAULT_MODEL"}
    errors = {name for name in rome_core.__all__ if name.endswith("Error")}
    assert set(rome_core.__all__) == tried | given_to | errors
