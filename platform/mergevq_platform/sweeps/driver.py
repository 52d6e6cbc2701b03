"""Running a sweep: Ray Tune over its trials, resumable, recorded in MLflow as a parent run with children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ray import tune

from mergevq_platform import loop
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.hub_cache import fetch_on_nodes
from mergevq_platform.recipe import FindRun, Recipe, ResolvedRecipe, data_places
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.storage.lookup import places_of_runs
from mergevq_platform.sweeps import report, stored
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.definition import Sweep, Trunk
from mergevq_platform.sweeps.more import with_more
from mergevq_platform.sweeps.outcome import SweepOutcome, gathered
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.terminal import Board
from mergevq_platform.sweeps.trunk import trained_before
from mergevq_platform.sweeps.tuning import run_trials
from mergevq_platform.sweeps.untrained import untrained_reference
from mergevq_platform.tasks.preflight import preflight, require_classes
from mergevq_platform.tracking.recorder import LocalRecorder, current_user
from mergevq_platform.tracking.records import RunIdentity, Status
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.undelivered import belonging, lacking


def sweep(
    definition: Sweep | None,
    *,
    home: Path,
    name: str | None = None,
    resume: str | None = None,
    more: int | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    concurrent: int | None = None,
) -> SweepOutcome:
    """Run a sweep, or go on with one; blocks until its end or Ctrl-C.

    A new sweep needs `definition`; `resume` names one of the same home and takes its stored definition,
    with `more` choices of its search added to an ended one. `concurrent`
    bounds the trials at once below what the cluster allows. Raises `InputError` for what cannot work before anything is
    stored or starts; a trial that fails for good is recorded with its reason and does not end the sweep.
    """
    home = home.resolve()
    # Tune writes what its trials are given into the storage, by pickle.
    for text, what in ((storage, "--storage"), (tracking_uri, "MLFLOW_TRACKING_URI")):
        refuse_credentials(
            text or "", what, "a sweep stores where it keeps things; set them in the environment"
        )
    storage = checkpoints.absolute(storage) if storage else None
    if resume is not None:
        definition, settings = stored.resumed(resume, home, tracking_uri=tracking_uri)
        definition = with_more(definition, more, settings) if more else definition
    assert definition is not None
    if definition.folder is None:
        definition = replace(definition, folder=os.getcwd())
    definition.check()
    uri = settings.tracking_uri if resume is not None else tracking_uri
    find_run = places_of_runs(home, lambda: Store.at(home, uri))
    definition, base = definition.pinned(find_run, home)
    samples = preflight(base)
    total_steps, _ = loop.length(base, samples)
    if isinstance(definition.fork, Trunk):
        definition.fork.steps_of(total_steps)
    if needing := [objective.name for objective in definition.objectives if objective.needs_probe]:
        require_classes(base, f"the objective {needing[0]} needs a probe")
    if resume is None:
        settings = stored.begun(definition, home, name=name, storage=storage, tracking_uri=tracking_uri)
    store = Store.at(home, settings.tracking_uri)
    store.prepare()
    cluster.connect(home, address=address)
    device = cluster.choose_device(base.cluster.device, base.cluster.workers)
    cluster.require_resources(base.cluster, device)
    fetch_on_nodes(data_places(base))
    settings = replace(settings, device=device)
    if settings.reference is None and any(objective.needs_reference for objective in definition.objectives):
        settings = replace(settings, reference=untrained_reference(definition, device))
    run = settings.run(settings.name)
    settings.save(definition)  # before everything that takes its name: `resume` needs it
    recorder = _recorder(settings, definition, base, samples.fingerprint, store)
    status: Status = "FAILED"
    try:
        with _terminated_as_interrupted():
            results = _results(definition, base, settings, find_run, total_steps, concurrent)
        outcome = gathered(definition, settings, results)
        if outcome.finished:
            folder = run.directory / "report"
            stopped = list(outcome.stopped_early.values())
            files = report.write(
                definition, settings.name, outcome.finished, folder, stopped, cost=outcome.cost
            )
            outcome.files.update(files)
            report.record(definition, outcome.finished, outcome.files, recorder, stopped)
        status = "FINISHED" if outcome.complete else "KILLED"
    finally:
        delivery = recorder.close(status)
        run.publish(failed=status == "FAILED")
        undelivered = lacking(
            store, belonging(run.directory), sync=settings.name, reason=delivery.error if delivery else None
        )
        if undelivered and status == "FAILED":
            print(undelivered, file=sys.stderr)
    return replace(outcome, undelivered=undelivered)


def _results(
    definition: Sweep,
    base: ResolvedRecipe,
    settings: SweepSettings,
    find_run: FindRun,
    total_steps: int,
    concurrent: int | None,
) -> Sequence[tune.Result]:
    """The trials' results; none where someone stopped the sweep while its trunk was trained."""
    if isinstance(definition.fork, Trunk):
        forked = trained_before(definition, settings, definition.trunk_recipe(find_run), total_steps)
        if forked is None:
            return []
        definition, base = forked.pinned(find_run, Path(settings.home))
    with Board(definition, settings.name, definition.num_trials):
        return run_trials(definition, settings, base, concurrent)


def _recorder(
    settings: SweepSettings, definition: Sweep, base: Recipe, fingerprint: str, store: Store
) -> LocalRecorder:
    identity = RunIdentity(
        uid=settings.uid,
        name=settings.name,
        experiment=base.experiment,
        kind="sweep",
        user=current_user(),
    )
    recorder = LocalRecorder(settings.run(settings.name).directory, store, identity)
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
        | ({"sweep.fork": str(definition.fork)} if definition.fork else {})
        | ({"sweep.optuna": version} if (version := stored.optuna_version(definition)) else {})
    )
    recorder.tags(
        {
            "mergevq.kind": "sweep",
            "mergevq.run": settings.name,
            "mergevq.data_fingerprint": fingerprint,
            "mlflow.note.content": definition.question,
        }
        | base.task.tags()
    )
    return recorder


@contextlib.contextmanager
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
