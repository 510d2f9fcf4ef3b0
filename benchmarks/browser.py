"""A trace watched in a browser beside the library's own, on the same cores: `python -m benchmarks.browser`.

The default example, three heat maps with the page's settings. In turn, for each round: the library alone in a process
of its own; the app with Chromium on the same machine, from the press of Trace until the page says that it is done. Both
once more with `--busy` a further program that keeps one core at work. Needs Chromium (`CHROME` chooses one) and the
packages of the extra `dev`. What is reported is the ratio of the two, measured in one run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.common import Row, parse, parser_of, table, write
from benchmarks.load import ROOT, free_port, start

LIBRARY = """
import json, time
from rome_core import Prompt, load_model
from rome_core.threads import use_free_cores
from rome_core.tracing.kinds import trace_kinds
from rome_core.tracing.runs import TraceRequest
lm = load_model()
use_free_cores()
request = TraceRequest(Prompt("The {} is located in the city of", "Colosseum"))
start = time.perf_counter()
peaks = None
for run in trace_kinds(lm, request):
    if peaks is None and run.preview and all(heat_map.exact.any() for heat_map in run.preview.values()):
        peaks = time.perf_counter() - start
print(json.dumps({"first peaks": peaks, "done": time.perf_counter() - start}))
"""
COLUMNS = {
    "busy": ("beside it", ""),
    "library": ("library s", ".1f"),
    "browser": ("browser s", ".1f"),
    "ratio": ("ratio", ".2f"),
    "named": ("both strongest cells named, browser s", ".1f"),
}


def by_the_library() -> float:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, "-c", LIBRARY], cwd=ROOT, env=environment, capture_output=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["done"])


def in_the_browser(page: Any, url: str) -> tuple[float, float]:
    """Seconds from the press until both strongest cells are named, and until all is done, in a fresh session."""
    page.goto(f"{url}/tracing")
    page.get_by_text("M parameters").first.wait_for()
    page.get_by_test_id("stApp").and_(page.locator("[data-test-script-state='notRunning']")).wait_for()
    start = time.perf_counter()
    page.locator(".st-key-run button:enabled").click()
    for label in ("Strongest MLP cell", "Strongest attention cell"):
        page.get_by_test_id("stMetric").filter(has_text=label).get_by_text("layer").wait_for()
    named = time.perf_counter() - start
    page.get_by_text("done in").first.wait_for()
    return named, time.perf_counter() - start


def spin() -> None:
    while True:
        pass


@contextmanager
def beside(n: int) -> Iterator[None]:
    """n programs that keep a core each at work."""
    programs = [multiprocessing.Process(target=spin, daemon=True) for _ in range(n)]
    for program in programs:
        program.start()
    try:
        yield
    finally:
        for program in programs:
            program.kill()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=1, help="further programs in the second half, 0 for none")
    options = parse(parser)
    from playwright.sync_api import sync_playwright

    chrome = os.environ.get("CHROME") or next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))))
    port, rows = free_port(), list[Row]()
    server = start(port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chrome, args=["--no-sandbox"])
            for busy in dict.fromkeys((0, options.busy)):
                library, named, watched = list[float](), list[float](), list[float]()
                for _ in range(options.rounds):
                    with beside(busy):
                        library.append(by_the_library())
                        context = browser.new_context(viewport={"width": 1440, "height": 1000})
                        context.set_default_timeout(600_000)
                        first, all_of_it = in_the_browser(context.new_page(), f"http://127.0.0.1:{port}")
                        context.close()
                    named.append(first)
                    watched.append(all_of_it)
                alone, seen = statistics.median(library), statistics.median(watched)
                name = f"{busy} busy program" if busy else "nothing"
                rows.append(
                    {
                        "busy": name,
                        "library": alone,
                        "browser": seen,
                        "ratio": seen / alone,
                        "named": statistics.median(named),
                    }
                )
    finally:
        server.terminate()
        server.wait(30)
    print(table(COLUMNS, rows))
    write(options.out, rows=rows)


if __name__ == "__main__":
    main()
