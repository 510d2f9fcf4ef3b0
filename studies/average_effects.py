"""AIE and ATE of the default model over the project's own facts: `python -m studies.average_effects --facts 50`.

Writes docs/studies/average_effects.jsonl, one fact a line; a stopped study goes on where it was. `python -m
studies.figures` draws it for docs/tracing.md.
"""

from __future__ import annotations

from tqdm import tqdm

from rome_core import TraceConfig, load_facts, load_model
from rome_core.evaluation import choose_facts
from rome_core.tracing.average_records import as_record, read_records
from rome_core.tracing.averages import fact_effects
from studies.common import append, arguments


def main() -> None:
    parser = arguments(__doc__, "average_effects.jsonl", "--seed")
    parser.add_argument("--facts", type=int, default=50, help="how many facts that the model knows")
    args = parser.parse_args()
    lm = load_model()
    facts = choose_facts(load_facts(), None, args.seed)
    rows = read_records(args.out.read_text(encoding="utf-8"), args.out.name).rows if args.out.exists() else ()
    known = sum(not row.dropped for row in rows)
    bar = tqdm(total=args.facts, initial=known)
    steps = fact_effects(lm, facts, TraceConfig(), done={row.fact for row in rows})
    while known < args.facts and (row := next(steps, None)) is not None:
        append(args.out, as_record(row))
        known += not row.dropped
        bar.update(not row.dropped)


if __name__ == "__main__":
    main()
