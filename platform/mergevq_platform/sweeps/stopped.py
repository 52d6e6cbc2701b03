"""The trials of a sweep that were stopped early, and the steps that were saved by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergevq_platform.sweeps.definition import described
from mergevq_platform.sweeps.finished import Finished
from mergevq_platform.sweeps.space import Params


@dataclass(frozen=True)
class StoppedTrial:
    """A trial that the scheduler ended early."""

    name: str
    params: Params
    step: int  # after which
    steps: int  # that it would have had
    reason: str


def steps_saved(stopped: Sequence[StoppedTrial], finished: Sequence[Finished]) -> float:
    """The share of all optimizer steps of these trials that early stopping saved, in [0, 1]."""
    whole = sum(trial.steps for trial in stopped) + sum(trial.steps for trial in finished)
    return sum(trial.steps - trial.step for trial in stopped) / whole if whole else 0.0


def stopped_sentence(stopped: Sequence[StoppedTrial], finished: Sequence[Finished]) -> str:
    """How many trials were stopped early, and what that saved."""
    count, share = len(stopped) + len(finished), steps_saved(stopped, finished)
    return (
        f"{len(stopped)} of {count} trials were stopped early, which saved {share:.0%} of the optimizer steps"
    )


def stopped_rows(stopped: Sequence[StoppedTrial]) -> list[list[str]]:
    """Header and rows: a trial, the step at which it was stopped, the reason, its choice."""
    rows = [[t.name, f"{t.step} of {t.steps}", t.reason, described(t.params)] for t in stopped]
    return [["trial", "stopped after step", "reason", "choice"], *rows]
