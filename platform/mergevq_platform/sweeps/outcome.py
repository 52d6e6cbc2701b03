"""The outcome of a sweep: finished trials, those that failed or were stopped early, and whether any is left to run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray import tune

from mergevq_platform.distributed.failures import one_line
from mergevq_platform.sweeps.closing import closed
from mergevq_platform.sweeps.cost import SweepCost, cost_of
from mergevq_platform.sweeps.definition import Sweep
from mergevq_platform.sweeps.finished import RECORD, STOPPED, Finished
from mergevq_platform.sweeps.front_rungs import DECISIONS, RungDecision, read_decisions
from mergevq_platform.sweeps.stopped import StoppedTrial
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.trial import chosen
from mergevq_platform.tracking.store import Store


@dataclass(frozen=True)
class SweepOutcome:
    """The outcome of a sweep."""

    definition: Sweep
    settings: SweepSettings
    experiment: str
    finished: list[Finished]
    failed: dict[str, str]  # trial -> reason
    stopped_early: dict[str, StoppedTrial]  # by name
    complete: bool  # no trial is left to run
    files: dict[str, Path]
    cost: SweepCost | None = None
    undelivered: str | None = (
        None  # what the tracking store lacks and how to deliver it, if it lacks something
    )


def gathered(definition: Sweep, settings: SweepSettings, results: Sequence[tune.Result]) -> SweepOutcome:
    """The end of every trial; where its own process could not say so, it is written into its journal."""
    finished: list[Finished] = []
    failed: dict[str, str] = {}
    stopped: dict[str, StoppedTrial] = {}
    decided = _stopped_on_the_front(settings)
    spent: dict[str, float] = {}  # trial -> seconds of its process
    waiting = max(0, definition.num_trials - len(results))
    base = definition.base()
    store = Store.at(Path(settings.home), settings.tracking_uri)
    for result in results:
        if result.config is None and result.error is None:  # it has reported nothing yet
            waiting += 1
            continue
        params, seed, name = (
            chosen(result.config, definition, settings)
            if result.config
            else ({}, None, Path(result.path).name)
        )
        directory = settings.run(name).directory
        spent[name] = float((result.metrics or {}).get("time_total_s", 0.0))
        record = Finished.load(directory / RECORD)
        if record is not None:
            finished.append(record)
        elif result.error is not None:
            failed[name] = one_line(result.error)
            closed(directory, store, "FAILED", {"mergevq.failure": failed[name][:500]})
        elif (directory / STOPPED).is_file():
            step, reason = json.loads((directory / STOPPED).read_text())["step"], "others were better"
            if name in decided:
                step, reason = decided[name].step, decided[name].reason or reason
            steps = definition.recipe_of(params, seed=seed, base=base).steps or step
            stopped[name] = StoppedTrial(name, params, step, steps, reason)
            closed(directory, store, "KILLED", {"mergevq.stopped": f"early, after step {step}: {reason}"})
        else:
            waiting += 1
    finished.sort(key=lambda record: record.name)
    recipe = definition.first_recipe()
    stopped = dict(sorted(stopped.items()))
    cost = cost_of(
        spent,
        finished,
        workers=recipe.cluster.workers,
        gpus_per_trial=definition.gpus_per_trial,
        device=settings.device,
    )
    return SweepOutcome(
        definition, settings, recipe.experiment, finished, failed, stopped, waiting == 0, {}, cost
    )


def _stopped_on_the_front(settings: SweepSettings) -> dict[str, RungDecision]:
    """The decisions that stopped trials, where the sweep stops on the front; by trial."""
    file = settings.run(settings.name).directory / DECISIONS
    return {decision.trial: decision for decision in read_decisions(file) if decision.reason}
