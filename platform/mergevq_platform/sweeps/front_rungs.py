"""The decisions of early stopping on the front: which trials go on past a rung, as they come to it one after the other.

Every decision is written down before anything acts on it, so that a sweep whose driver is killed decides as if it had not been:
Ray Tune's own schedulers forget their rungs then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mergevq.files import write_whole
from mergevq_platform.storage.json_text import json_text
from mergevq_platform.sweeps.front_order import places
from mergevq_platform.sweeps.stopping import FrontStopping

DECISIONS = "rungs.json"  # in the sweep's own folder


@dataclass(frozen=True)
class RungDecision:
    """A trial at a rung: what it had reached, and whether it went on."""

    trial: str
    choice: str  # equal for the seeds of one choice
    step: int
    losses: tuple[float, ...]  # less is better
    reason: str | None  # why it was stopped; None: it goes on


@dataclass
class FrontRungs:
    """The decisions of a sweep so far, in the order in which trials came; kept in a file where one is given."""

    settings: FrontStopping
    steps: int  # of a whole trial
    file: Path | None = None
    decisions: list[RungDecision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rungs = self.settings.rungs(self.steps)
        if self.file is not None and self.file.is_file():
            self.decisions = read_decisions(self.file)

    def decide(self, trial: str, choice: str, step: int, losses: Mapping[str, float]) -> RungDecision | None:
        """The decision on a trial that has reached `step` with these losses, by objective; None between rungs.

        A trial that was stopped once stays so, and one that comes to a rung again is told what it was told before.
        """
        for known in self.decisions:
            if known.trial == trial and (known.step == step or known.reason):
                return known
        if step not in self.rungs:
            return None
        values = tuple(float(value) for value in losses.values())
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        reason = f"{broken[0]} is no finite number" if broken else self._others_better(choice, step, values)
        decision = RungDecision(trial, choice, step, values, reason)
        self.decisions.append(decision)
        if self.file is not None:
            write_whole(self.file, json_text([asdict(made) for made in self.decisions]))
        return decision

    def _others_better(self, choice: str, step: int, losses: tuple[float, ...]) -> str | None:
        came = [(made.choice, made.losses) for made in self.decisions if made.step == step]
        means = _means([*came, (choice, losses)])
        if len(means) < self.settings.min_trials:
            return None
        finite = {name: mean for name, mean in means.items() if np.isfinite(mean).all()}
        better = len(finite)
        if choice in finite:
            points, own = np.stack(list(finite.values())), list(finite).index(choice)
            if not _is_beaten(points, own):
                return None
            place = places(points)
            better = int(place[own]) + int((place[:own] == place[own]).sum())
        if better < max(1, int(len(means) / self.settings.factor)):
            return None
        return f"{better} of {len(means)} choices were as good or better at step {step}"


def _is_beaten(points: np.ndarray, own: int) -> bool:
    """Whether another point is no worse in any objective; of equals those that came later are beaten."""
    no_worse, better = (points <= points[own]).all(axis=1), (points < points[own]).any(axis=1)
    return bool((no_worse & (better | (np.arange(len(points)) < own))).any())


def read_decisions(file: Path) -> list[RungDecision]:
    """The decisions that a file holds, in their order; a loss that was no finite number is NaN."""
    found = []
    for row in json.loads(file.read_text()):
        losses = tuple(math.nan if value is None else float(value) for value in row["losses"])
        found.append(RungDecision(row["trial"], row["choice"], row["step"], losses, row["reason"]))
    return found


def _means(came: Sequence[tuple[str, tuple[float, ...]]]) -> dict[str, np.ndarray]:
    """The mean over seeds of each choice; not finite where one seed's is not: such a choice cannot win the sweep either."""
    seeds: dict[str, list[tuple[float, ...]]] = {}
    for choice, losses in came:
        seeds.setdefault(choice, []).append(losses)
    return {choice: np.asarray(rows).mean(axis=0) for choice, rows in seeds.items()}
