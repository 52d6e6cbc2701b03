"""The training loop. It runs in one process without Ray, and unchanged as a Ray Train worker.

Everything random is addressed by (seed, step) or (seed, epoch, sample), so a run that resumes at step s is the run
that never stopped, and the data and kept counts of a step do not depend on the number of workers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mergevq import rng
from mergevq.ema import Ema
from mergevq.errors import InputError
from mergevq.layers import set_recompute
from mergevq.training.protocol import Output, Training
from mergevq_platform import optim
from mergevq_platform.meter import Meter, Reporter
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.recorded_passes import MicroBatchPasses, RecordedPasses
from mergevq_platform.storage import checkpoints, forks
from mergevq_platform.storage.checkpoints import TrainingState
from mergevq_platform.tasks.task import Samples, Worker, task_of

NOTICE_SECONDS = 5.0  # how often the workers ask whether one of their nodes is about to be taken away
MEETING_TIMEOUT = timedelta(days=1)  # who waits for a slow save is watched by the host, not by a time-out


class Host(Reporter, Protocol):
    """The surroundings of the loop: one process alone, or Ray Train. Also takes the meter's reports."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint, the same on all ranks, as a local directory."""

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint that `write(directory)` fills; rank 0 calls it, the others wait."""

    def stop_requested(self) -> bool:
        """Whether someone asked the run to stop; read by rank 0 at step boundaries."""

    def losing_node(self) -> bool:
        """Whether notice was given since the last call that a node will be taken away. Called by every rank, the same on all."""

    def at(self, step: int, doing: str) -> None:
        """Report the phase that this rank begins. Called by every rank, very often."""


def train(recipe: ResolvedRecipe, worker: Worker, host: Host, until: int | None = None) -> int:
    """Train until the recipe's last step, step `until` or a stop request; returns the number of steps done."""
    torch.manual_seed(recipe.seed)
    optim.prefer_speed(worker.device)
    task = task_of(recipe)
    samples = task.open_data(recipe)
    total_steps, _ = length(recipe, samples)
    last_step = min(total_steps, until or total_steps)
    if worker.rank == 0 and (without := task.unlabelled(samples)):
        host.warn(
            f"{without:,} of the {samples.rows:,} images of '{recipe.data.train_split}' have no label: they are not used for classification"
        )

    training = build(recipe, samples).to(worker.device).to(memory_format=optim.layout(recipe))
    state = TrainingState(
        training,
        Ema(training.model(), recipe.ema_decay),
        optim.make_optimizers(recipe, training),
        optim.loss_scaler(recipe, worker.device),
    )
    if worker.rank == 0:
        for note in training.notes():
            host.warn(note)
    initial = begin(recipe, samples, state, worker, host)
    if recipe.compile:
        task.compile(training)
    phases = distribute(training, worker)
    control: Any = dist.new_group(backend="gloo", timeout=MEETING_TIMEOUT) if worker.world_size > 1 else None
    autocast = optim.autocast(recipe, worker.device)
    meter = Meter(recipe, task, worker, host, total_steps, state.scaler, control)
    recorded = RecordedPasses(recipe, training, passes_of(phases, autocast, state.scaler), worker, host.warn)
    meter.flops = recorded.flops.per_image

    def save() -> None:
        meter.flush()
        state.bad_images = sorted(stream.known_bad)
        host.at(state.step, "saving")
        if worker.rank == 0:
            host.save(
                state.step,
                lambda directory: checkpoints.write(
                    directory, state, recipe, fingerprint=samples.fingerprint
                ),
            )
        if control is not None:
            dist.barrier(group=control)

    feed = task.open_feed(recipe, samples, worker)

    def validate() -> None:
        meter.flush()
        host.at(state.step, "validating")
        values = feed.validate(state.ema.averaged)
        if worker.rank == 0:
            host.record(state.step, {f"val/{name}": value for name, value in values.items()})

    if initial is not None and recipe.evaluation.every:
        validate()  # where the initial model stands
    with feed.stream(state.step, state.bad_images) as stream:
        asked_at = time.monotonic()
        steps_of: Counter[int | None] = Counter()
        batches = iter(stream)
        while state.step < last_step:
            step = state.step
            host.at(step, "waiting for data")
            micro_batches = meter.waiting(lambda: next(batches))
            torch.manual_seed(rng.step_seed(recipe.seed, step, worker.rank))  # dropout, drop path
            keep = task.draw_keep(recipe.seed, step)
            optim.set_learning_rates(recipe, training, state.optimizers, step, total_steps)

            losses: list[tuple[float, dict[str, Tensor]]] = []
            for index, micro_batch in enumerate(micro_batches):
                host.at(step, "compiling" if recipe.compile and steps_of[keep] < 3 else "training")
                batch = feed.batch(micro_batch, keep)
                # The ranks' gradients are averaged: a rank with more samples than the others must weigh more.
                share = worker.world_size * len(batch["label"]) / recipe.global_batch
                last = index == len(micro_batches) - 1
                losses.append((share, recorded(batch, keep, step, share, last)))
            steps_of[keep] += 1
            norms = optim.update(recipe, training, state, keep_gradients=recorded.enabled)
            training.after_step(step)
            state.ema.update()
            state.step += 1

            meter.add(state.step, keep, losses, norms, stream)
            first = worker.rank == 0
            stopping, asking = _agreed(
                [first and host.stop_requested(), first and time.monotonic() - asked_at > NOTICE_SECONDS],
                control,
            )
            leaving = asking and host.losing_node()
            if asking:
                asked_at = time.monotonic()
            if recipe.evaluation.every and state.step % recipe.evaluation.every == 0:
                validate()
            due = state.step % recipe.checkpoint_every == 0 or state.step == last_step
            if due or stopping or leaving:
                save()
            if stopping:
                break
    return state.step


def length(recipe: Recipe, samples: Samples) -> tuple[int, int]:
    """(optimizer steps of the whole run, steps of an epoch)."""
    steps_per_epoch = samples.rows // recipe.global_batch
    if steps_per_epoch == 0:
        raise InputError(
            f"{samples.path} has {samples.rows} training samples, fewer than global_batch {recipe.global_batch}: lower global_batch"
        )
    if recipe.steps is not None:
        return recipe.steps, steps_per_epoch
    assert recipe.epochs is not None
    return max(1, round(recipe.epochs * steps_per_epoch)), steps_per_epoch


def build(recipe: Recipe, samples: Samples) -> Training:
    """The recipe's training on the CPU, initialised from the seed (and from given weights)."""
    training = task_of(recipe).build(recipe, samples)
    set_recompute(training, recipe.recompute)  # whatever task: what takes no gradient keeps nothing anyway
    return training


def begin(
    recipe: ResolvedRecipe, samples: Samples, state: TrainingState, worker: Worker, host: Host
) -> list[str] | None:
    """Load the state that training goes on from: the run's own, else that of its trunk, else of a trained model.

    Returns the remarks on that model; None where there is none of it.
    """
    if latest := host.latest():
        checkpoints.restore(latest, state)
        if checkpoints.about(latest)["data_fingerprint"] != samples.fingerprint:
            host.warn(
                f"the data at {samples.path} are not those that this run began with (fingerprint differs)"
            )
        return None
    if recipe.fork is not None:
        forks.restore(recipe.fork, state, samples.fingerprint)
        return None
    remarks = task_of(recipe).begin(state.training, state.ema.averaged)
    if worker.rank == 0:
        for remark in remarks or ():
            host.warn(remark)
    return remarks


def distribute(training: Training, worker: Worker) -> dict[str, nn.Module]:
    """The phases, wrapped so that gradients are averaged over ranks."""
    if worker.world_size == 1:
        return dict(training.phases.items())
    device_ids = [worker.device.index or 0] if worker.device.type == "cuda" else None
    return {
        name: DistributedDataParallel(
            phase, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        for name, phase in training.phases.items()
    }


def accumulate(
    phases: dict[str, nn.Module],
    batch: dict[str, Tensor],
    keep: int | None,
    step: int,
    share: float,
    last: bool,
    autocast: Callable,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """Forward and backward of every phase on one micro-batch; gradients meet across ranks at the `last` one."""
    carry: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for phase in phases.values():
        with ExitStack() as stack:
            if not last and isinstance(phase, DistributedDataParallel):
                stack.enter_context(phase.no_sync())
            with autocast():
                output: Output = phase(batch, carry, keep=keep, step=step)
            total = output.total * share
            (scaler.scale(total) if scaler else total).backward()
        carry, losses = output.carry, losses | output.losses
    return losses


def passes_of(
    phases: dict[str, nn.Module], autocast: Callable, scaler: torch.amp.GradScaler | None
) -> MicroBatchPasses:
    """`accumulate` of these phases."""

    def passes(
        batch: dict[str, Tensor], keep: int | None, step: int, share: float, last: bool
    ) -> dict[str, Tensor]:
        return accumulate(phases, batch, keep, step, share, last, autocast, scaler)

    return passes


def _agreed(flags: list[bool], group: Any) -> list[bool]:
    # Rank 0's word, over gloo so that a GPU need not be waited for.
    if group is None:
        return flags
    word = torch.tensor(flags, dtype=torch.uint8)
    dist.broadcast(word, src=0, group=group)
    return [bool(flag) for flag in word]
