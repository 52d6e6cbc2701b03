"""A training run on Ray Train: the driver's side. The workers' side is `worker`; `run_actor` connects both."""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mergevq.config import with_overrides
from mergevq_platform import loop
from mergevq_platform.distributed import cluster, failures, heartbeat
from mergevq_platform.distributed.failure_reporter import FailureReporter
from mergevq_platform.distributed.hub_cache import fetch_on_nodes
from mergevq_platform.distributed.process_group import NodeInterfaceTorchConfig
from mergevq_platform.distributed.run_actor import RemoteRecorder, RunActor
from mergevq_platform.distributed.training_progress import TrainingProgress
from mergevq_platform.distributed.urgency import Urgency
from mergevq_platform.distributed.urgent_lease import Offer
from mergevq_platform.distributed.worker import WorkerLoopConfig, worker_loop
from mergevq_platform.distributed.yielding import Yielder
from mergevq_platform.distributed.yielding_fit import YieldingFit
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.recipe import ResolvedRecipe, data_places, resolve
from mergevq_platform.storage import checkpoints, forks, naming
from mergevq_platform.storage.lookup import places_of_runs
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tracking.records import Status
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.undelivered import lacking

STATUS_POLL_SECONDS = 0.5
QUIET_SECONDS = 15.0  # without any worker before the driver looks for the reason


@dataclass(frozen=True)
class Outcome:
    """The end of a training run."""

    run: Run
    step: int
    experiment: str
    stopped: bool  # someone asked it to stop before its last step
    undelivered: str | None = (
        None  # what the tracking store lacks and how to deliver it, if it lacks something
    )


def train(
    recipe: ResolvedRecipe | None,
    *,
    samples: Any = None,
    home: Path,
    storage: str | None = None,
    name: str | None = None,
    resume: str | None = None,
    overrides: tuple[str, ...] = (),
    address: str | None = None,
    tracking_uri: str | None = None,
    after: Callable[[Outcome, RemoteRecorder], None] | None = None,
    watch: Callable[[str, int, RemoteRecorder], None] | None = None,
    until: int | None = None,
    kind: str = "training",
    parent: str | None = None,
    tags: dict[str, str] | None = None,
    urgent: bool = False,
) -> Outcome:
    """Train on Ray and record it; blocks until the end or a stop.

    A new run needs `recipe`; `resume` names a run of the same storage and takes its stored recipe, with `overrides`
    laid over it. `samples` is the training split where it is open already. `after(outcome, recorder)` runs before the run is
    closed (the curve is measured there);
    `watch(checkpoint, step, recorder)` runs here whenever a new checkpoint is complete. Training ends after step
    `until`, if that comes before the recipe's last. `kind`, `parent` and `tags`
    are what MLflow's run is found by. While an `urgent` run lasts, work of the cluster that yields makes room for it.
    Raises `InputError` for what cannot work, before anything is started, and Ray's error if training fails for good.
    """
    run, recipe = _begin(
        recipe,
        home=home,
        storage=storage,
        name=name,
        resume=resume,
        overrides=overrides,
        tracking_uri=tracking_uri,
    )
    with _lease(recipe, run, home, address) if urgent else nullcontext() as urgency:
        samples = preflight(recipe, samples=samples, evaluated=after is not None)
        total_steps, _ = loop.length(recipe, samples)
        last = min(total_steps, until or total_steps)
        store = Store.at(home, tracking_uri)
        store.prepare()
        cluster.connect(home, address=address)
        device = cluster.choose_device(recipe.cluster.device, recipe.cluster.least_workers)
        cluster.require_resources(recipe.cluster, device)
        fetch_on_nodes(data_places(recipe))

        run.directory.mkdir(parents=True, exist_ok=True)
        run.fetch()
        (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
        run.publish()
        actor = _run_actor(recipe, run, tracking_uri, samples.fingerprint, kind=kind, parent=parent)
        recorder = RemoteRecorder(actor)
        status: Status = "FAILED"
        undelivered = None
        try:
            if tags:
                recorder.tags(tags)
            offer = None if urgent else _offer(recipe, run, device, kind)
            yields = offer is not None and offer.yields
            trainer = _trainer(recipe, run, actor, device, until, yields=yields)
            step, interrupted = _fit(trainer, recorder, recipe, run, watch, device, last, offer, urgency)
            stopped = interrupted and step < last
            outcome = Outcome(run=run, step=step, experiment=recipe.experiment, stopped=stopped)
            if after is not None and not stopped:
                after(outcome, recorder)
            status = "KILLED" if stopped else "FINISHED"
        finally:
            try:
                report = recorder.close(status)
                undelivered = lacking(
                    store, [run.directory], sync=run.name, reason=report.error if report else None
                )
            finally:
                ray.kill(actor)
                run.publish(failed=status == "FAILED")
            if undelivered and status == "FAILED":
                print(undelivered, file=sys.stderr)
    return replace(outcome, undelivered=undelivered)


def _lease(recipe: ResolvedRecipe, run: Run, home: Path, address: str | None) -> Urgency:
    """The lease of an urgent run, before all else that it does: what yields does so meanwhile."""
    cluster.connect(home, address=address)
    device = cluster.choose_device(recipe.cluster.device, recipe.cluster.least_workers)
    cluster.require_resources(recipe.cluster, device)
    return Urgency(run.name, _amounts(recipe, device))


def _offer(recipe: ResolvedRecipe, run: Run, device: Literal["cpu", "cuda"], kind: str) -> Offer:
    yields = recipe.cluster.yields
    return Offer(
        name=run.name,
        amounts=_amounts(recipe, device),
        began=time.time(),
        yields=kind == "trial" if yields is None else yields,
    )


def _per_worker(recipe: ResolvedRecipe, device: Literal["cpu", "cuda"]) -> dict[str, float]:
    return {"CPU": float(recipe.cluster.cpus_per_worker)} | ({"GPU": 1.0} if device == "cuda" else {})


def _amounts(recipe: ResolvedRecipe, device: Literal["cpu", "cuda"]) -> dict[str, float]:
    """All that the run's workers hold."""
    return {kind: recipe.cluster.workers * amount for kind, amount in _per_worker(recipe, device).items()}


def _run_actor(
    recipe: ResolvedRecipe,
    run: Run,
    tracking_uri: str | None,
    fingerprint: str,
    *,
    kind: str,
    parent: str | None,
) -> Any:
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return (
        ray.remote(RunActor)
        .options(num_cpus=0, label_selector=here)
        .remote(
            run.start(recipe, tracking_uri, fingerprint=fingerprint, kind=kind, parent=parent),
            recipe.cluster.hang_timeout_seconds,
        )
    )


def _trainer(
    recipe: ResolvedRecipe,
    run: Run,
    actor: Any,
    device: Literal["cpu", "cuda"],
    until: int | None,
    *,
    yields: bool,
) -> TorchTrainer:
    least, most = recipe.cluster.least_workers, recipe.cluster.workers
    scaling: dict[str, Any] = {
        "num_workers": most if least == most else (least, most),
        "elastic_resize_monitor_interval_s": recipe.cluster.resize_seconds,
        "use_gpu": device == "cuda",
        "resources_per_worker": _per_worker(recipe, device),
    }
    filesystem, path = checkpoints.open_storage(run.location)
    return TorchTrainer(
        # Not by `train_loop_config`, which Ray Train's controller unpickles: it would import the model library before any worker starts.
        partial(  # type: ignore[arg-type]  # here and below the checker sees Ray Train V1's classes
            worker_loop,
            WorkerLoopConfig(
                recipe=recipe,
                actor=actor,
                device=device,
                location=run.location,
                cache=Cache.at(run.home).directory,
                until=until,
                yields=yields,
            ),
        ),
        torch_config=NodeInterfaceTorchConfig(),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=run.name,
            storage_path=f"{path}/.ray",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=recipe.cluster.max_failures),
            callbacks=[FailureReporter(actor)],  # type: ignore[list-item]
        ),
    )


def _begin(
    recipe: ResolvedRecipe | None,
    *,
    home: Path,
    storage: str | None,
    name: str | None,
    resume: str | None,
    overrides: tuple[str, ...],
    tracking_uri: str | None,
) -> tuple[Run, ResolvedRecipe]:
    if resume is not None:
        run = Run.find(resume, home=home, storage=storage)
        tree = yaml.safe_load(run.read("recipe.yaml"))
        find_run = places_of_runs(home, lambda: Store.at(home, tracking_uri))
        return run, resolve(with_overrides(tree, overrides), find_run=find_run)
    assert recipe is not None
    recipe = forks.pinned(recipe, home)
    if name is not None:
        naming.check_name(name, "--name")
    unique = name or naming.derived(recipe.name, f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    run = Run.new(unique, home=home, storage=storage)
    return run, recipe


def _fit(
    trainer: TorchTrainer,
    recorder: RemoteRecorder,
    recipe: ResolvedRecipe,
    run: Run,
    watch: Callable[[str, int, RemoteRecorder], None] | None,
    device: Literal["cpu", "cuda"],
    last: int,
    offer: Offer | None,
    urgency: Urgency | None,
) -> tuple[int, bool]:
    # fit() blocks, so it runs in a thread and this one shows progress and listens for signals.
    result: dict[str, Any] = {}

    def once() -> int | None:
        ended: Any = failures.again_if_lost_while_starting(
            trainer.fit,
            failed=lambda: ray.get(actor.standing.remote())[1],
            tell=lambda reason: ray.get(actor.failed.remote(reason)),
            most=recipe.cluster.max_failures,
        )
        return ended.return_value

    def fit() -> None:
        try:
            result["step"] = yielding(once)
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=fit, daemon=True)
    actor, watched = recorder.actor, set(checkpoints.listed(run.location))
    with (
        _stop_on_signal(actor) as signals,
        Yielder(offer) as yielder,
        TrainingProgress(recipe, run.name) as progress,
    ):
        yielding = YieldingFit(yielder, recorder, last, lambda: bool(signals))
        thread.start()
        while thread.is_alive():
            thread.join(STATUS_POLL_SECONDS)
            latest = ray.get(actor.latest.remote())
            progress.show(latest.status, latest.warnings, stopping=bool(signals))
            yielding.watch()
            if urgency is not None:
                urgency.begun = urgency.begun or latest.begun
            if latest.hung is not None:
                _end_hung(actor, *latest.hung)
            elif latest.quiet_seconds > QUIET_SECONDS and (lack := cluster.shortage(recipe.cluster, device)):
                actor.warn.remote(f"the run waits for nodes: it needs {lack}")
            if watch is not None:
                for checkpoint in checkpoints.listed(run.location):
                    if checkpoint not in watched:
                        watched.add(checkpoint)
                        watch(checkpoint, checkpoints.step_of(checkpoint), recorder)
    final, _ = ray.get(actor.standing.remote())
    if final is not None:
        raise final
    if "error" in result:
        raise result["error"]
    return result["step"], bool(signals)


def _end_hung(actor: Any, beat: heartbeat.Heartbeat, line: str) -> None:
    if heartbeat.end(beat):
        actor.warn.remote(f"{line}: ended, and the group restarts (cluster.hang_timeout_seconds)")
    actor.gone.remote(beat.rank)


@contextmanager
def _stop_on_signal(actor: Any) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM asks the run to stop; a second SIGINT ends it at once."""
    signals: list[int] = []

    def handle(number: int, frame: Any) -> None:
        signals.append(number)
        if len(signals) > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        actor.stop.remote()

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
