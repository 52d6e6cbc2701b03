"""Early stopping on the front as a scheduler of Ray Tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mergevq_platform.sweeps.front_rungs import FrontRungs
from mergevq_platform.sweeps.objectives import Objective
from mergevq_platform.sweeps.stopping import FrontStopping


class FrontScheduler(FIFOScheduler):
    """Asks `FrontRungs` at every report of a trial; `choice_of(config)` is equal for the seeds of one choice.

    Tune pickles its scheduler when a sweep begins and takes that one up again on resume: unpickling reads the decisions' file.
    """

    def __init__(
        self,
        settings: FrontStopping,
        steps: int,
        file: Path,
        objectives: Sequence[Objective],
        choice_of: Callable[[dict[str, Any]], str],
        first: int = 0,
    ) -> None:
        super().__init__()
        self._arguments = (settings, steps, file, objectives, choice_of, first)
        self._signs = {objective.name: objective.sign for objective in objectives}
        self._choice_of = choice_of
        self._rungs = FrontRungs(settings, steps, file, first)

    def __reduce__(self) -> tuple[type[FrontScheduler], tuple[object, ...]]:
        return type(self), self._arguments

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """STOP where the decision is so; a trial that has finished is past all rungs."""
        if result.get("finished"):
            return str(TrialScheduler.CONTINUE)
        losses = {name: -sign * float(result[name]) for name, sign in self._signs.items()}
        choice = self._choice_of(trial.config)
        decision = self._rungs.decide(str(trial), choice, int(result["step"]), losses)
        stopped = decision is not None and decision.reason is not None
        return str(TrialScheduler.STOP if stopped else TrialScheduler.CONTINUE)
