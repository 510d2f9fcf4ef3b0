"""The runner's tasks on many processes and machines, by Ray (optional extra `scale`): same code path, same numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rome_core.editing.second_moment import Moment
from rome_core.errors import RomeError
from rome_core.evaluation.runs.execution import Workers
from rome_core.evaluation.runs.work import Done, Engine, Plan, Task, give_up
from rome_core.model.language_model import LanguageModel

log = logging.getLogger(__name__)
TRIES = 3  # workers that one task may take down with it before it is recorded as failed
SETTLE = 2.0  # seconds until what an ended worker had is free again

Load = Callable[[], LanguageModel]


class Evaluator(Engine):
    """What one worker process is: the model, loaded once, for the tasks that it is given."""

    def __init__(self, load: Load, fingerprint: str, plan: Plan, moments: Mapping[int, Moment], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        super().__init__(load(), plan, moments)
        if self.lm.fingerprint != fingerprint:
            raise RomeError(f"A worker loaded another model than '{self.lm.name}' of the driver.")


def ray_workers(
    n: int,
    load: Load,
    *,
    threads: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
    say: Callable[[str], object] = log.warning,
) -> Workers:
    """Workers for `rome_core.evaluation.runs.execution.carry_out`: n processes that load the model once each.

    load: makes the model in a worker. threads, gpus: of each. address: of a running Ray cluster, "auto" for the one of
    this machine; None starts one for this run. A worker that dies is replaced, and its task is done again.

    A cluster with less room is used as it is, which `say` is told, and never waited for. Raises RomeError without Ray,
    without a cluster at the address and where it has room for no worker.
    """
    try:
        import ray
    except ImportError:
        raise RomeError(
            "Several workers need Ray, which is not installed.", "", "pip install 'rome-explorer[scale]'"
        ) from None

    def spread(lm: LanguageModel, plan: Plan, moments: Mapping[int, Moment], todo: Sequence[Task]) -> Done:
        mine = not ray.is_initialized()
        if mine:
            join(ray, n, address)
        try:
            cores = 1 if address is None else most_threads(ray.nodes(), threads)
            each = threads if address is None else cores
            if each < threads:
                say(f"No machine of the Ray cluster has {threads} CPUs: a worker takes {each}.")
            room = min(n, free_seats(ray, cores, gpus))
            if room < n:
                say(f"The Ray cluster has room for {room} of {n} workers: these do the work.")
            actor = ray.remote(num_cpus=cores, num_gpus=gpus)(Evaluator)
            shared = [ray.put(value) for value in (plan, dict(moments))]
            new = lambda: actor.remote(load, lm.fingerprint, *shared, each)  # noqa: E731
            yield from _spread(ray, new, room, lambda: seats(ray.nodes(), cores, gpus), plan, todo)
        finally:
            if mine:
                ray.shutdown()

    spread.__name__ = f"{n} Ray workers of {threads} threads"
    return spread


def join(ray: Any, n: int, address: str | None) -> None:
    """Connect to the cluster at an address, or start one with n CPUs. Raises RomeError where none answers."""
    own: dict[str, Any] = {"num_cpus": n, "include_dashboard": False, "configure_logging": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, **(own if address is None else {}))
    except (OSError, RuntimeError, ValueError) as error:
        raise RomeError(
            f"No Ray cluster can be used at '{address}'." if address else "Ray cannot be started here.",
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            "Start one with 'ray start --head' and give its address, or leave --address out.",
        ) from error


def seats(nodes: Iterable[Mapping[str, Any]], cores: int, gpus: float) -> int:
    """Workers of so many CPUs and GPUs that a cluster's live machines have room for, each on one machine."""
    return sum(_fit(node["Resources"], cores, gpus) for node in nodes if node["Alive"])


def most_threads(nodes: Iterable[Mapping[str, Any]], threads: int) -> int:
    """As many threads as one of the live machines has CPUs for; at least one."""
    return max(
        1, min(threads, max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0))
    )


def free_seats(ray: Any, cores: int, gpus: float) -> int:
    """Workers that find a place now. Raises RomeError if none does, and none gets free in a moment."""
    until = time.monotonic() + SETTLE
    while not (room := min(seats(ray.nodes(), cores, gpus), _fit(ray.available_resources(), cores, gpus))):
        if time.monotonic() > until or not seats(ray.nodes(), cores, gpus):
            there, free = ray.cluster_resources(), ray.available_resources()
            has = (f"{kind}s: {there.get(kind, 0):g}, free: {free.get(kind, 0):g}" for kind in ("CPU", "GPU"))
            raise RomeError(
                f"The Ray cluster has no room for a worker (CPUs: {cores}, GPUs: {gpus:g}).",
                f"It has {'; '.join(has)}.",
                "Ask for less with --threads and --gpus, free some of it, or leave --address out.",
            )
        time.sleep(SETTLE / 20)
    return room


def _fit(own: Mapping[str, float], cores: int, gpus: float) -> int:
    wanted = {"CPU": float(cores), "GPU": gpus}
    return min(int(own.get(kind, 0) / need + 1e-9) for kind, need in wanted.items() if need)


def _spread(
    ray: Any, new: Callable[[], Any], n: int, room: Callable[[], int], plan: Plan, todo: Sequence[Task]
) -> Done:
    """Every worker has one task at a time; which one ends first decides only the order of the results.

    room: for how many workers the cluster has machines. A dead worker is replaced only where there is room for another.
    """
    waiting, tries = list(reversed(todo)), dict[int, int]()
    running: dict[Any, tuple[Any, Task]] = {}
    idle = [new() for _ in range(min(n, len(todo)))]
    try:
        while waiting or running:
            while idle and waiting:
                worker, task = idle.pop(), waiting.pop()
                running[worker.work.remote(task)] = worker, task
            (ready,), _ = ray.wait(list(running), num_returns=1)
            worker, task = running.pop(ready)
            try:
                results = ray.get(ready)
            except ray.exceptions.RayActorError as error:
                if room() > len(running) + len(idle):
                    idle.append(new())
                elif not running and not idle:
                    raise RomeError(
                        "The Ray cluster has no machine left for a worker.",
                        "",
                        "Start one again and then the same command.",
                    ) from error
                tries[id(task)] = tries.get(id(task), 0) + 1
                if tries[id(task)] < TRIES:
                    waiting.append(task)
                    continue
                results = give_up(plan, task, f"{TRIES} workers died on it: {str(error).splitlines()[0]}")
            else:
                idle.append(worker)
            yield task, results
    finally:  # so that their place is free at once
        for worker in (*idle, *(worker for worker, _ in running.values())):
            ray.kill(worker)
