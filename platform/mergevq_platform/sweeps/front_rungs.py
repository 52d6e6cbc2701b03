"""The decisions of early stopping on the front: which trials go on past a rung, as they come to it one after the other.

Every decision is written down before anything acts on it, so that a sweep whose driver is killed decides as if it had not been:
Ray Tune's own schedulers forget their rungs then.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mergevq_platform.storage.json_text import json_line
from mergevq_platform.sweeps.front_order import place_of
from mergevq_platform.sweeps.stopping import FrontStopping

DECISIONS = "rungs.jsonl"  # in the sweep's own folder; earlier versions wrote one JSON list, `rungs.json`


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
    first: int = 0  # the steps that all trials share, their trunk's
    decisions: list[RungDecision] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.rungs = self.settings.rungs(self.steps, self.first)
        self._of_trial: dict[str, list[RungDecision]] = {}
        self._losses: dict[int, dict[str, list[tuple[float, ...]]]] = {}  # step -> choice -> its seeds'
        self._means: dict[int, dict[str, np.ndarray]] = {}  # step -> choice -> mean over its seeds
        for decision in read_decisions(self.file) if self.file is not None else []:
            self._remember(decision)

    def decide(self, trial: str, choice: str, step: int, losses: Mapping[str, float]) -> RungDecision | None:
        """The decision on a trial that has reached `step` with these losses, by objective; None between rungs.

        A trial that was stopped once stays so, and one that comes to a rung again is told what it was told before.
        """
        for known in self._of_trial.get(trial, []):
            if known.step == step or known.reason:
                return known
        if step not in self.rungs:
            return None
        values = tuple(float(value) for value in losses.values())
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        reason = f"{broken[0]} is no finite number" if broken else self._others_better(choice, step, values)
        decision = RungDecision(trial, choice, step, values, reason)
        if self.file is not None:
            _append(self.file, decision)
        self._remember(decision)
        return decision

    def _remember(self, decision: RungDecision) -> None:
        self.decisions.append(decision)
        self._of_trial.setdefault(decision.trial, []).append(decision)
        seeds = self._losses.setdefault(decision.step, {}).setdefault(decision.choice, [])
        seeds.append(decision.losses)
        self._means.setdefault(decision.step, {})[decision.choice] = _mean(seeds)

    def _others_better(self, choice: str, step: int, losses: tuple[float, ...]) -> str | None:
        seeds = self._losses.get(step, {}).get(choice, [])
        means = {**self._means.get(step, {}), choice: _mean([*seeds, losses])}
        if len(means) < self.settings.min_trials:
            return None
        rows = np.stack(list(means.values()))
        finite = np.isfinite(rows).all(axis=1)
        better = int(finite.sum())
        if np.isfinite(means[choice]).all():
            points, own = rows[finite], int(finite[: list(means).index(choice)].sum())
            if not _is_beaten(points, own):
                return None
            better = place_of(points, own) + int((points[:own] == points[own]).all(axis=1).sum())
        if better < max(1, int(len(means) / self.settings.factor)):
            return None
        return f"{better} of {len(means)} choices were as good or better at step {step}"


def _is_beaten(points: np.ndarray, own: int) -> bool:
    """Whether another point is no worse in any objective; of equals those that came later are beaten."""
    no_worse, better = (points <= points[own]).all(axis=1), (points < points[own]).any(axis=1)
    return bool((no_worse & (better | (np.arange(len(points)) < own))).any())


def read_decisions(file: Path) -> list[RungDecision]:
    """The decisions in `file`, after those of an earlier version beside it, in their order; a loss that was no finite number is NaN.

    A line without its end is none: its writer was killed before anything acted on it.
    """
    former = file.with_suffix(".json")
    rows = json.loads(former.read_text()) if former.is_file() else []
    lines = file.with_suffix(".jsonl")
    text = lines.read_text() if lines.is_file() else ""
    rows += [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    found = []
    for row in rows:
        losses = tuple(math.nan if value is None else float(value) for value in row["losses"])
        found.append(RungDecision(row["trial"], row["choice"], row["step"], losses, row["reason"]))
    return found


def _append(file: Path, decision: RungDecision) -> None:
    """Write one more decision down, behind the last that is whole; it is on the disk when this returns."""
    lines = file.with_suffix(".jsonl")  # a scheduler that an earlier version pickled names its own file
    lines.parent.mkdir(parents=True, exist_ok=True)
    with lines.open("a+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end and not _ends_whole(stream, end):
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(f"{json_line(asdict(decision))}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def _ends_whole(stream: BinaryIO, end: int) -> bool:
    stream.seek(end - 1)
    return stream.read(1) == b"\n"


def _mean(seeds: Sequence[tuple[float, ...]]) -> np.ndarray:
    """The mean over the seeds of a choice; not finite where one seed's is not: such a choice cannot win the sweep either."""
    return np.asarray(seeds).mean(axis=0)
