"""Fairness of forking: whether trials that share a trunk rank as the same choices trained whole, and what sharing it cost.

Spearman's rank correlation of final objectives with the 95 % interval of Bonett and Wright (2000, "Sample size requirements for
estimating Pearson, Kendall and Spearman correlations"). Ties share the mean rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from mergevq.errors import InputError
from mergevq_platform.storage import forks
from mergevq_platform.sweeps import stored
from mergevq_platform.sweeps.definition import Sweep
from mergevq_platform.sweeps.finished import Finished, finished_trials
from mergevq_platform.sweeps.objectives import Objective
from mergevq_platform.sweeps.savings import shared_trunk, trained_steps, trunk_cpu_seconds

LEAST_TRIALS = 5  # of whose ranks an interval can be given
FAIR = 0.8  # the rank correlation that is asked for
_QUANTILE = 1.959964  # of the normal distribution, 95 %


@dataclass(frozen=True)
class RankAgreement:
    """The agreement of forked trials with whole trainings in one objective."""

    objective: str
    trials: int
    correlation: float  # Spearman's
    low: float  # of its 95 % interval
    high: float
    winner_rank: int  # of the forked trials' winner among the whole trainings; 1: it wins there too

    @property
    def verdict(self) -> str:
        """Whether forking is fair by this objective: fair, not fair, or undecided."""
        if self.high < FAIR:
            return "not fair"
        return "fair" if self.correlation >= FAIR and self.low > 0 else "undecided"


@dataclass(frozen=True)
class ForkFairness:
    """A forked sweep beside the same choices trained whole."""

    forked: str
    whole: str
    trunk: str
    keys: tuple[str, ...]
    agreements: tuple[RankAgreement, ...]
    steps_share: float  # trained steps, the trunk's once, of the whole trainings'
    cpu_share: float | None  # likewise of CPU seconds; None where they were not measured

    def markdown(self) -> str:
        """Table, cost and verdicts."""
        rows = [
            "| objective | trials | rank correlation (95 %) | the fork's winner, trained whole | forking is |",
            "|---|---:|---:|---:|---|",
            *(
                f"| {a.objective} | {a.trials} | {a.correlation:.2f} ({a.low:.2f} to {a.high:.2f}) | rank {a.winner_rank} of {a.trials} | "
                f"{a.verdict} |"
                for a in self.agreements
            ),
        ]
        cpu = (
            "CPU seconds were not measured"
            if self.cpu_share is None
            else f"{self.cpu_share:.0%} of the CPU seconds"
        )
        head = f"Forked from {self.trunk} (`{self.forked}`) beside whole trainings (`{self.whole}`), over {', '.join(self.keys)}: "
        cost = f"{self.steps_share:.0%} of the steps, {cpu} of training."
        return "\n".join([head + cost, "", *rows]) + "\n"


def spearman(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """(rank correlation, low and high end of its 95 % interval) of pairs; NaN where one side does not vary.

    Of a perfect order the interval is that of one exchange of neighbours: the formula has none at 1.
    """
    n = len(one)
    ranks = np.stack([rankdata(one), rankdata(other)])
    if np.ptp(ranks, axis=1).min() == 0:
        return math.nan, -1.0, 1.0
    correlation = float(np.corrcoef(ranks)[0, 1])
    nearest = 1 - 12 / (n * (n * n - 1))
    bounded = min(max(correlation, -nearest), nearest)
    error = math.sqrt((1 + bounded**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(bounded) + side * _QUANTILE * error) for side in (-1, 1))
    return correlation, min(low, correlation), max(high, correlation)


def agreement(
    objective: Objective, forked: Sequence[Finished], whole: Sequence[Finished]
) -> RankAgreement | None:
    """The agreement of trials given in the same order; None with fewer than five that have a finite objective on both sides."""
    pairs = [
        (objective.sign * one.objectives[objective.name], objective.sign * other.objectives[objective.name])
        for one, other in zip(forked, whole, strict=True)
        if objective.name in other.objectives
    ]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < LEAST_TRIALS:
        return None
    ours, theirs = zip(*pairs, strict=True)
    correlation, low, high = spearman(ours, theirs)
    worth = theirs[int(np.argmax(ours))]
    rank = 1 + sum(value > worth for value in theirs)
    return RankAgreement(objective.name, len(pairs), correlation, low, high, rank)


def between(names: Sequence[str], home: Path) -> list[ForkFairness]:
    """The fairness of every forked sweep among `names` that has a sweep of the same choices, trained whole, beside it.

    Raises `InputError` for two such sweeps that were not trained to the same step.
    """
    sweeps = {name: found for name in dict.fromkeys(names) if (found := _finished(name, home))}
    whole = {name: found for name, found in sweeps.items() if shared_trunk(found[1]) is None}
    results = []
    for name, (definition, trials) in sweeps.items():
        if shared_trunk(trials) is None:
            continue
        for other, (_, complete) in whole.items():
            judged = _judged(name, definition, trials, other, complete)
            if judged is not None:
                results.append(judged)
    return results


def _judged(
    name: str, definition: Sweep, forked: Sequence[Finished], other: str, complete: Sequence[Finished]
) -> ForkFairness | None:
    same = {_choice(trial): trial for trial in complete}
    pairs = [(trial, same[_choice(trial)]) for trial in forked if _choice(trial) in same]
    if len(pairs) < LEAST_TRIALS:
        return None
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    if {trial.steps for trial in ours} != {trial.steps for trial in theirs}:
        raise InputError(
            f"sweeps '{name}' and '{other}' were trained to different steps: their ranks tell nothing of the fork"
        )
    trunk = shared_trunk(ours)
    assert trunk is not None
    agreements = [agreement(objective, ours, theirs) for objective in definition.objectives]
    return ForkFairness(
        forked=name,
        whole=other,
        trunk=forks.name_of(trunk),
        keys=tuple(dict.fromkeys(key for trial in ours for key in trial.params)),
        agreements=tuple(found for found in agreements if found is not None),
        steps_share=trained_steps(ours) / trained_steps(theirs),
        cpu_share=_cpu_share(ours, theirs),
    )


def _cpu_share(forked: Sequence[Finished], whole: Sequence[Finished]) -> float | None:
    trunk = shared_trunk(forked)
    spent = [trial.cpu_seconds for trial in forked] + [trunk_cpu_seconds(trunk) if trunk else 0.0]
    before = [trial.cpu_seconds for trial in whole]
    if any(value is None for value in (*spent, *before)):
        return None
    return sum(value or 0.0 for value in spent) / sum(value or 0.0 for value in before)


def _choice(trial: Finished) -> tuple[tuple[str, object], ...]:
    return (*sorted(trial.params.items()), ("seed", trial.seed))


def _finished(name: str, home: Path) -> tuple[Sweep, list[Finished]] | None:
    """The definition and the finished trials of a sweep of this home; None for another name."""
    if not stored.is_sweep(name, home):
        return None
    trials = finished_trials(name, home)
    return (stored.stored_definition(name, home), trials) if trials else None
