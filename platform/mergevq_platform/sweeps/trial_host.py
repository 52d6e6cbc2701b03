"""The loop's hosts in a trial of one worker, and in a trunk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray import tune

from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.storage import checkpoints
from mergevq_platform.tracking.recorder import LocalRecorder


@dataclass
class RecordingHost(LocalHost):
    """The loop's host of a run in one process: metrics to the run's journal, the newest checkpoint kept."""

    recorder: LocalRecorder | None = None

    def record(self, step: int, values: dict[str, float]) -> None:
        """Into the journal."""
        assert self.recorder is not None
        self.recorder.metrics(step, values)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write, and drop what was there before."""
        super().save(step, write)
        for older in checkpoints.listed(str(self.directory))[1:]:
            shutil.rmtree(older, ignore_errors=True)


@dataclass
class TrialHost(RecordingHost):
    """The loop's host in a trial: checkpoints and objectives to Ray Tune as well."""

    measured: Callable[[Path, int], dict[str, float]] | None = None
    objectives: tuple[str, ...] = ()
    handed: Path | None = None  # the checkpoint that Tune gave

    def latest(self) -> Path | None:
        """Tune's checkpoint: this trial's last one, or in a population another's that was copied."""
        return self.handed

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write, measure the objectives, and report both; Tune may end the trial here."""
        super().save(step, write)
        directory = self.directory / checkpoints.directory_name(step)
        # Search algorithms look for every objective in every report, measured yet or not.
        values = self.measured(directory, step) if self.measured else dict.fromkeys(self.objectives, math.nan)
        tune.report({"step": step, **values}, checkpoint=tune.Checkpoint.from_directory(str(directory)))
