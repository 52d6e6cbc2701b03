"""What parameters explain of a sweep's objectives: their shares of the variance, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mergevq_platform.sweeps import choosers
from mergevq_platform.sweeps.definition import Population, Sweep
from mergevq_platform.sweeps.finished import Finished, by_choice
from mergevq_platform.sweeps.importance import intervals, main_effects
from mergevq_platform.sweeps.objectives import Objective

MIN_TRIALS = 4
MIN_CHOICES = 8  # of an interval: a bootstrap over fewer says nothing


@dataclass(frozen=True)
class Explained:
    """The share of the variance that one parameter explains alone, and the 95 % interval of what it explains beyond chance."""

    share: float
    interval: tuple[float, float] | None  # None for too few trials

    @property
    def told_apart(self) -> bool:
        """Whether it is known to explain anything."""
        return self.interval is not None and self.interval[0] > 0

    def cells(self) -> list[str]:
        """Share, interval and verdict, for a table."""
        if self.interval is None:
            return [f"{self.share:.0%}", "", f"fewer than {MIN_CHOICES} choices: no interval"]
        low, high = self.interval
        verdict = "" if self.told_apart else "cannot be told apart from none"
        return [f"{self.share:.0%}", f"{low:.0%} to {high:.0%}", verdict]


HEADER = ["parameter", "share of the variance", "beyond chance (95 %)", ""]


def importance(definition: Sweep, finished: Sequence[Finished]) -> dict[str, dict[str, float]]:
    """The share of each objective's variance that each parameter explains; see `main_effects`.

    Only parameters that every trial chose count, and trials with a finite objective. Empty with fewer than four of them,
    or where a population changed its choices on the way.
    """
    found = {}
    for objective in definition.objectives:
        ranked = _ranked(definition, finished, objective)
        if ranked and (shares := main_effects(_parameters(definition, ranked), _values(ranked, objective))):
            found[objective.name] = shares
    return found


def explained(definition: Sweep, finished: Sequence[Finished]) -> dict[str, dict[str, Explained]]:
    """`importance` with an interval for each share, where there are enough choices for one."""
    found = {}
    shares = importance(definition, finished)
    for objective in definition.objectives:
        if objective.name not in shares:
            continue
        ranked = _ranked(definition, finished, objective)
        groups = by_choice(ranked)
        number = {trial.name: at for at, same in enumerate(groups) for trial in same}
        bounds = (
            intervals(
                _parameters(definition, ranked),
                _values(ranked, objective),
                [number[trial.name] for trial in ranked],
            )
            if len(groups) >= MIN_CHOICES
            else {}
        )
        found[objective.name] = {
            key: Explained(share, bounds.get(key)) for key, share in shares[objective.name].items()
        }
    return found


def _ranked(definition: Sweep, finished: Sequence[Finished], objective: Objective) -> list[Finished]:
    if isinstance(definition.search, Population):
        return []
    ranked = [trial for trial in finished if math.isfinite(trial.objectives[objective.name])]
    return ranked if len(ranked) >= MIN_TRIALS else []


def _parameters(definition: Sweep, ranked: Sequence[Finished]) -> dict[str, list[object]]:
    """The values of every parameter that all trials chose: logarithms where the space is logarithmic."""
    logarithmic = choosers.logarithmic(definition.space)
    return {
        key: [
            math.log(float(trial.params[key])) if key in logarithmic else trial.params[key]
            for trial in ranked
        ]
        for key in ranked[0].params
        if all(key in trial.params for trial in ranked)
    }


def _values(ranked: Sequence[Finished], objective: Objective) -> list[float]:
    return [trial.objectives[objective.name] for trial in ranked]
