"""Who answers jobs: this process, or Ray workers. Answers come in the order of the jobs, whoever gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

from mergevq_platform.evaluation.evaluator import Evaluator
from mergevq_platform.evaluation.subject import Subject

Answers = Callable[[Sequence[Any]], Iterable[Any]]


class Task(Protocol):
    """What an evaluator is made from; travels to workers."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where it works."""


def answers_of(evaluator: type[Any], task: Task, workers: int) -> Answers:
    """A function that does jobs with evaluators made from `task`: one in this process, or on many Ray workers."""
    if workers > 1:
        return _on_ray(evaluator, task, workers)
    alone = evaluator(task)
    return lambda jobs: (alone.answer(job) for job in jobs)


def local_answers(subject: Subject) -> Answers:
    """A function that does jobs on a tokenizer in this process."""
    return answers_of(Evaluator, subject, 1)


def ray_answers(subject: Subject, workers: int) -> Answers:
    """A function that does jobs on `workers` Ray actors, and yields the answers in the order of the jobs."""
    return _on_ray(Evaluator, subject, workers)


def _on_ray(evaluator: type[Any], task: Task, workers: int) -> Answers:
    import ray
    from ray.util import ActorPool

    remote: Any = ray.remote(evaluator)
    gpus = 1 if task.device == "cuda" else 0
    # No CPU is reserved: an evaluation must not wait for those that a training or a sweep holds.
    place = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    actors = [remote.options(**place).remote(task) for _ in range(workers)]
    pool: Any = ActorPool(actors)

    def answers(jobs: Sequence[Any]) -> Iterator[Any]:
        return pool.map(lambda actor, job: actor.answer.remote(job), jobs)

    return answers
