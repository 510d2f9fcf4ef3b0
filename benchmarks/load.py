"""Many visitors of one running app, as real clients of its protocol (websocket sessions, loopback only).

    python -m benchmarks.load --visitors 20 --minutes 5

Each visitor edits a fact of their own, reads the result, reloads, reads another page, begins a trace and leaves.
Counted are errors, results that are not the visitor's own (each is compared with the same visit made alone, after the
others have gone), the memory of the server, and how long things took. The server computes on one thread, so that equal
questions have equal answers to the digit.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.typing import Subprotocol

from benchmarks.common import parser_of
from rome_core import load_facts
from rome_core.facts.fact import Fact

ROOT = Path(__file__).parents[1]
PATIENCE = 900.0  # seconds for one thing to happen before it counts as an error
STEPS = 5  # of each edit's search: the queue, not the optimiser, is what is measured


@dataclass
class Tab:
    """One connection to the app: what it shows, by place, and the fragments that ask to be drawn again."""

    address: str
    cookie: str = ""
    shown: dict[tuple[int, ...], Any] = field(default_factory=dict)
    page: str = ""
    query: str = ""
    _again: dict[str, float] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    _drawn: set[tuple[int, ...]] = field(default_factory=set)
    _quiet: bool = False

    async def open(self, page: str, **query: str) -> None:
        headers = {"Cookie": f"rome-explorer={self.cookie}"} if self.cookie else {}
        self._socket = await websockets.connect(
            self.address,
            subprotocols=[Subprotocol("streamlit")],
            max_size=None,
            additional_headers=headers,
            open_timeout=60,
        )
        self.query = urlencode(query)
        await self._send(page_name=page)
        await self.settled()

    async def close(self) -> None:
        await self._socket.close()

    async def _send(self, *, trigger: str = "", fragment: str = "", page_name: str = "") -> None:
        message = BackMsg()
        message.rerun_script.query_string = self.query
        if page_name:
            message.rerun_script.page_name = page_name
        else:
            message.rerun_script.page_script_hash = self.page
        if trigger:
            state = message.rerun_script.widget_states.widgets.add()
            state.id, state.trigger_value = trigger, True
        if fragment:
            message.rerun_script.fragment_id, message.rerun_script.is_auto_rerun = fragment, True
        await self._socket.send(message.SerializeToString())

    async def press(self, key: str) -> None:
        """Press the button of a key, and wait until the page is drawn."""
        await self._send(trigger=next(e.button.id for e in self.elements("button") if e.button.id.endswith(f"-{key}")))
        await self.settled()

    def elements(self, kind: str) -> list[Any]:
        return [element for element in self.shown.values() if element.WhichOneof("type") == kind]

    @property
    def metrics(self) -> dict[str, str]:
        return {e.metric.label: f"{e.metric.body} {e.metric.delta}" for e in self.elements("metric")}

    @property
    def errors(self) -> list[str]:
        alerts = [e.alert.body for e in self.elements("alert") if e.alert.format == 1]
        return alerts + [e.exception.message for e in self.elements("exception")]

    @property
    def busy(self) -> bool:
        return bool(self.elements("progress"))

    async def settled(self) -> None:
        """Read until a script has ended that drew the whole page."""
        await self.until(lambda: self._ended)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Read, and draw fragments again when they ask for it, until something has happened."""
        self._ended = False
        deadline = time.monotonic() + PATIENCE
        while not (self._quiet and happened()):  # between two runs: within one the page is half drawn
            if time.monotonic() > deadline:
                raise TimeoutError("it did not happen")
            for fragment, due in list(self._due.items()):
                if time.monotonic() >= due:
                    self._due[fragment] = time.monotonic() + self._again[fragment]
                    await self._send(fragment=fragment)
            with suppress(asyncio.TimeoutError):
                self._take(await asyncio.wait_for(self._socket.recv(), 0.1))

    def _take(self, data: Any) -> None:
        message = ForwardMsg()
        message.ParseFromString(data)
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self.page = message.new_session.page_script_hash or self.page
            self._drawn.clear()
            self._quiet = False
        elif kind == "delta":
            place = tuple(message.metadata.delta_path)
            below = [other for other in self.shown if other[: len(place)] == place]
            for other in below:  # a place that is drawn anew has nothing of before within it
                del self.shown[other]
            self._drawn.add(place)
            if message.delta.WhichOneof("type") == "new_element":
                self.shown[place] = message.delta.new_element
                if found := re.search(r"rome-explorer=([0-9a-f]{32})", message.delta.new_element.html.body):
                    self.cookie = found[1]
        elif kind == "page_info_changed":
            self.query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            fragment = message.auto_rerun.fragment_id
            self._again[fragment] = max(message.auto_rerun.interval, 0.25)
            self._due.setdefault(fragment, time.monotonic() + self._again[fragment])
        elif kind == "stop_auto_rerun":
            for fragment in message.stop_auto_rerun.fragment_ids:
                self._again.pop(fragment, None)
                self._due.pop(fragment, None)
        elif kind == "script_finished":
            self._quiet = True
            if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                self.shown = {place: element for place, element in self.shown.items() if place in self._drawn}
                self._ended = True


@dataclass
class Ledger:
    """What happened: seconds by action, errors, and each visitor's results."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    results: dict[int, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))


async def visit(address: str, number: int, fact: Fact, ledger: Ledger) -> None:
    """One round of one visitor."""

    async def took(action: str, doing: Any) -> None:
        start = time.monotonic()
        await doing
        ledger.seconds[action].append(time.monotonic() - start)

    tab = Tab(address)
    query = {"template": fact.prompt.template, "subject": fact.prompt.subject, "target": fact.target_new}
    query |= {"true": fact.target_true, "edit-steps": str(STEPS)}
    await took("open Edit", tab.open("edit", **query))
    await tab.until(lambda: any("parameters" in e.markdown.body for e in tab.elements("markdown")))
    await tab.press("run")
    await took("an edit, with its wait", tab.until(lambda: "Verdict" in tab.metrics and not tab.busy))
    found = tab.metrics
    ledger.results[number].append(found)
    again = Tab(address, tab.cookie)
    await tab.close()
    await took("reload", again.open("edit", **query))
    if again.metrics != found:
        ledger.errors.append(f"visitor {number}: after a reload {again.metrics} stands where {found} was")
    other = Tab(address, tab.cookie)
    await took("read Fact sets", other.open("facts"))
    trace = Tab(address, tab.cookie)
    await took("open Locate", trace.open("tracing", template=fact.prompt.template, subject=fact.prompt.subject))
    await trace.press("run")
    for seen in (again, other, trace):
        ledger.errors += [f"visitor {number}: {error}" for error in seen.errors]
        await seen.close()


async def visits(address: str, number: int, fact: Fact, ledger: Ledger, until: float) -> None:
    await asyncio.sleep(random.Random(number).uniform(0, 5))
    while time.monotonic() < until:
        try:
            await visit(address, number, fact, ledger)
        except Exception as error:
            ledger.errors.append(f"visitor {number}: {type(error).__name__}: {error}")
            return


async def alone(address: str, facts: list[Fact], ledger: Ledger) -> int:
    """Every visit once more, by itself; how many results of the crowd differ from their own."""
    differing = 0
    for number, fact in enumerate(facts):
        solo = Ledger()
        await visit(address, number, fact, solo)
        (expected,) = solo.results[number]
        untimed = lambda metrics: {name: value for name, value in metrics.items() if "econd" not in name}  # noqa: E731
        differing += sum(untimed(result) != untimed(expected) for result in ledger.results[number])
        ledger.errors += solo.errors
    return differing


async def watch(server: psutil.Process, until: float) -> list[tuple[float, float]]:
    """Seconds since the start, and the server's MiB, every two seconds."""
    begin, memory = time.monotonic(), list[tuple[float, float]]()
    while time.monotonic() < until:
        memory.append((time.monotonic() - begin, server.memory_info().rss / 2**20))
        await asyncio.sleep(2)
    return memory


async def crowd(address: str, facts: list[Fact], server: psutil.Process, minutes: float, ledger: Ledger) -> Any:
    until = time.monotonic() + 60 * minutes
    visitors = [visits(address, number, fact, ledger, until) for number, fact in enumerate(facts)]
    memory, *_ = await asyncio.gather(watch(server, until), *visitors)
    return memory


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(port: int, **settings: str) -> subprocess.Popen[bytes]:
    """The app with these settings of its environment, on the loopback address, once it is there."""
    environment = {**os.environ, **settings}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1)
            return server
        time.sleep(0.1)
    raise TimeoutError("the app did not start")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    port = free_port()
    facts = random.Random(0).sample(list(load_facts()), options.visitors)
    server, ledger = start(port, ROME_EXPLORER_THREADS="1", OMP_NUM_THREADS="1"), Ledger()
    try:
        address, process = f"ws://127.0.0.1:{port}/_stcore/stream", psutil.Process(server.pid)
        memory = asyncio.run(crowd(address, facts, process, options.minutes, ledger))
        differing = asyncio.run(alone(address, facts, ledger))
    finally:
        server.terminate()
        server.wait(30)
    report(options.visitors, options.minutes, ledger, memory, differing)


def report(visitors: int, minutes: float, ledger: Ledger, memory: list[tuple[float, float]], differing: int) -> None:
    n = sum(map(len, ledger.results.values()))
    print(
        f"{visitors} visitors, {minutes:g} minutes: {n} edits, {len(ledger.errors)} errors, {differing} foreign results"
    )
    for error in ledger.errors[:10]:
        print(f"  {error}")
    print("| action | times | p50 s | p95 s |\n| --- | --- | --- | --- |")
    for action, seconds in ledger.seconds.items():
        high = statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
        print(f"| {action} | {len(seconds)} | {statistics.median(seconds):.2f} | {high:.2f} |")
    settled = [size for seconds, size in memory if seconds >= 60] or [size for _, size in memory]
    print(f"memory of the server after the first minute: {min(settled):.0f} to {max(settled):.0f} MiB")


if __name__ == "__main__":
    main()
