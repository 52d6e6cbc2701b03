"""The worker of every evaluation: this process or Ray actors; results come in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import torch

from mergevq_platform.distributed import ordered_map
from mergevq_platform.distributed.ordered_map import Answers, Share

AnySpec = TypeVar("AnySpec", bound="Spec")
Device = Literal["cpu", "cuda"]


class Spec(Protocol):
    """The specification of an evaluation; travels to workers."""

    @property
    def device(self) -> Device:
        """The device of models and features."""


class BatchWorker(Protocol):
    """One process's models and data of a kind of evaluation: does the jobs of whole batches."""

    def answer(self, job: Any) -> Any:
        """The result of one job: see `results.merge`."""


class RowsJob(Protocol):
    """A job over rows of features that needs neither models nor images; any worker does it."""

    def on_rows(self, device: torch.device, number: int, shares: int) -> Any:
        """The result of share `number` of `shares`."""


class EvaluationWorker:
    """One process of an evaluation. The models and data of its kind are opened with the first job that needs them."""

    def __init__(self, of: tuple[Callable[[Any], BatchWorker], Spec]) -> None:
        self.kind, self.spec = of

    @cached_property
    def batch_worker(self) -> BatchWorker:
        """Models and data."""
        return self.kind(self.spec)

    def answer(self, job: Any) -> Any:
        """The result of one job."""
        device = torch.device(self.spec.device)
        with torch.no_grad():
            match job:
                case Share(of, number, shares):
                    return of.on_rows(device, number, shares)
                case _ if hasattr(job, "on_rows"):
                    return job.on_rows(device, 0, 1)
                case _:
                    return self.batch_worker.answer(job)


def answers(kind: Callable[[AnySpec], BatchWorker], spec: AnySpec, workers: int = 0) -> Answers:
    """A function that has jobs done: in this process for 0 `workers`, else on so many Ray actors."""
    return ordered_map.answers(EvaluationWorker, (kind, spec), workers=workers, device=spec.device)
