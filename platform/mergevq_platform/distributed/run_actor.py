"""The actor between driver and workers: the run's journal, heartbeats, progress, warnings and the stop flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from mergevq.errors import InputError
from mergevq_platform.distributed import failures
from mergevq_platform.distributed.heartbeat import HangMonitor, Heartbeat
from mergevq_platform.tracking.recorder import LocalRecorder, RunStart


class RunProgress(NamedTuple):
    """Progress, all warnings so far, a worker that hangs with a line about it, seconds without any heartbeat, whether there was one."""

    status: dict[str, float]
    warnings: list[str]
    hung: tuple[Heartbeat, str] | None
    quiet_seconds: float
    begun: bool


class RunActor:
    """The state of a run that workers and driver share; lives on the driver's node."""

    def __init__(self, start: RunStart, hang_timeout_seconds: float) -> None:
        self.recorder = start.open()
        self.unwritten: list[tuple[int, dict[str, float]]] = []
        self.monitor = HangMonitor(hang_timeout_seconds)
        self.status: dict[str, float] = {}
        self.warnings: list[str] = []
        self.refused = False  # the tracking store did not take records, which was said
        self.stopping = False
        self.failures = 0
        self.final: Exception | None = None

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the recorder."""
        return getattr(self.recorder, method)(*arguments)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Rank 0's metrics, kept here for as long as the journal's disk does not take them."""
        self.unwritten.append((step, values))
        self.settle()

    def settle(self) -> str | None:
        """Write the metrics that the journal lacks, in order; returns why that failed, if it did."""
        try:
            while self.unwritten:
                self.recorder.metrics(*self.unwritten[0])
                del self.unwritten[0]
        except (OSError, InputError) as error:
            return failures.one_line(error)
        return None

    def progress(self, status: dict[str, float]) -> None:
        """Rank 0's latest progress; a step stays known while something else is done."""
        self.status = {"step": self.status.get("step", 0.0)} | status

    def beat(self, beat: Heartbeat) -> None:
        """Keep a worker's heartbeat."""
        self.monitor.record(beat)

    def gone(self, rank: int) -> None:
        """Drop a worker that has left or was ended."""
        self.monitor.forget(rank)

    def give_up(self, error: Exception) -> None:
        """End the run for good: a worker met an error that no restart can fix."""
        self.final = self.final or error

    def standing(self) -> tuple[Exception | None, int]:
        """(the error that ended the run for good, if one did; the number of failures)."""
        return self.final, self.failures

    def warn(self, message: str) -> None:
        """A warning for the terminal, kept once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def failed(self, reason: str) -> None:
        """Count a failure of workers, after which Ray Train restarts the group if it may."""
        self.failures += 1
        self.warn(
            f"training failed after step {int(self.status.get('step', 0))}: {reason} (failure {self.failures})"
        )

    def latest(self) -> RunProgress:
        """All that the driver asks for."""
        if not self.refused and (reason := self.recorder.delivery_error):
            self.refused = True
            assert self.recorder.store is not None
            self.warn(
                f"not in MLflow yet: {self.recorder.store.public_uri}: {reason} (the run goes on, and its journal keeps everything)"
            )
        return RunProgress(
            self.status,
            self.warnings,
            self.monitor.hung(),
            self.monitor.quiet_seconds(),
            self.monitor.begun,
        )

    def stop(self) -> None:
        """Ask the run to stop at the next step boundary."""
        self.stopping = True

    def go_on(self) -> None:
        """Take the request to stop back."""
        self.stopping = False

    def stop_requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.stopping


@dataclass(frozen=True)
class RemoteRecorder:
    """The recorder that lives in a `RunActor`: the same methods, and each waits for its answer."""

    actor: Any

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_") or not callable(getattr(LocalRecorder, method, None)):
            raise AttributeError(f"a recorder has no method '{method}'")
        return lambda *arguments: ray.get(self.actor.call.remote(method, *arguments))
