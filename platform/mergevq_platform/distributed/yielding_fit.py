"""A training that yields: its worker group ends with a checkpoint when an urgent job asks, and another goes on after that job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from mergevq_platform.distributed.run_actor import RemoteRecorder
from mergevq_platform.distributed.yielding import POLL_SECONDS, Yielder, job_of


@dataclass
class YieldingFit:
    """fit(), and again after every urgent job that the run has yielded to.

    A yield is a stop at a step boundary, which costs no restart of `cluster.max_failures`.
    """

    yielder: Yielder
    recorder: RemoteRecorder
    last: int  # step
    interrupted: Callable[[], bool]  # whether someone asked the run to end
    lease: str | None = None  # for which the run stops, or has

    def watch(self) -> None:
        """Let the run stop at its next step where an urgent job asks; the driver calls it every now and then."""
        if self.lease is None and not self.interrupted() and (lease := self.yielder.asked_by):
            self.lease = lease
            self.recorder.actor.stop.remote()

    def __call__(self, fit: Callable[[], int | None]) -> int | None:
        """The steps done after the last fit: the run has ended, or someone asked it to. `fit` returns such a number."""
        while True:
            step = fit()
            if self.lease is None or step is None or step >= self.last or self.interrupted():
                return step
            self._pause(self.lease, step)
            if self.interrupted():
                return step

    def _pause(self, lease: str, step: int) -> None:
        actor: Any = self.recorder.actor
        self.recorder.yielded(step, job_of(lease))
        self.yielder.gave(lease)
        actor.warn.remote(
            f"yielded after step {step} to the urgent job {job_of(lease)}: goes on when that has ended"
        )
        while self.yielder.holds(lease) and not self.interrupted():
            time.sleep(POLL_SECONDS)
        if self.interrupted():
            return
        ray.get(actor.go_on.remote())
        if self.interrupted():  # meanwhile
            actor.stop.remote()
        self.recorder.running()
        actor.warn.remote(f"goes on after step {step}")
        self.lease = None
        self.yielder.back()
