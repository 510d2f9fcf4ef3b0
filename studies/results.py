"""docs/results.md from the folders of evaluation runs: `python -m studies.results runs/counterfact runs/zsre`.

Every number in it comes from the runs' rows, every setting from their run.json; nothing is written by hand. With --keep
the rows are kept in docs/studies/evaluation, too, where the page *Evaluate* finds them.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rome_core.evaluation.fact_measures import MeasureSettings
from rome_core.evaluation.runs.store import NEW_OBJECTS, OWN_SET, PROMPTS_LEFT_OUT, Row, Store
from rome_core.evaluation.runs.tables import (
    as_markdown,
    columns_for,
    common_rows,
    merge_unedited,
    present_columns,
    score_lines,
)
from studies.common import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
KEPT = RESULTS / "evaluation"


def command(about: dict[str, object]) -> str:
    """The command line that makes the run again; FILE stands for the user's own copy of the facts."""
    measures, labels = about["measures"], about["methods"]
    assert isinstance(measures, dict) and isinstance(labels, dict)
    methods = dict.fromkeys(label.partition("@")[0] for label in labels)
    layers = dict.fromkeys(label.partition("@")[2] for label in labels if "@" in label)
    plain = MeasureSettings()
    name, *which = str(about["facts"]).split(", ")
    own, test_only = name == OWN_SET, "test part" in which
    parts = [
        "rome-evaluate",
        *([] if own else [f"--facts {name}"]),
        *([f"--part {'test' if test_only else 'all'}"] if test_only != own else []),
        *(f"--new-objects {word.removeprefix(NEW_OBJECTS)}" for word in which if word.startswith(NEW_OBJECTS)),
        *(["--choose known"] if "known" in which else []),
        f"--records {about['records']} --order-seed {about['order_seed']}",
        f"--methods {','.join(methods)}",
        *([f"--layers {','.join(layers)}"] if layers else []),
        *([f"--prefixes {about['prefixes']}"] if about["prefixes"] else []),
        *([f"--group {about['group']}"] if about["group"] != 1 else []),
        *(f"--{name} {value}" for name, value in measures.items() if value != getattr(plain, name)),
        "--out FOLDER",
    ]
    return " ".join(parts)


def section(store: Store) -> Iterator[str]:
    about, rows = store.about, common_rows(store.rows())
    n = len({row.position for row in rows})
    known = {row.position for row in rows if row.known}
    missing = "" if n >= int(str(about["records"])) else f" of {about['records']} that were asked for"
    yield f"## {about['facts']}, {n} records\n"
    yield (
        f"Model {about['model']} ({about['dtype']}, fingerprint `{about['fingerprint'][:12]}`), {n} records"
        f"{missing} in the "
        f"order of seed {about['order_seed']}; the unedited model knows {len(known)} of them. Hash of the set "
        f"`{about['facts_hash']}`.\n"
    )
    yield f"```\n{command(about)}\n```\n"
    found = merge_unedited(score_lines(rows))
    names = present_columns(found, columns_for(rows))
    yield "All records:\n"
    yield as_markdown(found, names) + "\n"
    if 1 < len(known) < n:
        yield "The records that the unedited model knows:\n"
        some = merge_unedited(score_lines(rows, known_only=True))
        yield as_markdown(some, present_columns(some, names)) + "\n"
    used, sittings = about["versions"], store.sittings()
    spent = sum(sitting["seconds"] for sitting in sittings)
    timed, all_parts = sum(sitting["parts"] for sitting in sittings), -(-n // about["group"]) * len(about["methods"])
    part = f" for {timed} of {all_parts} parts (a sitting that was killed keeps no time)" if timed < all_parts else ""
    took = f"{spent / 3600:.1f} hours of work{part}, {sittings[-1]['workers']}; " if sittings else ""
    yield f"{took}torch {used['torch']}, transformers {used['transformers']}, Python {used['python']}.\n"


def keep(store: Store, folder: Path) -> None:
    """The run in one part a method, without prompts and subjects: the public files are not this project's to copy."""
    if store.about.get("prompts") == PROMPTS_LEFT_OUT:
        return  # it is a kept one
    shutil.rmtree(folder, ignore_errors=True)
    kept = Store(folder, {**store.about, "prompts": PROMPTS_LEFT_OUT})
    for method in store.about["methods"]:
        kept.write(method, 0, [anonymous(row) for row in store.rows() if row.method == method])
    for sitting in store.sittings():
        kept.note_sitting(sitting)


def anonymous(row: Row) -> Row:
    """A row whose prompts are only told apart, and known as questions or statements, which decides the columns."""
    answers = [
        {**answer, "text": f"{answer['kind']} {i}{'?' * answer['text'].rstrip().endswith('?')}"}
        for i, answer in enumerate(row.answers)
    ]
    return replace(row, subject=f"record {row.fact}", answers=answers, texts=[])


HEAD = """# Results of evaluation runs

Made by `python -m studies.results` from the folders that `rome-evaluate` writes; what the columns mean is in
[evaluation.md](evaluation.md). Each fact is edited by itself on the untouched model unless a section says otherwise.
"before" is the same facts on the untouched model. In brackets: 95 % bootstrap intervals over facts. Shares and
magnitudes are times 100, NKL is in nats.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs (default: those that are kept)")
    parser.add_argument("--out", type=Path, default=DOCS / "results.md")
    parser.add_argument("--keep", action="store_true", help="keep the rows beside the other studies")
    args = parser.parse_args()
    folders = args.runs or sorted(path.parent for path in KEPT.glob("*/run.json"))
    parts = [HEAD, *(part for folder in folders for part in section(Store(folder)))]
    args.out.write_text("\n".join(parts), encoding="utf-8")
    for folder in folders if args.keep else ():
        keep(Store(folder), KEPT / folder.name)
    print(f"{args.out}: {len(folders)} runs")


if __name__ == "__main__":
    main()
