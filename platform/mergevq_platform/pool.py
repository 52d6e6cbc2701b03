"""Doing a list of jobs in this process, or on any number of Ray actors of one class; the answers come in the jobs' order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

Answers = Callable[[Sequence[Any]], Iterable[Any]]


def answers(
    worker: type, subject: Any, *, workers: int = 0, device: Literal["cpu", "cuda"] = "cpu"
) -> Answers:
    """A function that has `worker(subject).answer(job)` done for every job: here for 0 `workers`, else on Ray actors.

    A job may be done twice where an actor dies: it must be the same each time.
    """
    if not workers:
        made = worker(subject)
        return lambda jobs: (made.answer(job) for job in jobs)
    import ray
    from ray.util import ActorPool

    # No CPU is reserved: these jobs must not wait for those that a training or a sweep holds.
    place: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": int(device == "cuda"),
        "scheduling_strategy": "SPREAD",
    }
    remote: Any = ray.remote(worker)
    actors = [
        remote.options(**place, max_restarts=2, max_task_retries=2).remote(subject) for _ in range(workers)
    ]
    pool: Any = ActorPool(actors)

    def on_ray(jobs: Sequence[Any]) -> Iterator[Any]:
        return pool.map(lambda actor, job: actor.answer.remote(job), jobs)

    return on_ray
