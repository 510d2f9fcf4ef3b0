"""rome-doctor: what can be done with a model here, proven on a short text; and how much memory it needs.

rome-doctor
rome-doctor EleutherAI/pythia-70m
rome-doctor path/to/a/model --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rome_core.cli.terminal import loader, model_arguments, run_guarded
from rome_core.editing.plan import plan
from rome_core.editing.presets import preset
from rome_core.model.language_model import LanguageModel
from rome_core.model.layout import LAYOUTS
from rome_core.model.proof import CAPABILITIES, Check, prove
from rome_core.model.replay import replay_note


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="rome-doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("name", nargs="?", default=None, metavar="MODEL", help="as --model")
    model_arguments(made)
    made.add_argument("--json", action="store_true", help="print everything as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.model = args.name or args.model
    found = examine(loader(args)())
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(lines(found)))
    return 0


def examine(lm: LanguageModel) -> dict[str, Any]:
    """The proof, the parts that were found, and what the model needs, as plain data."""
    checks = prove(lm)
    kind = str(lm.hf.config.model_type)
    needs, values = plan(lm.hf.config, lm.dtype), preset(lm)
    return {
        "model": lm.name,
        "type": kind,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "parameters": lm.n_parameters,
        "layers": lm.n_layers,
        "d_model": lm.d_model,
        "d_mlp": lm.d_mlp,
        "layout": {"from": "the table" if lm.layout is LAYOUTS.get(kind) else "its structure", **asdict(lm.layout)},
        "logit scale": lm.logit_scale,
        "resumed": replay_note(lm) or "yes",
        "checks": [_as_data(check) for check in checks],
        "possible": {capability: lm.cannot.get(capability, "yes") for capability in CAPABILITIES},
        "preset": {"layer": values.layer, "clamp": values.clamp, "source": values.source},
        "bytes": {"weights": needs.weights, "C of one layer": needs.moment, "C and its factor": needs.edit},
        "tokens of C": needs.tokens,
    }


def _as_data(check: Check) -> dict[str, Any]:
    """Infinite errors are None: JSON knows no infinity."""
    error = check.error if check.error < float("inf") else None
    return {"name": check.name, "error": error, "passed": check.passed, "reason": check.reason}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same as a text of tables."""
    layout = found["layout"]
    yield f"{found['model']}: {found['type']}, {found['parameters']:,} parameters, {found['layers']} layers"
    yield f"d_model {found['d_model']:,}, d_mlp {found['d_mlp']:,}, {found['dtype']}; parts from {layout['from']}"
    yield ""
    for check in found["checks"]:
        size = "" if check["error"] is None else f"{check['error']:.0e}"
        yield f"{'ok' if check['passed'] else 'NO':3} {check['name']:48} {size:>6}  {check['reason']}".rstrip()
    resumed = found["resumed"] == "yes"
    yield f"{'ok' if resumed else '--':3} runs can be resumed" + ("" if resumed else f": {found['resumed']}")
    yield ""
    for capability, reason in found["possible"].items():
        yield f"{capability:28} {reason}"
    yield ""
    yield f"Preset: layer {found['preset']['layer']}, clamp {found['preset']['clamp']:g} ({found['preset']['source']})."
    sizes = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in found["bytes"].items())
    yield f"Memory: {sizes}; C from {found['tokens of C']:,} tokens."


def kept(argv: Sequence[str] | None) -> str:
    return "Nothing was changed."


def command(argv: Sequence[str] | None = None) -> int:
    return run_guarded(main, kept, argv)


if __name__ == "__main__":
    raise SystemExit(command())
