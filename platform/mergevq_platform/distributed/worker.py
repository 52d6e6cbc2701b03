"""The training loop as a Ray Train worker."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero

from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform.distributed import failures
from mergevq_platform.distributed.heartbeat import HeartbeatSender
from mergevq_platform.distributed.yielding import give_way_on_cpus
from mergevq_platform.meter import BrokenTraining
from mergevq_platform.recipe import ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.task import Worker

LONGEST_PAUSE_SECONDS = 30.0  # between two tries to reach the storage


@dataclass
class RayHost:
    """A Ray Train worker as the loop's host."""

    actor: Any
    heartbeats: HeartbeatSender
    rank: int
    location: str  # of the run's checkpoints, a path or URI
    keep_checkpoints: int
    storage_timeout_seconds: float
    restarted: bool
    held: ExitStack = field(default_factory=ExitStack)
    stop_reply: Any = None
    stopping: bool = False
    notice: Any = None

    def latest(self) -> Path | None:
        """The newest whole checkpoint in the run's storage: rank 0 finds it, all others take the same.

        Raises `InputError` where the storage is not the one that the driver sees, or holds only damaged checkpoints.
        """
        node = ray.util.get_node_ip_address()
        patience = (
            self.storage_timeout_seconds if self.restarted else 0.0
        )  # the driver has just written there
        self._retry(self._storage_error, f"the node {node} does not see the run in {self.location}", patience)
        directory = None
        if self.rank == 0 and checkpoints.listed(self.location):
            directory = self.held.enter_context(
                checkpoints.newest(self.location, say=self.warn, files=checkpoints.RESUME)
            )
        name = broadcast_from_rank_zero(directory.name if directory else None)
        if name is not None and directory is None:
            there = checkpoints.inside(self.location, name)
            directory = self.held.enter_context(
                checkpoints.newest(there, say=self.warn, files=checkpoints.RESUME)
            )
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
        """Write and upload; the journal holds every earlier metric first. While storage is full or gone, training waits.

        Ray Train is not told of checkpoints: its controller would end the run when storage fails it once. Raises
        `InputError` when the wait takes longer than the recipe allows.
        """
        with tempfile.TemporaryDirectory(prefix="mergevq-") as temporary:
            directory = Path(temporary) / checkpoints.directory_name(step)
            write(directory)
            what = f"step {step}: the checkpoint cannot be saved in {self.location}"
            self._retry(lambda: self._upload_error(directory), what, self.storage_timeout_seconds)

    def _retry(self, problem: Callable[[], str | None], what: str, patience_seconds: float) -> None:
        began, pause = time.monotonic(), 1.0
        while reason := problem():
            waited = time.monotonic() - began
            if waited >= patience_seconds:
                raise InputError(
                    f"{what} ({reason}), for {waited:.0f} s now: --storage must be a path or URI that all nodes share, with "
                    "free space; fix that, then go on with --resume"
                )
            self.warn(
                f"{what} ({reason}); training waits, and tries again for {patience_seconds:.0f} s "
                "(cluster.storage_timeout_seconds)"
            )
            self.heartbeats.at(
                self.heartbeats.beat().step, "saving"
            )  # a wait that the run knows of is no hang
            time.sleep(min(pause, patience_seconds - waited))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _storage_error(self) -> str | None:
        try:
            filesystem, path = checkpoints.open_storage(self.location)
            found = filesystem.get_file_info(f"{path}/recipe.yaml").type
        except OSError as error:
            return failures.one_line(error)
        return None if found == pyarrow.fs.FileType.File else "no recipe.yaml there"

    def _upload_error(self, directory: Path) -> str | None:
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
        """Tell the heartbeat sender."""
        self.heartbeats.at(step, doing)


class WorkerLoopConfig(TypedDict):
    """The arguments of a worker, from the driver."""

    recipe: ResolvedRecipe
    actor: Any  # of `run_actor.RunActor`
    device: Literal["cpu", "cuda"]
    location: str  # of the run's checkpoints, a path or URI
    cache: Path  # of measurements; where nodes share no home, each has its own
    until: int | None  # the step after which training ends, if that comes before the recipe's last
    yields: bool  # to urgent jobs


def worker_loop(config: WorkerLoopConfig) -> int | None:
    """Run one Ray Train worker; returns the steps done, None where a worker before gave up."""
    actor = config["actor"]
    final, failed = ray.get(actor.standing.remote())
    if final is not None:
        return None
    recipe = config["recipe"]
    if config["yields"]:
        give_way_on_cpus()
    context = ray.train.get_context()
    device = ray.train.torch.get_device() if config["device"] == "cuda" else torch.device("cpu")
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        cache=config["cache"],
        measuring=lambda done, images: actor.progress.remote({"measured": done, "images": images}),
    )
    heartbeats = HeartbeatSender(
        actor.beat.remote,
        rank=worker.rank,
        world_size=worker.world_size,
        node_id=ray.get_runtime_context().get_node_id(),
        address=ray.util.get_node_ip_address(),
        timeout_seconds=recipe.cluster.hang_timeout_seconds,
    )
    host = RayHost(
        actor=actor,
        heartbeats=heartbeats,
        rank=worker.rank,
        location=config["location"],
        keep_checkpoints=recipe.keep_checkpoints,
        storage_timeout_seconds=recipe.cluster.storage_timeout_seconds,
        restarted=failed > 0,
    )
    try:
        with host.held, heartbeats:
            return loop.train(recipe, worker, host, config["until"])
    except (InputError, BrokenTraining) as error:  # it would be the same after a restart
        ray.get(actor.give_up.remote(error))
        raise
    finally:
        actor.gone.remote(worker.rank)
