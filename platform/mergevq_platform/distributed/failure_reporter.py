"""Ray Train's controller tells the user that workers failed. Its process imports this file, and nothing of the model."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback, WorkerGroupError

from mergevq_platform.distributed import failures


class FailureReporter(UserCallback):
    """Tells the user, from Ray Train's controller, that workers failed."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """One line of the failures of one group."""
        self.actor.failed.remote(failures.one_line(WorkerGroupError("", worker_exceptions)))
