"""Every method on the same facts, each by itself: `python -m studies.methods_table --facts 50 --minutes 45`.

Facts of the test part, which no hypernetwork was trained on. Methods that look for the same δ share one search;
C-ROME is left out, as its update is r-ROME's. Writes docs/studies/methods.jsonl, one fact and method a
line, fact by fact, so that a stopped study has the same facts for all methods; `--table` prints what there is, as it
stands in docs/methods_measured.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from rome_core import METHODS, Fact, LanguageModel, load_model
from rome_core.diagnosis.verdict import size_of
from rome_core.editing.methods import MethodConfig
from rome_core.editing.methods.rome import CRome
from rome_core.editing.presets import resolve
from rome_core.evaluation import ask, general_texts, pairs_of, perplexity, questions_about
from rome_core.evaluation.solving import Solved
from studies.common import (
    SCORES,
    Record,
    append,
    arguments,
    by_variant,
    draw_facts,
    markdown,
    parse,
    score_cells,
    solve_missing,
)

BEFORE = "no edit"


def configs(lm: LanguageModel, methods: Sequence[str]) -> list[MethodConfig]:
    """Defaults of every method, with the prefixes that it samples, which are the same for equal seeds."""
    return [resolve(lm, METHODS[name]()).with_prefixes(lm) for name in methods]


class Measure:
    """A fact's answers with an edit, how many times the unedited model's perplexity it has, and the edit's size."""

    def __init__(self, lm: LanguageModel, passages: Sequence[str]) -> None:
        self.lm, self.passages, self.without = lm, passages, perplexity(lm, passages)

    def __call__(self, fact: Fact, solved: Solved) -> Record:
        """By the table's names; the reason where there is no edit."""
        if solved.edit is None:
            return {"error": solved.error}
        edits = [solved.edit]
        ratio = perplexity(self.lm, self.passages, edits=edits) / self.without
        return {
            "case": pairs_of(ask(self.lm, questions_about(fact), edits=edits)),
            "perplexity_ratio": ratio if math.isfinite(ratio) else None,
            "relative_norm": size_of(self.lm, solved.edit).relative_F,
        }


def table(records: Sequence[Record]) -> list[str]:
    """Markdown, a row a method: scores with 95 % intervals over facts, medians of the rest."""
    rows = []
    for name, some in by_variant(records, "method").items():
        failed = sum(record["method"] == name for record in records) - len(some)
        ratios = [math.inf if r["perplexity_ratio"] is None else r["perplexity_ratio"] for r in some]
        norms, seconds = (
            f"{median(r[key] for r in some):.3g}" if name != BEFORE else "" for key in ("relative_norm", "seconds")
        )
        grown = f"{median(ratios):.3f} ({max(ratios):.3g})"
        rows.append([name, len(some), failed, *score_cells(some), grown, norms, seconds])
    return markdown(["method", "facts:", "failed:", *SCORES, "perplexity × (worst):", "‖Δ‖/‖W‖:", "seconds:"], rows)


def main() -> None:
    parser = arguments(
        *(__doc__, "methods.jsonl", "--seed", "--minutes", "--table"), facts=50, neighbours=5, passages=2
    )
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != CRome.name])
    args, records = parse(parser, table)
    lm, done = load_model(), {(record["fact"], record["method"]) for record in records}
    measure, searches = Measure(lm, general_texts()[: args.passages]), dict[str, float]()
    facts, groups = draw_facts("test", args.facts, args.seed, args.neighbours), [configs(lm, args.methods)]
    for fact, name, solved in solve_missing(lm, facts, groups, lambda config: config.name, done, args.minutes):
        if (fact.id, BEFORE) not in done:
            case = pairs_of(ask(lm, questions_about(fact)))
            append(args.out, {"fact": fact.id, "method": BEFORE, "case": case, "perplexity_ratio": 1.0})
            done.add((fact.id, BEFORE))
        record = {"fact": fact.id, "method": name, "first": fact.prompt.span[0] == 0, **measure(fact, solved)}
        if solved.edit is not None:
            searches[name] = solved.seconds
            record["seconds"] = solved.seconds + searches.get(solved.shared, 0.0)
        append(args.out, record)


if __name__ == "__main__":
    main()
