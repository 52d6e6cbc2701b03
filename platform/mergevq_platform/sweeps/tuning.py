"""Ray Tune over a sweep's trials: resources, search, early stopping, stored state."""

from __future__ import annotations

import functools
import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from mergevq_platform.recipe import Recipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.sweeps import choosers
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.definition import Population, Sweep, Tpe
from mergevq_platform.sweeps.front_rungs import DECISIONS
from mergevq_platform.sweeps.front_scheduler import FrontScheduler
from mergevq_platform.sweeps.stopping import FrontStopping
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.terminal import Watch
from mergevq_platform.sweeps.trial import chosen, run_trial
from mergevq_platform.sweeps.yielding import YieldingScheduler, watching

if TYPE_CHECKING:
    from optuna.samplers import TPESampler
    from optuna.trial import BaseTrial

TUNE_FOLDER = "tune"


def run_trials(
    definition: Sweep, settings: SweepSettings, base: Recipe, concurrent: int | None
) -> list[tune.Result]:
    """Run all trials, or those that are left of a sweep that had begun; `concurrent` bounds those at once."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "2")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    location = checkpoints.inside(settings.run(settings.name).location, TUNE_FOLDER)
    filesystem, path = checkpoints.open_storage(location)
    trainable = tune.with_resources(
        functools.partial(run_trial, sweep=definition, place=settings),
        resources(base, settings.device, definition.gpus_per_trial),
    )
    if filesystem.get_file_info(f"{path}/tuner.pkl").type == pyarrow.fs.FileType.File:
        tuner = tune.Tuner.restore(
            path,
            trainable=trainable,
            storage_filesystem=filesystem,
            resume_unfinished=True,
            resume_errored=True,
            param_space=param_space(definition),
        )
    else:
        parent, _, folder = path.rpartition("/")
        label = functools.partial(_label, definition, settings)
        tuner = tune.Tuner(
            trainable,
            param_space=param_space(definition),
            tune_config=tune.TuneConfig(
                search_alg=_search_algorithm(definition),
                scheduler=_yielding(_scheduler(definition, settings, base), settings),
                num_samples=definition.num_trials if isinstance(definition.search, Tpe) else 1,
                max_concurrent_trials=trials_at_once(base, settings.device, concurrent),
                reuse_actors=True,  # a trial then starts in a process that has imported torch already
                trial_name_creator=label,
                trial_dirname_creator=label,
            ),
            run_config=tune.RunConfig(
                name=folder,
                storage_path=parent,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=definition.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=3),
                callbacks=[Watch(settings), JsonLoggerCallback()],
                verbose=0,
            ),
        )
    with watching(settings.name):
        grid = tuner.fit()
    return [grid[at] for at in range(len(grid))]


def _yielding(scheduler: TrialScheduler | None, settings: SweepSettings) -> TrialScheduler | None:
    return YieldingScheduler(scheduler, settings.name) if settings.yields else scheduler


def resources(base: Recipe, device: str, gpus_per_trial: float) -> tune.PlacementGroupFactory:
    """The resources that Tune reserves for a trial's own process: its worker's share, or nothing where it starts a group."""
    if base.cluster.workers > 1:
        # Tune refuses an empty request; a byte of memory is always there and holds no CPU back from the group.
        return tune.PlacementGroupFactory([{"memory": 1}])
    share = {"CPU": float(base.cluster.cpus_per_worker)} | (
        {"GPU": gpus_per_trial} if device == "cuda" else {}
    )
    return tune.PlacementGroupFactory([share])


def trials_at_once(base: Recipe, device: str, limit: int | None) -> int | None:
    """The most trials that run at once so that every group of workers finds its resources; None: Tune's resources bound it."""
    if base.cluster.workers == 1:
        return limit
    per_worker = {"CPU": base.cluster.cpus_per_worker} | ({"GPU": 1} if device == "cuda" else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = sum(min(int(node.get(kind, 0) // amount) for kind, amount in per_worker.items()) for node in nodes)
    fits = max(1, free // base.cluster.workers)
    return min(fits, limit) if limit else fits


def tpe_sampler(seed: int) -> TPESampler:
    """Optuna's TPE with every setting written out that its versions have other defaults of.

    The rest cannot be set any more: Optuna 5 warns of it and 6 drops it. With one objective Optuna 4 and 5 propose the
    same trials; of several objectives 5 has another way.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=10,
            n_ei_candidates=24,
            multivariate=False,  # proposes otherwise in 5 than in 4
            group=False,
            constant_liar=True,  # trials run side by side
        )


def _label(definition: Sweep, settings: SweepSettings, trial: Trial) -> str:
    return chosen(trial.config, definition, settings)[2]


def _choice(definition: Sweep, settings: SweepSettings, config: dict[str, Any]) -> str:
    return json.dumps(chosen(config, definition, settings)[0], sort_keys=True, default=str)


def param_space(definition: Sweep) -> dict[str, Any]:
    """Tune's space: the listed trials, or nothing where Optuna has its own."""
    listed = definition.listed()
    if listed is None:
        return {}  # Optuna's own
    trials = SharedList(
        {"number": i, "params": params, "seed": seed} for i, (params, seed) in enumerate(listed)
    )
    return {"trial": tune.grid_search(trials)}


class SharedList(list[object]):
    """A list that copies of what holds it share: Tune copies the whole space for every trial, which is quadratic in their number."""

    def __deepcopy__(self, memo: dict[int, object]) -> SharedList:
        return self


def _search_algorithm(definition: Sweep) -> Searcher | None:
    if not isinstance(definition.search, Tpe):
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    many = len(definition.objectives) > 1
    names = [objective.name for objective in definition.objectives]
    modes: list[str] = [objective.mode for objective in definition.objectives]
    return OptunaSearch(
        space=functools.partial(_suggested, dict(definition.space)),
        metric=names if many else names[0],
        mode=modes if many else modes[0],
        sampler=tpe_sampler(definition.search.seed),
    )


def _suggested(space: spaces.Space, trial: BaseTrial) -> dict[str, Any]:
    # Of the space alone: Optuna's searcher saves this function by plain pickle, which a sweep's objectives may refuse.
    spaces.walked(space, spaces.suggested(trial))
    return {"number": trial.number}


def _scheduler(definition: Sweep, settings: SweepSettings, base: Recipe) -> TrialScheduler | None:
    first, stopping = definition.objectives[0], definition.stopping
    if isinstance(definition.search, Population):
        return PopulationBasedTraining(
            time_attr="step",
            metric=first.name,
            mode=first.mode,
            perturbation_interval=definition.search.every_steps,
            synch=True,  # compared at equal budget, and no member's checkpoint is gone before another has taken it
            quantile_fraction=0.5,
            custom_explore_fn=functools.partial(_explored, definition),
            log_config=True,
        )
    if stopping is None:
        return None
    assert base.steps is not None  # `Sweep.check` refuses others
    if isinstance(stopping, FrontStopping):
        file = settings.run(settings.name).directory / DECISIONS
        choice_of = functools.partial(_choice, definition, settings)
        return FrontScheduler(stopping, base.steps, file, definition.objectives, choice_of)
    # Trials end by themselves, after their final curve: the scheduler must not cut them off at their last step.
    return ASHAScheduler(
        time_attr="step",
        metric=first.name,
        mode=first.mode,
        max_t=max(stopping.every_steps, base.steps - 1),
        grace_period=stopping.every_steps,
        reduction_factor=stopping.factor,
        stop_last_trials=False,
    )


def _explored(definition: Sweep, config: dict[str, Any]) -> dict[str, Any]:
    trial = config["trial"]
    assert isinstance(definition.search, Population)
    turn = trial.get("turn", 0) + 1
    seed = definition.search.seed + 1009 * trial["number"] + turn
    params = choosers.perturbed(definition.space, trial["params"], seed=seed)
    return {**config, "trial": {**trial, "params": params, "turn": turn}}
