"""Who answers jobs: this process, or Ray workers. Answers come in the order of the jobs, whoever gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mergevq_platform.evaluation.evaluator import Evaluator, Job, ProbeJob
from mergevq_platform.evaluation.subject import Subject


def local_answers(subject: Subject) -> Any:
    """A function that does jobs in this process."""
    evaluator = Evaluator(subject)
    return lambda jobs: (evaluator.answer(job) for job in jobs)


def ray_answers(subject: Subject, workers: int) -> Any:
    """A function that does jobs on `workers` Ray actors, and yields the answers in the order of the jobs."""
    import ray
    from ray.util import ActorPool

    remote: Any = ray.remote(Evaluator)
    gpus = 1 if subject.device == "cuda" else 0
    # No CPU is reserved: an evaluation must not wait for those that a training or a sweep holds.
    place = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    actors = [remote.options(**place).remote(subject) for _ in range(workers)]
    pool: Any = ActorPool(actors)

    def answers(jobs: Sequence[Job | ProbeJob]) -> Iterator[Any]:
        return pool.map(lambda actor, job: actor.answer.remote(job), jobs)

    return answers
