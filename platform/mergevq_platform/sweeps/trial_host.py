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
from mergevq_platform.sweeps.yielding import YIELDED
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
        """Write, and drop the others: earlier ones, and later ones of a driver that was killed before Tune had noted them."""
        super().save(step, write)
        for other in checkpoints.listed(str(self.directory)):
            if Path(other).name != checkpoints.directory_name(step):
                shutil.rmtree(other, ignore_errors=True)


@dataclass
class TrialHost(RecordingHost):
    """The loop's host in a trial: checkpoints and objectives to Ray Tune as well."""

    measured: Callable[[Path, int], dict[str, float]] | None = None
    objectives: tuple[str, ...] = ()
    handed: Path | None = None  # the checkpoint that Tune gave
    checkpoint_every: int = 1
    asked: Callable[[], str | None] = lambda: None  # the urgent job to which this trial is to yield
    lease: str | None = None  # that it stops for

    def latest(self) -> Path | None:
        """Tune's checkpoint: this trial's last one, or in a population another's that was copied; none: the newest one here.

        Tune gives none where its driver was killed before it had noted any.
        """
        return self.handed or super().latest()

    def report_unnoted(self) -> None:
        """Report the checkpoint that Tune had not noted, as when it was saved: whether the trial goes on past it may be open."""
        if self.handed is None and (found := super().latest()) is not None:
            self._report(int(checkpoints.about(found)["step"]))

    @property
    def total_steps(self) -> int | None:
        """The steps of the whole training, known from the first save on."""
        return int(self.status["total_steps"]) if self.status else None

    def stop_requested(self) -> bool:
        """Whether an urgent job asks the trial to yield."""
        self.lease = self.lease or self.asked()
        return self.lease is not None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write, measure the objectives, and report both; Tune may end the trial here.

        A step at which it only yields is not reported here: an undisturbed trial reports none.
        """
        super().save(step, write)
        self._report(step)

    def _report(self, step: int) -> None:
        directory = self.checkpoint(step)
        if step % self.checkpoint_every and step != self.total_steps:
            return
        # Search algorithms look for every objective in every report, measured yet or not.
        values = self.measured(directory, step) if self.measured else self.unmeasured()
        tune.report({"step": step, **values}, checkpoint=tune.Checkpoint.from_directory(str(directory)))

    def give_way(self, step: int) -> None:
        """Hand the checkpoint of a step to Tune, which pauses the trial: its process ends here."""
        checkpoint = tune.Checkpoint.from_directory(str(self.checkpoint(step)))
        tune.report({"step": step, **self.unmeasured(), YIELDED: self.lease}, checkpoint=checkpoint)
        raise RuntimeError(f"Ray Tune did not pause a trial that had yielded after step {step}")

    def unmeasured(self) -> dict[str, float]:
        """The objectives before they are measured."""
        return dict.fromkeys(self.objectives, math.nan)

    def checkpoint(self, step: int) -> Path:
        """The directory of a step's checkpoint."""
        return self.directory / checkpoints.directory_name(step)
