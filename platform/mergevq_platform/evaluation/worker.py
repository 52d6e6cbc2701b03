"""The worker of every evaluation: this process or Ray actors; results come in the order of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch

from mergevq_platform.distributed import ordered_map
from mergevq_platform.distributed.ordered_map import Share

AnySpec = TypeVar("AnySpec", bound="Spec")
AnyWorker = TypeVar("AnyWorker")
Result = TypeVar("Result")
AnyResult = TypeVar("AnyResult", covariant=True)
Device = Literal["cpu", "cuda"]


class Spec(Protocol):
    """The specification of an evaluation; travels to workers."""

    @property
    def device(self) -> Device:
        """The device of models and features."""


class WorkerProcess(Protocol):
    """A process with the models and data of its kind of evaluation."""

    def worker(self, kind: type[AnyWorker]) -> AnyWorker:
        """Models and data, which are those of a `kind`."""


@runtime_checkable
class BatchesJob(Protocol[AnyResult]):
    """A job of whole batches: it knows the kind of worker that it needs, and so the type of its result."""

    def on_batches(self, process: WorkerProcess) -> AnyResult:
        """The result: see `results.merge`."""


@runtime_checkable
class RowsJob(Protocol[AnyResult]):
    """A job over rows of features that needs neither models nor images; any worker does it."""

    def on_rows(self, device: torch.device, number: int, shares: int) -> AnyResult:
        """The result of share `number` of `shares`."""


Job: TypeAlias = BatchesJob[Result] | RowsJob[Result] | Share[RowsJob[Result]]


class Answers(Protocol):
    """A function that has jobs done; their results come in the order of the jobs."""

    def __call__(self, jobs: Sequence[Job[Result]], /) -> Iterable[Result]:
        """The results."""


class EvaluationWorker(Generic[AnySpec]):
    """One process of an evaluation. The models and data of its kind are opened with the first job that needs them."""

    def __init__(self, of: tuple[Callable[[AnySpec], object], AnySpec]) -> None:
        self.kind, self.spec = of

    @cached_property
    def opened(self) -> object:
        """Models and data."""
        return self.kind(self.spec)

    def worker(self, kind: type[AnyWorker]) -> AnyWorker:
        """See `WorkerProcess.worker`."""
        assert isinstance(self.opened, kind)
        return self.opened

    def answer(self, job: Job[Result]) -> Result:
        """The result of one job."""
        device = torch.device(self.spec.device)
        with torch.no_grad():
            match job:
                case Share(of, number, shares):
                    return of.on_rows(device, number, shares)
                case RowsJob():
                    return job.on_rows(device, 0, 1)
                case BatchesJob():
                    return job.on_batches(self)


def answers(kind: Callable[[AnySpec], object], spec: AnySpec, workers: int = 0) -> Answers:
    """A function that has jobs done: in this process for 0 `workers`, else on so many Ray actors."""
    return ordered_map.answers(EvaluationWorker, (kind, spec), workers=workers, device=spec.device)
