"""Running a sweep: Ray Tune over its trials, resumable, recorded in MLflow as a parent run with children."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow.fs
import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback

from mergevq.errors import InputError
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.failures import one_line
from mergevq_platform.recipe import Pins, Recipe, resolve
from mergevq_platform.storage import checkpoints, naming
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.storage.files import write_whole
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps import report
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.definition import EarlyStopping, Population, Sweep, Tpe
from mergevq_platform.sweeps.objectives import Reference
from mergevq_platform.sweeps.space import Space
from mergevq_platform.sweeps.terminal import Board, Watch
from mergevq_platform.sweeps.trial import (
    RECORD,
    STOPPED,
    Finished,
    Place,
    chosen,
    run_trial,
    untrained_reference,
)
from mergevq_platform.tasks.preflight import preflight, require_classes
from mergevq_platform.tracking.journal import Held, Journal
from mergevq_platform.tracking.recorder import LocalRecorder, current_user
from mergevq_platform.tracking.records import JOURNAL_NAME, RunIdentity, Status, read_identity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.undelivered import belonging, lacking
from mergevq_platform.tracking.writer import sync

TUNE_FOLDER = "tune"
SWEEP_FILE = "sweep.pkl"
PLACE_FILE = "place.json"


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended."""

    definition: Sweep
    place: Place
    experiment: str
    finished: list[Finished]
    failed: dict[str, str]  # trial -> reason
    stopped_early: list[str]
    complete: bool  # no trial is left to run
    files: dict[str, Path]
    undelivered: str | None = (
        None  # what the tracking store lacks and how to deliver it, if it lacks something
    )


def sweep(
    definition: Sweep | None,
    *,
    home: Path,
    name: str | None = None,
    resume: str | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    concurrent: int | None = None,
) -> SweepOutcome:
    """Run a sweep, or go on with one; blocks until its end or Ctrl-C.

    A new sweep needs `definition`; `resume` names one of the same home and takes its stored definition. `concurrent`
    bounds the trials at once below what the cluster allows. Raises `InputError` before anything starts for what
    cannot work; a trial that fails for good is recorded with its reason and does not end the sweep.
    """
    home = home.resolve()
    # Tune writes what its trials are given into the storage, by pickle.
    for text, what in ((storage, "--storage"), (tracking_uri, "MLFLOW_TRACKING_URI")):
        refuse_credentials(
            text or "", what, "a sweep stores where it keeps things; set them in the environment"
        )
    storage = checkpoints.absolute(storage) if storage else None
    definition, place = _begin(definition, home, name, resume, storage, tracking_uri)
    if definition.folder is None:
        definition = replace(definition, folder=os.getcwd())
    definition.check()
    first = _first_recipe(definition)
    base = resolve(first, pins=definition.pins)
    definition = replace(definition, pins=Pins.between(first, base))
    fingerprint = preflight(base).fingerprint
    if needing := [objective.name for objective in definition.objectives if objective.needs_probe]:
        require_classes(base, f"the objective {needing[0]} needs a probe")
    store = Store.at(home, place.tracking_uri)
    store.prepare()
    cluster.connect(home, address=address)
    device = cluster.choose_device(base.cluster.device, base.cluster.workers)
    cluster.require_resources(base.cluster, device)
    run = place.run(place.name)
    if place.reference is None and any(objective.needs_reference for objective in definition.objectives):
        place = replace(place, reference=untrained_reference(definition, device))
    place = replace(place, device=device)
    run.directory.mkdir(parents=True, exist_ok=True)
    recorder = _recorder(run, place, definition, base, fingerprint, store)
    (run.directory / SWEEP_FILE).write_bytes(cloudpickle.dumps(definition))
    write_whole(run.directory / PLACE_FILE, json.dumps(asdict(place), indent=1))
    status: Status = "FAILED"
    try:
        with Board(definition, place.name, _expected(definition)), _terminated_as_interrupted():
            results = _run_trials(definition, place, base, device, concurrent)
        outcome = _gather(definition, place, results)
        if outcome.finished:
            outcome.files.update(report.write(definition, place, outcome.finished, run.directory / "report"))
            report.record(definition, place, outcome.finished, outcome.files, recorder)
        status = "FINISHED" if outcome.complete else "KILLED"
    finally:
        delivery = recorder.close(status)
        run.publish(failed=status == "FAILED")
        undelivered = lacking(
            store, belonging(run.directory), sync=place.name, reason=delivery.error if delivery else None
        )
        if undelivered and status == "FAILED":
            print(undelivered, file=sys.stderr)
    return replace(outcome, undelivered=undelivered)


def _begin(
    definition: Sweep | None,
    home: Path,
    name: str | None,
    resume: str | None,
    storage: str | None,
    tracking_uri: str | None,
) -> tuple[Sweep, Place]:
    if resume is not None:
        directory = directory_of(resume, home)
        if not (directory / PLACE_FILE).is_file():
            there = sorted(path.parent.name for path in (home / "ray").glob(f"*/{PLACE_FILE}"))
            raise InputError(
                f"no sweep '{resume}' in {home / 'ray'}: sweeps there: {', '.join(there) or 'none'}"
            )
        stored = json.loads((directory / PLACE_FILE).read_text())
        reference = (
            Reference(**stored.pop("reference")) if stored.get("reference") else stored.pop("reference", None)
        )
        place = Place(**stored, reference=reference)
        place = replace(place, home=str(home), tracking_uri=tracking_uri or place.tracking_uri)
        stored_sweep = stored_definition(resume, home)
        _warn_of_another_optuna(place, optuna_version(stored_sweep))
        return stored_sweep, place
    assert definition is not None
    if name is not None:
        naming.check_name(name, "--name", longest=naming.LONGEST - naming.ADDED)
    unique = name or naming.derived(
        definition.name, f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    )
    run = Run.new(unique, home=home, storage=storage)
    place = Place(
        name=unique,
        home=str(home),
        storage=storage,
        tracking_uri=tracking_uri,
        uid="",
        device="cpu",
        reference=None,
    )
    identity = RunIdentity(
        name=unique, experiment=_first_recipe(definition).experiment, kind="sweep", user=current_user()
    )
    run.directory.mkdir(parents=True)
    Journal(run.directory / JOURNAL_NAME, identity).close()
    return definition, replace(place, uid=identity.uid, optuna=optuna_version(definition))


def _warn_of_another_optuna(place: Place, here: str | None) -> None:
    if place.optuna != here and here is not None:
        began = f"Optuna {place.optuna}" if place.optuna else "an Optuna that it did not note"
        print(
            f"warning: sweep '{place.name}' began with {began}, and here is {here}: it may propose other trials from now on",
            file=sys.stderr,
        )


def directory_of(name: str, home: Path) -> Path:
    """Where a sweep of this home keeps its things. Raises `InputError` for anything but a name.

    A definition is a pickle of our own making, and reading a pickle runs code: it is read from the user's own home
    alone, never from a path that someone names or from storage.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"'{name}' is not the name of a sweep: sweeps are found by name in {home / 'ray'}")
    return home / "ray" / name


def stored_definition(name: str, home: Path) -> Sweep:
    """The definition that a sweep of this home was started with."""
    directory = directory_of(name, home)
    return cloudpickle.loads((directory / SWEEP_FILE).read_bytes())


def _first_recipe(definition: Sweep) -> Recipe:
    return definition.recipe_of(spaces.corners(definition.space)[0])


def _recorder(
    run: Run, place: Place, definition: Sweep, base: Recipe, fingerprint: str, store: Store
) -> LocalRecorder:
    assert read_identity(run.directory / JOURNAL_NAME).uid == place.uid
    recorder = LocalRecorder(run.directory, store)
    recorder.running()
    recorder.params(
        {
            "sweep.recipe": definition.recipe,
            "sweep.overrides": list(definition.overrides),
            "sweep.space": json.dumps(spaces.encoded(dict(definition.space))),
            "sweep.search": str(definition.search),
            "sweep.stopping": str(definition.stopping),
            "sweep.objectives": [f"{o.mode} {o.name}" for o in definition.objectives],
        }
        | ({"sweep.optuna": version} if (version := optuna_version(definition)) else {})
    )
    recorder.tags(
        {
            "mergevq.kind": "sweep",
            "mergevq.run": place.name,
            "mergevq.data_fingerprint": fingerprint,
            "mlflow.note.content": definition.question,
        }
        | base.task.tags()
    )
    return recorder


def _expected(definition: Sweep) -> int:
    listed = definition.listed()
    return len(listed) if listed is not None else getattr(definition.search, "trials", 0)


def resources(base: Recipe, device: str, gpus_per_trial: float) -> Any:
    """What Tune sets aside for a trial's own process: its worker's share, or nothing where it starts a group."""
    if base.cluster.workers > 1:
        # Tune refuses an empty request; a byte of memory is always there and holds no CPU back from the group.
        return tune.PlacementGroupFactory([{"memory": 1}])
    share = {"CPU": float(base.cluster.cpus_per_worker)} | (
        {"GPU": gpus_per_trial} if device == "cuda" else {}
    )
    return tune.PlacementGroupFactory([share])


def trials_at_once(base: Recipe, device: str, asked: int | None) -> int | None:
    """How many trials may run together so that every group of workers finds room; None: Tune's resources bound it."""
    if base.cluster.workers == 1:
        return asked
    per_worker = {"CPU": base.cluster.cpus_per_worker} | ({"GPU": 1} if device == "cuda" else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(node.get(kind, 0) // amount) for kind, amount in per_worker.items()) for node in nodes)
    fits = max(1, room // base.cluster.workers)
    return min(fits, asked) if asked else fits


def _run_trials(definition: Sweep, place: Place, base: Recipe, device: str, concurrent: int | None) -> Any:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "2")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    filesystem, path = checkpoints.open_storage(
        checkpoints.inside(place.run(place.name).location, TUNE_FOLDER)
    )
    trainable = tune.with_resources(
        functools.partial(run_trial, sweep=definition, place=place),
        resources(base, device, definition.gpus_per_trial),
    )
    parent, _, folder = path.rpartition("/")
    if _can_restore(filesystem, path):
        tuner = tune.Tuner.restore(
            path,
            trainable=trainable,
            storage_filesystem=filesystem,
            resume_unfinished=True,
            resume_errored=True,
            param_space=_param_space(definition),
        )
    else:
        label = functools.partial(_label, definition, place)
        tuner = tune.Tuner(
            trainable,
            param_space=_param_space(definition),
            tune_config=tune.TuneConfig(
                search_alg=_search_algorithm(definition),
                scheduler=_scheduler(definition, base),
                num_samples=_expected(definition) if isinstance(definition.search, Tpe) else 1,
                max_concurrent_trials=trials_at_once(base, device, concurrent),
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
                callbacks=[Watch(place), JsonLoggerCallback()],
                verbose=0,
            ),
        )
    return tuner.fit()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    # Tune saves its state and ends at Ctrl-C alone; a job that is stopped gets SIGTERM.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _label(definition: Sweep, place: Place, trial: Any) -> str:
    return chosen(trial.config, definition, place)[2]


def _can_restore(filesystem: pyarrow.fs.FileSystem, path: str) -> bool:
    return filesystem.get_file_info(f"{path}/tuner.pkl").type == pyarrow.fs.FileType.File


def _param_space(definition: Sweep) -> dict[str, Any]:
    listed = definition.listed()
    if listed is None:
        return {}  # Optuna's own
    trials = [{"number": i, "params": params, "seed": seed} for i, (params, seed) in enumerate(listed)]
    return {"trial": tune.grid_search(trials)}


def _search_algorithm(definition: Sweep) -> Any:
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


def tpe_sampler(seed: int) -> Any:
    """Optuna's TPE with the settings written out of which its versions have other defaults.

    With one objective Optuna 4 and 5 then propose the same trials; of several, 5 has another way.
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


def optuna_version(definition: Sweep) -> str | None:
    """The version of Optuna, where it decides which trials there are."""
    import optuna

    return optuna.__version__ if isinstance(definition.search, Tpe) else None


def _suggested(space: Space, chooser: Any) -> dict[str, Any]:
    # Of the space alone: Optuna's searcher saves this function by plain pickle, which a sweep's objectives may refuse.
    spaces.chosen(space, chooser)
    return {"number": chooser.number}


def _scheduler(definition: Sweep, base: Recipe) -> Any:
    first = definition.objectives[0]
    compared: Any = {"time_attr": "step", "metric": first.name, "mode": first.mode}
    if isinstance(definition.search, Population):
        from ray.tune.schedulers import PopulationBasedTraining

        return PopulationBasedTraining(
            **compared,
            perturbation_interval=definition.search.every_steps,
            synch=True,  # compared at equal budget, and no member's checkpoint is gone before another has taken it
            quantile_fraction=0.5,
            custom_explore_fn=functools.partial(_explored, definition),
            log_config=True,
        )
    if definition.stopping is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    stopping: EarlyStopping = definition.stopping
    steps = base.steps
    if steps is None:
        raise InputError(
            "early stopping compares trials at equal steps: give the recipe 'steps', not 'epochs'"
        )
    # Trials end by themselves, after their final curve: the scheduler must not cut them off at their last step.
    return ASHAScheduler(
        **compared,
        max_t=steps,
        grace_period=stopping.every_steps,
        reduction_factor=stopping.factor,
        stop_last_trials=False,
    )


def _explored(definition: Sweep, config: dict[str, Any]) -> dict[str, Any]:
    trial = config["trial"]
    assert isinstance(definition.search, Population)
    turn = trial.get("turn", 0) + 1
    seed = definition.search.seed + 1009 * trial["number"] + turn
    params = spaces.perturbed(definition.space, trial["params"], seed=seed)
    return {**config, "trial": {**trial, "params": params, "turn": turn}}


def _gather(definition: Sweep, place: Place, results: Any) -> SweepOutcome:
    finished: list[Finished] = []
    failed: dict[str, str] = {}
    stopped: list[str] = []
    waiting = max(0, _expected(definition) - len(results))
    store = Store.at(Path(place.home), place.tracking_uri)
    for result in results:
        name = chosen(result.config, definition, place)[2]
        directory = place.run(name).directory
        record = Finished.load(directory / RECORD)
        if record is not None:
            finished.append(record)
        elif result.error is not None:
            failed[name] = one_line(result.error)
            _closed(directory, store, "FAILED", {"mergevq.failure": failed[name][:500]})
        elif (directory / STOPPED).is_file():
            stopped.append(name)
            step = json.loads((directory / STOPPED).read_text())["step"]
            _closed(
                directory,
                store,
                "KILLED",
                {"mergevq.stopped": f"early, after step {step}: others were better"},
            )
        else:
            waiting += 1
    finished.sort(key=lambda record: record.name)
    experiment = _first_recipe(definition).experiment
    return SweepOutcome(definition, place, experiment, finished, failed, sorted(stopped), waiting == 0, {})


def _closed(directory: Path, store: Store, status: Status, tags: dict[str, str]) -> None:
    """Write into a trial's journal how it ended, where its own process could not, and deliver it."""
    path = directory / JOURNAL_NAME
    if not path.is_file():
        return
    try:
        journal = Journal(path)
    except Held:
        return
    journal.append_tags(tags)
    journal.append_status(status)
    journal.close()
    with contextlib.suppress(InputError):  # said at the end of the sweep
        sync(directory, store)
