"""The runner's tasks on many processes and machines, by Ray (optional extra `scale`): same code path, same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rome_core.editing.second_moment import Moment
from rome_core.errors import RomeError
from rome_core.evaluation.runs.execution import Workers
from rome_core.evaluation.runs.work import Done, Engine, Plan, Task, give_up
from rome_core.model.language_model import LanguageModel

TRIES = 3  # workers that one task may take down with it before it is recorded as failed

Load = Callable[[], LanguageModel]


class Evaluator(Engine):
    """What one worker process is: the model, loaded once, for the tasks that it is given."""

    def __init__(self, load: Load, fingerprint: str, plan: Plan, moments: Mapping[int, Moment], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        super().__init__(load(), plan, moments)
        if self.lm.fingerprint != fingerprint:
            raise RomeError(f"A worker loaded another model than '{self.lm.name}' of the driver.")


def ray_workers(n: int, load: Load, *, threads: int = 1, gpus: float = 0.0, address: str | None = None) -> Workers:
    """Workers for `rome_core.evaluation.runs.execution.run`: n processes that load the model once each.

    load: makes the model in a worker. threads, gpus: of each. address: of a running Ray cluster, "auto" for the one of
    this machine; None starts one for this run. A worker that dies is replaced, and its task is done again.
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
            own: dict[str, Any] = {"num_cpus": n, "include_dashboard": False, "configure_logging": False}
            ray.init(address=address, log_to_driver=False, **(own if address is None else {}))
        actor = ray.remote(num_cpus=1 if address is None else threads, num_gpus=gpus)(Evaluator)
        shared = [ray.put(value) for value in (plan, dict(moments))]
        try:
            yield from _spread(ray, lambda: actor.remote(load, lm.fingerprint, *shared, threads), n, plan, todo)
        finally:
            if mine:
                ray.shutdown()

    spread.__name__ = f"{n} Ray workers of {threads} threads"
    return spread


def _spread(ray: Any, new: Callable[[], Any], n: int, plan: Plan, todo: Sequence[Task]) -> Done:
    """Every worker has one task at a time; which one ends first decides only the order of the results."""
    waiting, tries = list(reversed(todo)), dict[int, int]()
    running: dict[Any, tuple[Any, Task]] = {}
    idle = [new() for _ in range(min(n, len(todo)))]
    while waiting or running:
        while idle and waiting:
            worker, task = idle.pop(), waiting.pop()
            running[worker.work.remote(task)] = worker, task
        (ready,), _ = ray.wait(list(running), num_returns=1)
        worker, task = running.pop(ready)
        try:
            results = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            idle.append(new())
            tries[id(task)] = tries.get(id(task), 0) + 1
            if tries[id(task)] < TRIES:
                waiting.append(task)
                continue
            results = give_up(plan, task, f"{TRIES} workers died on it: {str(error).splitlines()[0]}")
        else:
            idle.append(worker)
        yield task, results
