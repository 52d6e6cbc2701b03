"""Ray Tune over a sweep's trials: resources, search, early stopping, stored state."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from mergevq.errors import InputError
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
from mergevq_platform.sweeps.trial import REPEAT, params_and_number, run_trial, trial_name
from mergevq_platform.sweeps.tune_state import LostCheckpoints, restorable
from mergevq_platform.sweeps.yielding import YieldingScheduler, watching

if TYPE_CHECKING:
    from optuna import Trial as OptunaTrial
    from optuna.samplers import TPESampler

TUNE_FOLDER = "tune"
SEARCHER_STATE = "searcher-state-"  # Ray Tune's files, whose names sort by time


def run_trials(
    definition: Sweep, settings: SweepSettings, base: Recipe, concurrent: int | None
) -> list[tune.Result]:
    """Run all trials, or those that are left of a sweep that had begun; `concurrent` bounds those at once.

    Of rounds before the last, all of whose trials have ended, the results are read.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "2")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    results: list[tune.Result] = []
    for first in (0, *definition.rounds):
        tuner = _tuner(definition, settings, base, concurrent, first)
        if first < max((0, *definition.rounds)):
            grid = tuner.get_results()
        else:
            with watching(settings.name):
                grid = tuner.fit()
        results += [grid[at] for at in range(len(grid))]
    return results


def _folder(settings: SweepSettings, first: int) -> tuple[pyarrow.fs.FileSystem, str]:
    """The state of the round whose first trial has this number, in the sweep's storage."""
    name = f"{TUNE_FOLDER}_{first:03d}" if first else TUNE_FOLDER
    return checkpoints.open_storage(checkpoints.inside(settings.run(settings.name).location, name))


def _tuner(
    definition: Sweep, settings: SweepSettings, base: Recipe, concurrent: int | None, first: int
) -> tune.Tuner:
    filesystem, path = _folder(settings, first)
    trainable = tune.with_resources(
        functools.partial(run_trial, sweep=definition, place=settings),
        resources(base, settings.device, definition.gpus_per_trial),
    )
    if restorable(filesystem, path):
        return tune.Tuner.restore(
            path,
            trainable=trainable,
            storage_filesystem=filesystem,
            resume_unfinished=True,
            resume_errored=True,
            param_space=param_space(definition, first),
        )
    parent, _, folder = path.rpartition("/")
    label = functools.partial(_named, settings.name)
    samples = definition.num_trials - first if isinstance(definition.search, Tpe) else 1
    return tune.Tuner(
        trainable,
        param_space=param_space(definition, first),
        tune_config=tune.TuneConfig(
            search_alg=search_algorithm(definition, settings),
            scheduler=_yielding(_scheduler(definition, settings, base), settings),
            num_samples=samples,
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
            callbacks=[Watch(settings), LostCheckpoints(), JsonLoggerCallback()],
            verbose=0,
        ),
    )


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


def _named(sweep: str, trial: Trial) -> str:
    # Tune stores this function with every trial, so it holds the sweep's name alone: thousands of definitions are tens of megabytes.
    return trial_name(sweep, params_and_number(trial.config)[1])


def _choice_of(config: dict[str, Any]) -> str:
    return json.dumps(params_and_number(config)[0], sort_keys=True, default=str)


def _label(definition: Sweep, settings: SweepSettings, trial: Trial) -> str:  # in sweeps of earlier versions
    return _named(settings.name, trial)


def _choice(definition: Sweep, settings: SweepSettings, config: dict[str, Any]) -> str:  # likewise
    return _choice_of(config)


def param_space(definition: Sweep, first: int = 0) -> dict[str, Any]:
    """Tune's space: the listed trials from number `first` to the end of its round, or nothing where Optuna has its own."""
    listed = definition.listed()
    if listed is None:
        return {}  # Optuna's own
    end = min((end for end in definition.rounds if end > first), default=len(listed))
    trials = SharedList(
        {"number": number, "params": listed[number][0], "seed": listed[number][1]}
        for number in range(first, end)
    )
    return {"trial": tune.grid_search(trials)}


class SharedList(list[object]):
    """A list that copies of what holds it share: Tune copies the whole space for every trial, which is quadratic in their number."""

    def __deepcopy__(self, memo: dict[int, object]) -> SharedList:
        return self


def search_algorithm(definition: Sweep, settings: SweepSettings) -> Searcher | None:
    """Optuna's searcher, as the round before left it; None where the trials are listed."""
    if not isinstance(definition.search, Tpe):
        return None
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    many = len(definition.objectives) > 1
    names = [objective.name for objective in definition.objectives]
    modes: list[str] = [objective.mode for objective in definition.objectives]
    searcher = OptunaSearch(
        space=functools.partial(_suggested, dict(definition.space)),
        metric=names if many else names[0],
        mode=modes if many else modes[0],
        sampler=tpe_sampler(definition.search.seed),
    )
    if definition.rounds:
        _continue(searcher, settings, (0, *definition.rounds)[-2])
    return searcher


def _continue(searcher: Searcher, settings: SweepSettings, first: int) -> None:
    """Let the searcher go on from the state that a round left: its trials with what they came to, its sampler's random numbers."""
    filesystem, path = _folder(settings, first)
    listing = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    states = sorted(info.path for info in listing if info.base_name.startswith(SEARCHER_STATE))
    if not states:
        raise InputError(f"sweep '{settings.name}' cannot be given more: {path} holds no state of its search")
    with tempfile.TemporaryDirectory() as temporary:
        local = f"{temporary}/state.pkl"
        pyarrow.fs.copy_files(states[-1], local, source_filesystem=filesystem)
        searcher.restore(local)


def _suggested(space: spaces.Space, trial: OptunaTrial) -> dict[str, Any]:
    # Of the space alone: Optuna's searcher saves this function by plain pickle, which a sweep's objectives may refuse.
    spaces.walked(space, spaces.suggested(trial))
    # A choice without ranges comes again: with another seed it tells something new, and the mean of both is judged.
    earlier = (other for other in trial.study.get_trials(deepcopy=False) if other.number < trial.number)
    return {"number": trial.number, REPEAT: sum(other.params == trial.params for other in earlier)}


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
        shared = definition.shared_steps(base.steps)
        return FrontScheduler(stopping, base.steps, file, definition.objectives, _choice_of, shared)
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
