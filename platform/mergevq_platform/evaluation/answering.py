"""Who answers jobs: this process, or Ray workers. Answers come in the order of the jobs, whoever gives them."""

from __future__ import annotations

from mergevq_platform.distributed import ordered_map
from mergevq_platform.evaluation.evaluator import Evaluator
from mergevq_platform.evaluation.subject import Subject


def local_answers(subject: Subject) -> ordered_map.Answers:
    """A function that does jobs in this process."""
    return ordered_map.answers(Evaluator, subject)


def ray_answers(subject: Subject, workers: int) -> ordered_map.Answers:
    """A function that does jobs on `workers` Ray actors, and yields the answers in the order of the jobs."""
    return ordered_map.answers(Evaluator, subject, workers=workers, device=subject.device)
