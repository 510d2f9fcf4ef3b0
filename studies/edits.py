"""Key policies and second moments compared on the project's facts: `python -m studies.edits --facts 100`.

Half of the facts begin with their subject, half do not. For each fact δ is optimised once, which no policy and no C
changes, and every variant is made from it, measured (ES, PS, NS, perplexity on two passages) and written as one JSON
line to docs/studies/edits.jsonl, with the new object's probability on namesakes. A stopped study goes on where it was;
`--table` prints the tables of docs/editing.md, with intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import torch
from tqdm import tqdm

from rome_core import (
    DEFAULT_METHOD,
    METHODS,
    Edit,
    Fact,
    LanguageModel,
    Moment,
    estimate_moment,
    load_facts,
    load_model,
    solve,
)
from rome_core.editing.methods.n_rome import NRome
from rome_core.editing.presets import resolve
from rome_core.editing.second_moment import moments_for
from rome_core.editing.shared_search import repolicy, reuse
from rome_core.evaluation import ask, choose_facts, general_texts, pairs_of, perplexity, questions_about, score_pairs
from rome_core.evaluation.layer_sweep import UPDATES
from rome_core.evaluation.scores import mean_score
from rome_core.facts.namesakes import make_namesakes
from rome_core.model.scoring import score
from rome_core.model.tokens import as_target
from studies.common import Record, append, arguments, cell, markdown, parse

NAMESAKES, NEIGHBOURS = 4, 5  # of a fact's ten: scoring takes longer than solving


Moments = dict[int, Moment]  # by layer


def second_moments(lm: LanguageModel, layers: list[int], texts: Path | None) -> dict[str, Moments]:
    """C from the model's own text, from the texts of a file, and C = I."""
    moments = {"self": moments_for(lm, layers, None)}
    if texts is not None:
        passages = [record["Text"] for record in json.loads(texts.read_text(encoding="utf-8"))]
        moments["texts"] = estimate_moment(lm, layers, 10**9, texts=passages)
    identity = torch.eye(lm.d_mlp, dtype=torch.float64)
    moments["identity"] = {layer: replace(moment, C=identity) for layer, moment in moments["self"].items()}
    return moments


def variants(lm: LanguageModel, edit: Edit, moments: dict[str, Moments]) -> Iterator[tuple[str, str, Edit]]:
    """Every policy with the model's own C, and the default one without namesakes and with other Cs."""
    for policy in UPDATES:
        yield policy, "self", repolicy(lm, edit, policy, moments["self"])
    plain = replace(edit.config.like(NRome), namesakes=0)
    yield f"{DEFAULT_METHOD} without namesakes", "self", reuse(lm, edit, plain, moments["self"])
    for name in [name for name in moments if name != "self"]:
        yield DEFAULT_METHOD, name, repolicy(lm, edit, DEFAULT_METHOD, moments[name])


def magnitudes(lm: LanguageModel, fact: Fact, edits: Sequence[Edit] = ()) -> dict[str, float]:
    """ES, EM, PS, PM, NS, NM of one fact."""
    return score_pairs(pairs_of(ask(lm, questions_about(fact), edits=edits)))


def on_namesakes(lm: LanguageModel, fact: Fact, edits: Sequence[Edit] = ()) -> float | None:
    """Mean p(new) on made-up subjects that end in the same words; None for a subject of one word."""
    texts = [prompt.text for prompt in make_namesakes(fact.prompt, NAMESAKES, "measure")]
    asked = [(text, as_target(fact.target_new, text)) for text in texts]
    return fmean(scored.p_mean for scored in score(lm, asked, edits=edits)) if asked else None


def chosen(n: int, seed: int) -> list[Fact]:
    """n facts, half of them beginning with their subject, in random order."""
    facts = choose_facts(load_facts(), None, seed)
    first = [fact for fact in facts if fact.prompt.span[0] == 0]
    later = [fact for fact in facts if fact.prompt.span[0] > 0]
    return [fact for pair in zip(first, later, strict=False) for fact in pair][:n]


# -------------------------------------------------------------------------------------------------------------- tables


def row(name: str, cases: Sequence[Record]) -> list[object]:
    """One variant on one pool: mean scores with intervals, median ‖Δ‖/‖W‖, and the worst growth of perplexity.

    namesakes: p(new) there, None for a fact without.
    """
    scores = [[record["case"][score] for record in cases if score in record["case"]] for score in ("ES", "PS", "NS")]
    scores.append([record["namesakes"] for record in cases if record["namesakes"] is not None])
    grown = [record["ratio"] for record in cases]
    size, broken = median(record["relative_norm"] for record in cases), sum(ratio > 2 for ratio in grown)
    cells = [cell(mean_score(values)) if values else "" for values in scores]
    return [name, len(cases), *cells, f"{size:.3f}", f"{max(grown):.2f}", broken]


def table(records: Sequence[Record]) -> list[str]:
    """Facts before any edit, then with every policy and C."""
    cases: dict[str, list[Record]] = {"before": []}
    for record in records:
        before = {"case": record["before"], "namesakes": record["namesakes_before"], "relative_norm": 0.0, "ratio": 1.0}
        cases["before"].append(before)
        for variant in record["variants"]:
            ratio = variant["perplexity"] / record["perplexity_before"]
            cases.setdefault(f"{variant['policy']}, {variant['C']}", []).append({**variant, "ratio": ratio})
    last = ("‖Δ‖/‖W‖, median:", "perplexity ×, worst:", "more than 2×:")
    columns = ["policy, C", "facts:", "ES", "PS", "NS", "p(new), namesakes", *last]
    return markdown(columns, [row(name, of_variant) for name, of_variant in cases.items()])


def tables(records: Sequence[Record]) -> Iterator[str]:
    """All facts, and those that begin with their subject and the others by themselves."""
    pools = {
        "all": records,
        "subject first": [record for record in records if record["first"]],
        "others": [record for record in records if not record["first"]],
    }
    for name, pool in pools.items():
        yield f"**{name}**, layers {', '.join(map(str, sorted({record['layer'] for record in pool})))}\n"
        yield "\n".join(table(pool)) + "\n"


def main() -> None:
    parser = arguments(__doc__, "edits.jsonl", "--seed", "--table", facts=100, layer=None)
    parser.add_argument("--texts", type=Path, default=None, help='JSON list of {"Text": ...} for a second C')
    args, records = parse(parser, tables)
    lm = load_model()
    base = METHODS[DEFAULT_METHOD](layer=args.layer)  # type: ignore[call-arg]
    facts = chosen(args.facts, args.seed)
    layers = sorted({layer for fact in facts for layer in resolve(lm, base, [fact.request]).layers})
    moments = second_moments(lm, layers, args.texts)
    passages = general_texts()[:2]
    done = {record["fact"] for record in records}
    todo = [fact for fact in facts if fact.id not in done]
    before = perplexity(lm, passages)
    prefixes = None
    for fact in tqdm(todo):
        fact = replace(fact, neighbours=fact.neighbours[:NEIGHBOURS])
        edit = solve(lm, [fact.request], replace(base, prefixes=prefixes), moments=moments["self"])  # type: ignore[call-arg]
        prefixes = edit.config.prefixes_used
        results = [
            {
                "policy": policy,
                "C": C,
                "case": magnitudes(lm, fact, [variant]),
                "namesakes": on_namesakes(lm, fact, [variant]),
                "relative_norm": variant.delta_norm / float(lm.weight(edit.config.layers[-1]).norm()),
                "perplexity": perplexity(lm, passages, edits=[variant]),
            }
            for policy, C, variant in variants(lm, edit, moments)
        ]
        append(
            args.out,
            {
                "fact": fact.id,
                "first": fact.prompt.span[0] == 0,
                "layer": edit.config.layers[-1],
                "before": magnitudes(lm, fact),
                "namesakes_before": on_namesakes(lm, fact),
                "perplexity_before": before,
                "loss": edit.history[-1].loss,
                "variants": results,
            },
        )


if __name__ == "__main__":
    main()
