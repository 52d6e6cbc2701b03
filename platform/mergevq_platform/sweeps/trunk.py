"""The trunk of a forked sweep: the training that all trials share, and what sharing it saves.

Trials go on from a checkpoint of a run that is there (`RUN@STEP`), or from a training of the base recipe that the sweep does first.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import ray
import torch

from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform import loop
from mergevq_platform.distributed import trainer
from mergevq_platform.distributed.failures import one_line
from mergevq_platform.recipe import ForkConfig, ResolvedRecipe
from mergevq_platform.storage import checkpoints, forks
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps.closing import closed, recorded_status
from mergevq_platform.sweeps.definition import Sweep, Trunk
from mergevq_platform.sweeps.savings import TRUNK_COST
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.trial import recorded, stored_checkpoint
from mergevq_platform.sweeps.trial_host import RecordingHost
from mergevq_platform.sweeps.tuning import resources
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tracking.store import Store


def trained_before(
    sweep: Sweep, settings: SweepSettings, base: ResolvedRecipe, total_steps: int
) -> Sweep | None:
    """The sweep forked from its own trunk, which is trained, or trained further, first; None where someone stops it.

    `base` is the recipe without any choice. A sweep that forks another run, or none, is unchanged. Raises `InputError` for a trunk
    that fails.
    """
    if not isinstance(sweep.fork, Trunk):
        return sweep
    steps = sweep.fork.steps_of(total_steps)
    run = settings.run(f"{settings.name}-trunk")
    fork = ForkConfig(run=run.location, step=steps)
    if not forks.kept(fork):
        print(f"sweep {settings.name}: the trunk first, {steps} of {total_steps} steps")
        recipe = replace(base, name=run.name)
        if base.cluster.workers > 1:
            _in_group(recipe, run, steps, settings)
        else:
            _in_place(recipe, run, steps, settings, sweep)
        if not forks.kept(fork):
            return None
    elif (
        recorded_status(run.directory) != "FINISHED"
    ):  # the driver was killed before the trunk's process had ended
        closed(run.directory, Store.at(Path(settings.home), settings.tracking_uri), "FINISHED", {})
    return replace(sweep, fork=f"{run.location}@{steps}")


def _in_place(recipe: ResolvedRecipe, run: Run, steps: int, settings: SweepSettings, sweep: Sweep) -> None:
    share = resources(recipe, settings.device, sweep.gpus_per_trial).bundles[0]
    task = (
        ray.remote(train_trunk)
        .options(num_cpus=share.get("CPU", 1), num_gpus=share.get("GPU", 0), max_retries=sweep.max_failures)
        .remote(recipe, run, steps, settings)
    )
    try:
        ray.get(task)
    except KeyboardInterrupt:
        ray.cancel(task, force=True)
    except ray.exceptions.RayError as error:
        raise InputError(f"the trunk of sweep '{settings.name}' failed: {one_line(error)}") from None


def train_trunk(recipe: ResolvedRecipe, run: Run, steps: int, settings: SweepSettings) -> None:
    """Train the trunk in a process of Ray's, or go on with it from its own checkpoint."""
    run.directory.mkdir(parents=True, exist_ok=True)
    with recorded(run, recipe, settings, "training", _tags(settings)) as recorder:
        host = RecordingHost(run.directory, recorder=recorder)
        device = torch.device("cuda" if settings.device == "cuda" else "cpu")
        began = time.process_time()
        loop.train(recipe, Worker(device=device), host, until=steps)
        spent = time.process_time() - began
        stored_checkpoint(run, run.directory / checkpoints.directory_name(steps))
    write_whole(run.directory / TRUNK_COST, json.dumps({"steps": steps, "cpu_seconds": round(spent, 2)}))


def _in_group(recipe: ResolvedRecipe, run: Run, steps: int, settings: SweepSettings) -> None:
    begun = (run.directory / "recipe.yaml").is_file()
    trainer.train(
        None if begun else recipe,
        home=Path(settings.home),
        storage=settings.storage,
        name=run.name,
        resume=run.name if begun else None,
        tracking_uri=settings.tracking_uri,
        until=steps,
        parent=settings.uid,
        tags=_tags(settings),
    )


def _tags(settings: SweepSettings) -> dict[str, str]:
    return {"mergevq.sweep": settings.name}
