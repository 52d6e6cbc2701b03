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
from typing import Any, Literal, NamedTuple

import pyarrow.fs
import ray
import ray.train
import torch
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer

from mergevq.config import to_tree, with_overrides
from mergevq.errors import InputError
from mergevq_platform import checkpoints, cluster, failures, heartbeat, loop
from mergevq_platform.progress import Progress
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.runs import Run
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.store import Store

STATUS_POLL_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0  # between two tries to save a checkpoint
QUIET_SECONDS = 15.0  # without any worker before the driver looks for the reason


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

    run: Run
    step: int
    experiment: str
    stopped: bool  # someone asked it to stop before its last step


class Latest(NamedTuple):
    """Progress, all warnings so far, a worker that hangs and what to say of it, and how long no worker has been heard."""

    status: dict[str, float]
    warnings: list[str]
    hung: tuple[heartbeat.Beat, str] | None
    quiet_seconds: float


class RunActor:
    """Lives beside the driver: owns the run's journal, the stop flag, the workers' heartbeats and the latest progress."""

    def __init__(self, recorder: Callable[[], LocalRecorder], hang_timeout_seconds: float) -> None:
        self.recorder = recorder()
        self.unwritten: list[tuple[int, dict[str, float]]] = []
        self.ward = heartbeat.Ward(hang_timeout_seconds)
        self.status: dict[str, float] = {}
        self.warnings: list[str] = []
        self.stopping = False
        self.failures = 0
        self.final: Exception | None = None

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the recorder."""
        return getattr(self.recorder, method)(*arguments)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Rank 0's metrics, kept here for as long as the journal's disk does not take them."""
        self.unwritten.append((step, values))
        self.settle()

    def settle(self) -> str | None:
        """Write what the journal lacks, in order; why that failed, if it did."""
        try:
            while self.unwritten:
                self.recorder.metrics(*self.unwritten[0])
                del self.unwritten[0]
        except (OSError, InputError) as error:
            return failures.one_line(error)
        return None

    def progress(self, status: dict[str, float]) -> None:
        """Rank 0's latest progress."""
        self.status = status

    def beat(self, beat: heartbeat.Beat) -> None:
        """A worker's heartbeat."""
        self.ward.hear(beat)

    def gone(self, rank: int) -> None:
        """A worker that has left or was ended."""
        self.ward.forget(rank)

    def give_up(self, error: Exception) -> None:
        """A worker met what no restart can put right."""
        self.final = self.final or error

    def given_up(self) -> Exception | None:
        """What ended the run for good, if something did."""
        return self.final

    def warn(self, message: str) -> None:
        """A warning for the terminal, kept once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def failed(self, reason: str) -> None:
        """Workers failed, and Ray Train restarts the group if it may."""
        self.failures += 1
        self.warn(
            f"training failed after step {int(self.status.get('step', 0))}: {reason} (failure {self.failures})"
        )

    def latest(self) -> Latest:
        """All that the driver asks for."""
        return Latest(self.status, self.warnings, self.ward.hung(), self.ward.quiet_seconds())

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
    heart: heartbeat.Heart
    rank: int
    location: str  # of the run's checkpoints, a path or URI
    keep_checkpoints: int
    storage_timeout_seconds: float
    held: ExitStack = field(default_factory=ExitStack)
    stop_reply: Any = None
    stopping: bool = False
    notice: Any = None

    def latest(self) -> Path | None:
        """The newest whole checkpoint in the run's storage: rank 0 finds it, all others take the same.

        Raises `InputError` where the storage is not the one that the driver sees, or holds only damaged checkpoints.
        """
        filesystem, path = checkpoints.open_storage(self.location)
        if filesystem.get_file_info(f"{path}/recipe.yaml").type != pyarrow.fs.FileType.File:
            node = ray.util.get_node_ip_address()
            raise InputError(
                f"the node {node} does not see the run in {self.location}: give --storage a path or URI that all nodes share"
            )
        directory = None
        if self.rank == 0 and checkpoints.listed(self.location):
            directory = self.held.enter_context(checkpoints.newest(self.location, say=self.warn))
        name = broadcast_from_rank_zero(directory.name if directory else None)
        if name is not None and directory is None:
            there = checkpoints.inside(self.location, name)
            directory = self.held.enter_context(checkpoints.newest(there, say=self.warn))
        return directory

    def record(self, step: int, values: dict[str, float]) -> None:
        """Send metrics to the journal, without waiting."""
        self.actor.metrics.remote(step, values)

    def progress(self, status: dict[str, float]) -> None:
        """Send progress, without waiting."""
        self.actor.progress.remote(status)

    def warn(self, message: str) -> None:
        """Send a warning, without waiting."""
        self.actor.warn.remote(message)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write and upload. The journal holds every earlier metric first.

        Ray Train is not told of checkpoints: its controller would end the run when storage fails it once. While storage
        is full or gone, training waits. Raises `InputError` when that takes longer than the recipe allows.
        """
        with tempfile.TemporaryDirectory(prefix="mergevq-") as temporary:
            directory = Path(temporary) / checkpoints.directory_name(step)
            write(directory)
            began, pause = time.monotonic(), 1.0
            while problem := self._kept(directory):
                waited = time.monotonic() - began
                if waited >= self.storage_timeout_seconds:
                    raise InputError(
                        f"the checkpoint of step {step} could not be saved in {self.location} for {waited:.0f} s ({problem}): "
                        "make room there or bring it back, then go on with --resume"
                    )
                self.warn(
                    f"step {step}: the checkpoint cannot be saved in {self.location} ({problem}); training waits, and tries "
                    f"again for {self.storage_timeout_seconds:.0f} s (cluster.storage_timeout_seconds)"
                )
                self.at(step, "saving")
                time.sleep(min(pause, self.storage_timeout_seconds - waited))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _kept(self, directory: Path) -> str | None:
        # Why not, if not.
        if problem := ray.get(self.actor.settle.remote()):
            return problem
        try:
            checkpoints.keep(directory, self.location, most=self.keep_checkpoints)
        except OSError as error:
            return failures.one_line(error)
        return None

    def stop_requested(self) -> bool:
        """The flag as of the last answer; asks again without waiting."""
        if self.stop_reply is None:
            self.stop_reply = self.actor.stop_requested.remote()
        ready, _ = ray.wait([self.stop_reply], timeout=0)
        if ready:
            self.stopping = self.stopping or ray.get(self.stop_reply)
            self.stop_reply = None
        return self.stopping

    def losing_node(self) -> bool:
        """Whether Ray tells of a node of this run that is to be drained, and has not told before."""
        notice, before = ray.train.get_preemption_info(), self.notice
        self.notice = notice
        if notice is None or notice == before:
            return False
        if self.rank == 0:
            self.warn(
                f"workers {', '.join(map(str, notice.preempted_ranks))} are about to lose their node: saving a checkpoint now"
            )
        return True

    def at(self, step: int, doing: str) -> None:
        """Tell the heart."""
        self.heart.at(step, doing)


class Restarts(UserCallback):
    """Tells the user, from Ray Train's controller, that workers failed."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """One line of the failures of one group."""
        self.actor.failed.remote(failures.one_line(WorkerGroupError("", worker_exceptions)))


def worker_loop(config: dict[str, Any]) -> int | None:
    """What every Ray Train worker runs; returns the steps done, None where a worker before gave up."""
    actor = config["actor"]
    if ray.get(actor.given_up.remote()) is not None:
        return None
    recipe = resolve(config["recipe"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if config["device"] == "cuda" else torch.device("cpu")
    worker = loop.Worker(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    heart = heartbeat.Heart(
        actor.beat.remote,
        rank=worker.rank,
        world_size=worker.world_size,
        node_id=ray.get_runtime_context().get_node_id(),
        address=ray.util.get_node_ip_address(),
        timeout_seconds=recipe.cluster.hang_timeout_seconds,
    )
    host = RayHost(
        actor=actor,
        heart=heart,
        rank=worker.rank,
        location=config["location"],
        keep_checkpoints=recipe.keep_checkpoints,
        storage_timeout_seconds=recipe.cluster.storage_timeout_seconds,
    )
    try:
        with host.held, heart:
            return loop.train(recipe, worker, host)
    except (InputError, loop.BrokenTraining) as error:  # it would be the same after a restart
        ray.get(actor.give_up.remote(error))
        raise
    finally:
        actor.gone.remote(worker.rank)


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
    device = cluster.choose_device(recipe.cluster.device, recipe.cluster.least_workers)
    cluster.require_resources(recipe.cluster, device)

    run.directory.mkdir(parents=True, exist_ok=True)
    run.fetch()
    (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    run.publish()
    actor: Any = (
        ray.remote(RunActor)
        .options(num_cpus=0, label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()})
        .remote(
            lambda: run.recorder(recipe, tracking_uri, fingerprint=fingerprint, kind=kind, parent=parent),
            recipe.cluster.hang_timeout_seconds,
        )
    )
    recorder = RemoteRecorder(actor)
    if tags:
        recorder.tags(tags)
    least, most = recipe.cluster.least_workers, recipe.cluster.workers
    scaling: dict[str, Any] = {
        "num_workers": most if least == most else (least, most),
        "elastic_resize_monitor_interval_s": recipe.cluster.resize_seconds,
        "use_gpu": device == "cuda",
        "resources_per_worker": {"CPU": recipe.cluster.cpus_per_worker}
        | ({"GPU": 1} if device == "cuda" else {}),
    }
    filesystem, path = checkpoints.open_storage(run.location)
    trainer = TorchTrainer(
        worker_loop,  # type: ignore[arg-type]  # here and below the checker sees Ray Train V1's classes
        train_loop_config={
            "recipe": to_tree(recipe),
            "actor": actor,
            "device": device,
            "location": run.location,
        },
        torch_config=cluster.NodeInterfaceTorchConfig(),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=run.name,
            storage_path=f"{path}/.ray",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=recipe.cluster.max_failures),
            callbacks=[Restarts(actor)],  # type: ignore[list-item]
        ),
    )
    status = "FAILED"
    try:
        step, stopped = _fit(trainer, recorder, recipe, run, watch, device)
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
    unique = name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run = Run.new(unique, home=home, storage=storage)
    return run, recipe


def _fit(
    trainer: TorchTrainer,
    recorder: RemoteRecorder,
    recipe: Recipe,
    run: Run,
    watch: Callable[[str, int, RemoteRecorder], None] | None,
    device: Literal["cpu", "cuda"],
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
            latest = ray.get(actor.latest.remote())
            progress.show(latest.status, latest.warnings, stopping=bool(signals))
            if latest.hung is not None:
                _end_hung(actor, *latest.hung)
            elif latest.quiet_seconds > QUIET_SECONDS and (lack := cluster.shortage(recipe.cluster, device)):
                actor.warn.remote(f"the run waits for nodes: it needs {lack}")
            if watch is not None:
                for checkpoint in checkpoints.listed(run.location):
                    if checkpoint not in watched:
                        watched.add(checkpoint)
                        watch(checkpoint, checkpoints.step_of(checkpoint), recorder)
    if final := ray.get(actor.given_up.remote()):
        raise final
    if "error" in result:
        raise result["error"]
    step = result["value"].return_value
    return step, bool(signals) and not _complete(run, step, recipe)


def _end_hung(actor: Any, beat: heartbeat.Beat, line: str) -> None:
    if heartbeat.end(beat):
        actor.warn.remote(f"{line}: ended, and the group restarts (cluster.hang_timeout_seconds)")
    actor.gone.remote(beat.rank)


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
