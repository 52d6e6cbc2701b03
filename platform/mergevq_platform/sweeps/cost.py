"""The cost of a sweep: device hours of all its trials, and what a trial costs beside its training and measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergevq_platform.evaluation.worker import Device
from mergevq_platform.sweeps.finished import Finished


@dataclass(frozen=True)
class SweepCost:
    """Seconds of all trials, those that were stopped or failed included."""

    trials: int
    seconds: float  # in the trials' own processes, as Tune counts them
    devices: float  # that each trial holds
    device: Device
    around_seconds: (
        float | None
    )  # a finished trial's mean beside training and measurement; None where it is not known

    @property
    def device_hours(self) -> float:
        """Hours of GPUs, or of workers on CPUs."""
        return self.seconds * self.devices / 3600

    def sentence(self) -> str:
        """Both in one line."""
        kind = "GPU hours" if self.device == "cuda" else "hours of workers on CPUs"
        said = f"{self.device_hours:.3g} {kind} in {self.trials} trials"
        if self.around_seconds is None:
            return said
        return f"{said}; beside its training and measurement a trial takes {self.around_seconds:.2f} s in its process"


def cost_of(
    seconds: Mapping[str, float],
    finished: Sequence[Finished],
    *,
    workers: int,
    gpus_per_trial: float,
    device: Device,
) -> SweepCost:
    """The cost by the seconds of each trial's process; `finished` hold the seconds of training and measurement.

    A trial whose record outlived its process was only read again: its process says nothing of it, the record does.
    """
    spent = dict(seconds)
    around = []
    for trial in finished:
        if spent.get(trial.name, 0.0) >= trial.seconds:
            around.append(spent[trial.name] - trial.seconds)
        else:
            spent[trial.name] = trial.seconds
    devices = workers if workers > 1 or device == "cpu" else gpus_per_trial
    mean = sum(around) / len(around) if around else None
    return SweepCost(len(spent), sum(spent.values()), devices, device, mean)
