"""Doing a list of jobs in this process, or on any number of Ray actors of one class; the answers come in the jobs' order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from mergevq.errors import InputError

Whole = TypeVar("Whole")


class WorkerInputError(NamedTuple):
    """The answer of a worker that met what its user can fix: as a value, because Ray prints an error's traceback."""

    error: InputError


class Share(NamedTuple, Generic[Whole]):
    """A job that is one of several shares of a whole, which travels to the workers once."""

    of: Whole
    number: int
    shares: int


def answers(
    worker: type, spec: Any, *, workers: int = 0, device: Literal["cpu", "cuda"] = "cpu"
) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """A function that has `worker(spec).answer(job)` done for every job: here for 0 `workers`, else on Ray actors.

    A job may be done twice where an actor dies: it must be the same each time. An `InputError` of a worker, in its making
    too, is raised here, where the answers are taken.
    """
    if not workers:
        made = worker(spec)
        return lambda jobs: (made.answer(job) for job in jobs)
    import ray
    from ray.util import ActorPool

    # No CPU is reserved: these jobs must not wait for those that a training or a sweep holds.
    place: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": int(device == "cuda"),
        "scheduling_strategy": "SPREAD",
    }

    class LazyWorker:
        """Makes the worker with its first job; takes the whole of a share out of the object store."""

        def __init__(self, spec: Any) -> None:
            self.spec = spec
            self.made: Any = None

        def answer(self, job: Any) -> Any:
            try:
                self.made = self.made or worker(self.spec)
                return self.made.answer(job)
            except InputError as error:
                return WorkerInputError(error)

        def answer_share(self, of: Any, number: int, shares: int) -> Any:
            return self.answer(Share(of, number, shares))

    remote: Any = ray.remote(LazyWorker)
    actors = [
        remote.options(**place, max_restarts=2, max_task_retries=2).remote(spec) for _ in range(workers)
    ]
    pool: Any = ActorPool(actors)

    def on_ray(jobs: Sequence[Any]) -> Iterator[Any]:
        stored: dict[int, Any] = {}

        def send(actor: Any, job: Any) -> Any:
            if not isinstance(job, Share):
                return actor.answer.remote(job)
            if id(job.of) not in stored:
                stored[id(job.of)] = ray.put(job.of)
            return actor.answer_share.remote(stored[id(job.of)], job.number, job.shares)

        for answer in pool.map(send, jobs):
            if isinstance(answer, WorkerInputError):
                raise answer.error
            yield answer

    return on_ray
