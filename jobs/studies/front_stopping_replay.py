"""The replay of `front_stopping.py`: recorded sweeps, run again under a scheduler as if by workers side by side."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mergevq_platform.sweeps.front_rungs import FrontRungs
from mergevq_platform.sweeps.hypervolumes import hypervolume
from mergevq_platform.sweeps.stopping import FrontStopping

SPEED = 0.1  # deviation of the logarithm of a trial's seconds for a step
FIELDS = ("rfd_9", "rfd_36", "psnr_9", "psnr_36", "knn")

QUARTER = FrontStopping(every_steps=2)  # of the eight rungs of a record
Losses = tuple[float, ...]  # less is better
Decide = Callable[[int, int, Losses], bool]  # (trial, rung from 1, losses) -> whether it goes on


class ReplayedSweep(NamedTuple):
    """The losses (trials, rungs, objectives) of a sweep whose trials were all trained to their end."""

    name: str
    losses: np.ndarray

    @property
    def rungs(self) -> int:
        """Measurements of a trial, at equal distances; the last one at its end."""
        return int(self.losses.shape[1])


@dataclass(frozen=True)
class Replay:
    """What is left of a sweep under a scheduler, in one order of arrival."""

    volume_share: float  # of the full sweep's hypervolume
    steps_share: float  # of its optimizer steps


def _distance(rung: Mapping[str, float]) -> float:
    return (math.log(rung["rfd_9"]) + math.log(rung["rfd_36"])) / 2


OBJECTIVES: dict[str, Callable[[Mapping[str, float]], Losses]] = {
    "distance at 9 and at 36 tokens": lambda rung: (math.log(rung["rfd_9"]), math.log(rung["rfd_36"])),
    "distance and PSNR": lambda rung: (_distance(rung), -(rung["psnr_9"] + rung["psnr_36"]) / 2),
    "distance and nearest neighbours": lambda rung: (_distance(rung), -rung["knn"]),
}


def read_records(file: Path, objectives: str) -> list[ReplayedSweep]:
    """The sweeps of a file of records."""
    stored = json.loads(file.read_text())
    of = OBJECTIVES[objectives]
    return [
        ReplayedSweep(
            name,
            np.array(
                [[of(dict(zip(stored["fields"], rung, strict=True))) for rung in trial] for trial in trials]
            ),
        )
        for name, trials in stored["sweeps"].items()
    ]


def records(results: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> str:
    """Results of cells as one small file: sweep -> trial -> rung -> the values of `FIELDS`."""
    sweeps: dict[str, list[list[list[float]]]] = {}
    for result in sorted(results, key=lambda one: one["trial"]):
        rungs = [[rung[field] for field in FIELDS] for rung in result["rungs"]]
        sweeps.setdefault(result["sweep"], []).append(rungs)
    lines = [
        f"  {json.dumps(name)}: [\n   " + ",\n   ".join(json.dumps(trial) for trial in trials) + "\n  ]"
        for name, trials in sorted(sweeps.items())
    ]
    head = f'{{"protocol": {json.dumps(dict(protocol))},\n "fields": {json.dumps(FIELDS)},\n "sweeps": {{\n'
    return head + ",\n".join(lines) + "\n }\n}\n"


def replay(sweep: ReplayedSweep, decide: Decide, *, workers: int, order: int) -> Replay:
    """Run the trials in a random order by `workers` side by side; each asks `decide` at its rungs, the last one excepted."""
    random = np.random.default_rng(order)
    waiting = [int(trial) for trial in random.permutation(len(sweep.losses))]
    seconds = np.exp(SPEED * random.standard_normal(len(sweep.losses)))
    running: list[tuple[float, int, int]] = []  # (time of the next rung, trial, rung)
    finished, spent, now = [], 0, 0.0
    while waiting or running:
        while waiting and len(running) < workers:
            trial = waiting.pop(0)
            heapq.heappush(running, (now + float(seconds[trial]), trial, 1))
        now, trial, rung = heapq.heappop(running)
        spent += 1
        if rung == sweep.rungs:
            finished.append(trial)
        elif decide(trial, rung, tuple(sweep.losses[trial, rung - 1].tolist())):
            heapq.heappush(running, (now + float(seconds[trial]), trial, rung + 1))
    return Replay(volume(sweep, finished) / volume(sweep), spent / (len(sweep.losses) * sweep.rungs))


def volume(sweep: ReplayedSweep, trials: Sequence[int] | None = None) -> float:
    """The hypervolume of the last measurements of trials (none: of all), up to the worst value of each objective in the sweep."""
    ends = sweep.losses[:, -1]
    ends = np.where(np.isfinite(ends).all(axis=1, keepdims=True), ends, np.inf)
    reference = np.where(np.isfinite(ends), ends, -np.inf).max(axis=0)
    chosen = ends if trials is None else ends[list(trials)]
    return hypervolume([tuple(row) for row in chosen.tolist()], tuple(reference.tolist()))


def front_stopping(sweep: ReplayedSweep, settings: FrontStopping) -> Decide:
    """The platform's early stopping on the front."""
    rungs = FrontRungs(settings, sweep.rungs)

    def decide(trial: int, rung: int, losses: Losses) -> bool:
        named = {str(number): loss for number, loss in enumerate(losses)}
        decision = rungs.decide(str(trial), str(trial), rung, named)
        return decision is None or decision.reason is None

    return decide


def asha(sweep: ReplayedSweep, *, every: int, factor: int) -> Decide:
    """Ray Tune's ASHA on the first objective, with the settings of the platform."""
    from ray.tune.schedulers import ASHAScheduler

    scheduler: Any = ASHAScheduler(
        time_attr="step",
        metric="loss",
        mode="min",
        max_t=max(every, sweep.rungs - 1),
        grace_period=every,
        reduction_factor=factor,
        stop_last_trials=False,
    )
    known: dict[int, Any] = {}

    def decide(trial: int, rung: int, losses: Losses) -> bool:
        if trial not in known:
            known[trial] = type("Trial", (), {"trial_id": str(trial)})()
            scheduler.on_trial_add(None, known[trial])
        answer = scheduler.on_trial_result(None, known[trial], {"step": rung, "loss": losses[0]})
        return bool(answer == "CONTINUE")

    return decide


def optuna_pruner(sweep: ReplayedSweep, kind: str, order: int) -> Decide:
    """A pruner of Optuna, on the first objective: `median`, `successive halving` or `hyperband`, with its defaults."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = {
        "median": lambda: optuna.pruners.MedianPruner(),
        "successive halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=sweep.rungs),
    }[kind]()
    study = optuna.create_study(study_name=str(order), pruner=pruner, direction="minimize")
    known: dict[int, Any] = {}

    def decide(trial: int, rung: int, losses: Losses) -> bool:
        if trial not in known:
            known[trial] = study.ask()
        known[trial].report(losses[0], rung)
        pruned = known[trial].should_prune()
        if pruned or rung == sweep.rungs - 1:
            state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
            study.tell(known[trial], None if pruned else losses[0], state=state)
        return not pruned

    return decide


def chance(sweep: ReplayedSweep, settings: FrontStopping, order: int) -> Decide:
    """The rungs of `front_stopping`, where one in `factor` goes on whatever it has reached."""
    random, rungs = np.random.default_rng([order, 1]), settings.rungs(sweep.rungs)
    return lambda trial, rung, losses: rung not in rungs or bool(random.random() < 1 / settings.factor)


SCHEDULERS: dict[str, Callable[[ReplayedSweep, int], Decide]] = {
    "**front** (1/4, factor 2; the default)": lambda sweep, order: front_stopping(sweep, QUARTER),
    "front (1/8, factor 2)": lambda sweep, order: front_stopping(sweep, FrontStopping(every_steps=1)),
    "front (1/4, factor 3)": lambda sweep, order: front_stopping(
        sweep, FrontStopping(every_steps=2, factor=3)
    ),
    "front (3/8, factor 2)": lambda sweep, order: front_stopping(sweep, FrontStopping(every_steps=3)),
    "ASHA (1/4, factor 2)": lambda sweep, order: asha(sweep, every=2, factor=2),
    "ASHA (1/8, factor 2)": lambda sweep, order: asha(sweep, every=1, factor=2),
    "Optuna: median": lambda sweep, order: optuna_pruner(sweep, "median", order),
    "Optuna: successive halving": lambda sweep, order: optuna_pruner(sweep, "successive halving", order),
    "Optuna: hyperband": lambda sweep, order: optuna_pruner(sweep, "hyperband", order),
    "chance (1/4, factor 2)": lambda sweep, order: chance(sweep, QUARTER, order),
}
