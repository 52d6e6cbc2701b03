"""A training run on Ray Train: the driver's side, the worker's side, and the actor between them."""

from __future__ import annotations

import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from mergevq.config import to_tree, with_overrides
from mergevq_platform import checkpoints, cluster, loop
from mergevq_platform.feeding import pinned
from mergevq_platform.progress import Progress
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.runs import Run
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.store import Store

STATUS_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

    run: Run
    step: int
    experiment: str
    stopped: bool  # someone asked it to stop before its last step


class RunActor:
    """Lives beside the driver: owns the run's journal, the stop flag and the latest progress."""

    def __init__(self, recorder: Callable[[], LocalRecorder]) -> None:
        self.recorder = recorder()
        self.status: dict[str, float] = {}
        self.warnings: list[str] = []
        self.stopping = False

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the recorder."""
        return getattr(self.recorder, method)(*arguments)

    def progress(self, status: dict[str, float]) -> None:
        """Rank 0's latest progress."""
        self.status = status

    def warn(self, message: str) -> None:
        """A warning for the terminal, kept once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def latest(self) -> tuple[dict[str, float], list[str]]:
        """(progress, all warnings so far)."""
        return self.status, self.warnings

    def stop(self) -> None:
        """Ask the run to stop at the next step boundary."""
        self.stopping = True

    def stop_requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.stopping


@dataclass(frozen=True)
class RemoteRecorder:
    """The recorder that lives in a `RunActor`: same methods, and each waits for its answer."""

    actor: Any

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: ray.get(self.actor.call.remote(method, *arguments))


@dataclass
class RayHost:
    """A Ray Train worker as the loop's host."""

    actor: Any
    rank: int
    held: ExitStack = field(default_factory=ExitStack)
    last_record: Any = None
    stop_reply: Any = None
    stopping: bool = False

    def latest(self) -> Path | None:
        """The checkpoint that Ray Train hands this worker, as a local directory."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        return Path(self.held.enter_context(checkpoint.as_directory()))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Send metrics to the journal, without waiting."""
        self.last_record = self.actor.call.remote("metrics", step, values)

    def progress(self, status: dict[str, float]) -> None:
        """Send progress, without waiting."""
        self.actor.progress.remote(status)

    def warn(self, message: str) -> None:
        """Send a warning, without waiting."""
        self.actor.warn.remote(message)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write on rank 0, upload, and meet the other ranks. The journal holds every earlier metric first."""
        with tempfile.TemporaryDirectory(prefix="mergevq-") as temporary:
            checkpoint = None
            if self.rank == 0:
                if self.last_record is not None:
                    ray.get(self.last_record)
                write(Path(temporary))
                checkpoint = Checkpoint.from_directory(temporary)
            ray.train.report(
                {"step": step}, checkpoint=checkpoint, checkpoint_dir_name=checkpoints.directory_name(step)
            )

    def stop_requested(self) -> bool:
        """The flag as of the last answer; asks again without waiting."""
        if self.stop_reply is None:
            self.stop_reply = self.actor.stop_requested.remote()
        ready, _ = ray.wait([self.stop_reply], timeout=0)
        if ready:
            self.stopping = self.stopping or ray.get(self.stop_reply)
            self.stop_reply = None
        return self.stopping


def worker_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    recipe = resolve(config["recipe"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if config["device"] == "cuda" else torch.device("cpu")
    worker = loop.Worker(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    host = RayHost(actor=config["actor"], rank=worker.rank)
    with host.held:
        loop.train(recipe, worker, host)


def train(
    recipe: Recipe | None,
    *,
    home: Path,
    storage: str | None = None,
    name: str | None = None,
    resume: str | None = None,
    overrides: tuple[str, ...] = (),
    address: str | None = None,
    tracking_uri: str | None = None,
    after: Callable[[Outcome, RemoteRecorder], None] | None = None,
    watch: Callable[[str, int, RemoteRecorder], None] | None = None,
    kind: str = "training",
    parent: str | None = None,
    tags: dict[str, str] | None = None,
) -> Outcome:
    """Train on Ray and record it; blocks until the end or a stop.

    A new run needs `recipe`; `resume` names a run of the same storage and takes its stored recipe, with `overrides`
    laid over it. `after(outcome, recorder)` runs before the run is closed (the curve is measured there);
    `watch(checkpoint, step, recorder)` runs here whenever a new checkpoint is complete. `kind`, `parent` and `tags`
    are what MLflow's run is found by. Raises `InputError` for what cannot work, before anything is started, and Ray's
    error if training fails for good.
    """
    run, recipe = _begin(recipe, home=home, storage=storage, name=name, resume=resume, overrides=overrides)
    fingerprint = loop.preflight(recipe).fingerprint
    Store.at(home, tracking_uri).prepare()
    cluster.connect(home, address=address)
    device = cluster.choose_device(recipe.cluster.device, recipe.cluster.workers)
    cluster.require_resources(recipe.cluster, device)

    run.directory.mkdir(parents=True, exist_ok=True)
    run.fetch()
    (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    run.publish()
    actor: Any = (
        ray.remote(RunActor)
        .options(num_cpus=0, label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()})
        .remote(lambda: run.recorder(recipe, tracking_uri, fingerprint=fingerprint, kind=kind, parent=parent))
    )
    recorder = RemoteRecorder(actor)
    if tags:
        recorder.tags(tags)
    scaling = ScalingConfig(
        num_workers=recipe.cluster.workers,
        use_gpu=device == "cuda",
        resources_per_worker={"CPU": recipe.cluster.cpus_per_worker}
        | ({"GPU": 1} if device == "cuda" else {}),
    )
    filesystem, path = checkpoints.open_storage(run.storage)
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={"recipe": to_tree(recipe), "actor": actor, "device": device},
        torch_config=cluster.NodeInterfaceTorchConfig(),
        scaling_config=scaling,
        run_config=RunConfig(
            name=run.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=recipe.cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=recipe.keep_checkpoints),
        ),
    )
    status = "FAILED"
    try:
        step, stopped = _fit(trainer, recorder, recipe, run, watch)
        status = "KILLED" if stopped else "FINISHED"
        outcome = Outcome(run=run, step=step, experiment=recipe.experiment, stopped=stopped)
        if after is not None and not stopped:
            after(outcome, recorder)
        return outcome
    except BaseException:
        status = "FAILED"
        raise
    finally:
        recorder.close(status)
        ray.kill(actor)
        run.publish()


def _begin(
    recipe: Recipe | None,
    *,
    home: Path,
    storage: str | None,
    name: str | None,
    resume: str | None,
    overrides: tuple[str, ...],
) -> tuple[Run, Recipe]:
    if resume is not None:
        run = Run.find(resume, home=home, storage=storage)
        tree = yaml.safe_load(run.read("recipe.yaml"))
        return run, resolve(with_overrides(tree, overrides))
    assert recipe is not None
    recipe = pinned(recipe)
    unique = name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run = Run.new(unique, home=home, storage=storage)
    return run, recipe


def _fit(
    trainer: TorchTrainer,
    recorder: RemoteRecorder,
    recipe: Recipe,
    run: Run,
    watch: Callable[[str, int, RemoteRecorder], None] | None,
) -> tuple[int, bool]:
    # fit() blocks, so it runs in a thread and this one shows progress and listens for signals.
    result: dict[str, Any] = {}

    def fit() -> None:
        try:
            result["value"] = trainer.fit()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=fit, daemon=True)
    actor, watched = recorder.actor, set(checkpoints.listed(run.location))
    with _stop_on_signal(actor) as signals, Progress(recipe, run.name) as progress:
        thread.start()
        while thread.is_alive():
            thread.join(STATUS_POLL_SECONDS)
            status, warnings = ray.get(actor.latest.remote())
            progress.show(status, warnings, stopping=bool(signals))
            if watch is not None:
                for checkpoint in checkpoints.listed(run.location):
                    if checkpoint not in watched:
                        watched.add(checkpoint)
                        watch(checkpoint, checkpoints.step_of(checkpoint), recorder)
    if "error" in result:
        raise result["error"]
    metrics = result["value"].metrics or {}
    step = int(metrics.get("step", 0))
    return step, bool(signals) and not _complete(run, step, recipe)


def _complete(run: Run, step: int, recipe: Recipe) -> bool:
    return recipe.steps is not None and step >= recipe.steps


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
