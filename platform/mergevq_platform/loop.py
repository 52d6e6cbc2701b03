"""The training loop. It runs in one process without Ray, and unchanged as a Ray Train worker.

Everything random is addressed by (seed, step) or (seed, epoch, sample), so a run that resumes at step s is the run
that never stopped, and the data and kept counts of a step do not depend on the number of workers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mergevq import schedules
from mergevq.ema import Ema
from mergevq.errors import InputError
from mergevq.generation import build_generator
from mergevq.initialisation import select_weights
from mergevq.layers import compute_again
from mergevq.tokenizer import MergeVQ
from mergevq.training.classifier import ClassifierTraining, StandInClassifier
from mergevq.training.finetune import FineTuneTraining
from mergevq.training.generator import GeneratorTraining
from mergevq.training.probe import ProbeTraining
from mergevq.training.protocol import Output, Training
from mergevq.training.recovery import RecoveryTraining
from mergevq.training.tokenizer import build_training
from mergevq_platform.data import Dataset, open_dataset
from mergevq_platform.evaluable import require_evaluable
from mergevq_platform.feeding import (
    Samples,
    Worker,
    draw_keep,
    open_feed,
    open_samples,
    pinned,
    require_codes,
    trained_keeps,
)
from mergevq_platform.frozen_tokenizer import classified_tokenizer
from mergevq_platform.recipe import (
    ClassifierTask,
    FineTuneTask,
    GeneratorTask,
    OptimizerConfig,
    ProbeTask,
    Recipe,
    RecoveryTask,
    TokenizerTask,
)
from mergevq_platform.recovering import starting_tokenizer, writing_generator
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.checkpoints import TrainingState
from mergevq_platform.tracking.system import SystemSampler

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EARLY_STEPS = 100  # before these, few codes in use mean nothing
LOW_CODE_USAGE = 0.05  # codebook entropy below this share of its maximum is worth a warning
NOTICE_SECONDS = 5.0  # how often the workers ask whether one of their nodes is about to be taken away
MEETING_TIMEOUT = timedelta(days=1)  # who waits for a slow save is watched by the host, not by a time-out


class Host(Protocol):
    """What the loop needs from whoever runs it: one process alone, or Ray Train."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint, the same on all ranks, as a local directory."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """Rank 0's metrics of `step`."""

    def progress(self, status: dict[str, float]) -> None:
        """Where rank 0 is; for the terminal."""

    def warn(self, message: str) -> None:
        """Something the user should know, said once."""

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint, which `write(directory)` fills; rank 0 calls it, the others wait for it."""

    def stop_requested(self) -> bool:
        """Whether someone asked the run to stop; read by rank 0 at step boundaries."""

    def losing_node(self) -> bool:
        """Whether notice was given, since the last call, that a node will be taken away: every rank calls it, and hears the same."""

    def at(self, step: int, doing: str) -> None:
        """This rank begins something; every rank calls it, very often."""


class BrokenTraining(RuntimeError):
    """A loss or gradient is not finite; the message names the step and the term."""


def train(recipe: Recipe, worker: Worker, host: Host) -> int:
    """Train until the recipe's last step or a stop request; returns the number of steps done."""
    torch.manual_seed(recipe.seed)
    if worker.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    recipe = pinned(recipe)
    samples = open_samples(recipe)
    total_steps, _ = length(recipe, samples)
    if worker.rank == 0 and (without := unlabelled(recipe, samples)):
        host.warn(
            f"{without:,} of the {samples.rows:,} images of '{recipe.data.train_split}' have no label: they teach the classes nothing"
        )

    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    training = build(recipe, samples).to(worker.device).to(memory_format=layout)
    state = TrainingState(
        training,
        Ema(training.model(), recipe.ema_decay),
        make_optimizers(recipe, training),
        _scaler(recipe, worker),
    )
    if worker.rank == 0:
        for note in training.notes():
            host.warn(note)
    if latest := host.latest():
        checkpoints.restore(latest, state)
        if checkpoints.about(latest)["data_fingerprint"] != samples.fingerprint:
            host.warn(
                f"the data at {samples.path} are not those that this run began with (fingerprint differs)"
            )
    if recipe.compile:
        compile_model(recipe, training)
    phases = distribute(training, worker)
    control: Any = dist.new_group(backend="gloo", timeout=MEETING_TIMEOUT) if worker.world_size > 1 else None
    autocast = (
        nullcontext
        if recipe.precision == "float32"
        else lambda: torch.autocast(worker.device.type, PRECISIONS[recipe.precision])
    )
    meter = Meter(worker, host, recipe, total_steps, state.scaler, control)

    def save() -> None:
        meter.flush()
        state.bad_pictures = sorted(stream.known_bad)
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

    feed = open_feed(recipe, samples, worker)
    with feed.stream(state.step, state.bad_pictures) as stream:
        saved_at, asked_at = state.step, time.monotonic()
        compiled: set[int | None] = set()
        batches = iter(stream)
        while state.step < total_steps:
            step = state.step
            host.at(step, "waiting for data")
            micro_batches = meter.waiting(lambda: next(batches))
            torch.manual_seed(address(recipe.seed, step, worker.rank))  # dropout and drop path of this step
            keep = draw_keep(recipe, step)
            set_learning_rates(recipe, training, state.optimizers, step, total_steps)

            losses: list[tuple[float, dict[str, Tensor]]] = []
            for index, micro_batch in enumerate(micro_batches):
                host.at(step, "compiling" if recipe.compile and keep not in compiled else "training")
                batch = feed.batch(micro_batch, keep)
                # The ranks' gradients are averaged: a rank with more samples than the others must weigh more.
                share = worker.world_size * len(batch["label"]) / recipe.global_batch
                last = index == len(micro_batches) - 1
                losses.append(
                    (share, accumulate(phases, batch, keep, step, share, last, autocast, state.scaler))
                )
            compiled.add(keep)
            norms = update(recipe, training, state)
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
                meter.flush()
                host.at(state.step, "validating")
                values = feed.validate(state.ema.averaged)
                if worker.rank == 0:
                    host.record(state.step, {f"val/{name}": value for name, value in values.items()})
            due = state.step % recipe.checkpoint_every == 0 or state.step == total_steps
            if due or stopping or leaving:
                save()
                saved_at = state.step
            if stopping:
                break
        if saved_at != state.step or state.step == 0:
            save()
    return state.step


def address(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every (seed, step, rank)."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def length(recipe: Recipe, samples: Samples) -> tuple[int, int]:
    """(optimizer steps of the whole run, steps of an epoch)."""
    steps_per_epoch = samples.rows // recipe.global_batch
    if steps_per_epoch == 0:
        raise InputError(
            f"data.path has {samples.rows} pictures, fewer than global_batch {recipe.global_batch}: lower global_batch"
        )
    if recipe.steps is not None:
        return recipe.steps, steps_per_epoch
    assert recipe.epochs is not None
    return max(1, round(recipe.epochs * steps_per_epoch)), steps_per_epoch


def preflight(recipe: Recipe, *, evaluated: bool = True) -> Samples:
    """Open the data and build the model as every worker will, so that what is missing is said before a run starts.

    And open what the evaluation at the end will, if there is one. Returns the training split.
    """
    if isinstance(recipe.task, RecoveryTask):
        recipe = pinned(recipe)
    samples = open_samples(recipe)
    length(recipe, samples)
    if isinstance(recipe.task, GeneratorTask):
        require_codes(recipe)
    if recipe.evaluation.every:
        open_dataset(recipe.data.path, recipe.data.evaluation_split, recipe.data.reading)
    build(recipe, samples)
    if evaluated:
        require_evaluable(recipe)
    return samples


def build(recipe: Recipe, samples: Samples) -> Training:
    """The recipe's training on the CPU, initialised from the seed (and from given weights)."""
    training = _built(recipe, samples)
    compute_again(training, recipe.recompute)  # whatever task: what takes no gradient keeps nothing anyway
    return training


def _built(recipe: Recipe, samples: Samples) -> Training:
    match recipe.task:
        case TokenizerTask() as task:
            tokenizer = initial_tokenizer(task)
            return build_training(task.losses, tokenizer, seed=recipe.seed, key="task.losses")
        case ClassifierTask() as task:
            _require_classes(samples, task.model.classes, "a classifier")
            return ClassifierTraining(StandInClassifier(task.model))
        case FineTuneTask() as task:
            tokenizer = judged_tokenizer(recipe, task, samples)
            return FineTuneTraining(tokenizer, task.settings, classes=samples.num_classes)
        case ProbeTask() as task:
            tokenizer = judged_tokenizer(recipe, task, samples)
            return ProbeTraining(tokenizer, task.settings, classes=samples.num_classes)
        case RecoveryTask() as task:
            tokenizer, generator = starting_tokenizer(task), writing_generator(task)
            _require_size(recipe, tokenizer, task.tokenizer)
            if generator is not None and generator.config.classes != samples.num_classes:
                raise InputError(
                    f"task.generator: {task.generator} knows {generator.config.classes} classes but {samples.path} has "
                    f"{samples.num_classes}: give the pictures that it learnt from"
                )
            return RecoveryTraining(tokenizer, task.settings, generator)
        case GeneratorTask() as task:
            _require_classes(samples, task.model.classes, "a class-conditional generator")
            return GeneratorTraining(build_generator(task.model), task.losses)


def unlabelled(recipe: Recipe, samples: Samples) -> int:
    """How many training images a task of classes cannot learn from: its losses leave out those without a label."""
    classes = isinstance(recipe.task, ClassifierTask | FineTuneTask | ProbeTask)
    return samples.unlabelled if classes and isinstance(samples, Dataset) else 0


def initial_tokenizer(task: TokenizerTask) -> MergeVQ:
    """The tokenizer before its first step, initialised by PyTorch's generator (and from given weights)."""
    tokenizer = MergeVQ(task.model)
    if task.initial_weights:
        select_weights(tokenizer, task.initial_weights, sha256=task.initial_weights_sha256)
    return tokenizer


def judged_tokenizer(recipe: Recipe, task: FineTuneTask | ProbeTask, samples: Samples) -> MergeVQ:
    """The tokenizer whose features answer for classes. Raises `InputError` for one that does not fit the pictures."""
    if not samples.labelled:
        raise InputError(f"{samples.path} has no labels: nothing can be classified on it")
    tokenizer = classified_tokenizer(task)
    _require_size(recipe, tokenizer, task.tokenizer)
    return tokenizer


def _require_size(recipe: Recipe, tokenizer: MergeVQ, location: str) -> None:
    size = tokenizer.config.image_size
    if recipe.data.views.image_size != size:
        raise InputError(
            f"data.views.image_size is {recipe.data.views.image_size} but {location} works at {size}: make them equal"
        )


def _require_classes(samples: Samples, classes: int, what: str) -> None:
    if not samples.labelled:
        raise InputError(f"{samples.path} has no labels: {what} cannot be trained on it")
    if classes != samples.num_classes:
        raise InputError(
            f"task.model.classes is {classes} but {samples.path} has {samples.num_classes} classes: make them equal"
        )


def compile_model(recipe: Recipe, training: Training) -> None:
    """Compile in place. A tokenizer's blocks get one graph for every (layer, kept count) of the recipe's menu."""
    if isinstance(recipe.task, TokenizerTask | RecoveryTask):
        training.model().compile(kept_counts=len(trained_keeps(recipe)))
    else:
        training.model().compile()


def make_optimizers(recipe: Recipe, training: Training) -> dict[str, torch.optim.Optimizer]:
    """One AdamW per phase, with the groups that its training makes."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name in training.phases:
        config = optimizer_config(recipe, name)
        groups = [
            {
                "params": group.parameters,
                "weight_decay": config.weight_decay if group.decays else 0.0,
                "rate_factor": group.rate_factor,
            }
            for group in training.parameter_groups(name)
        ]
        optimizers[name] = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    return optimizers


def optimizer_config(recipe: Recipe, phase: str) -> OptimizerConfig:
    """The settings of a phase's optimizer."""
    return (
        recipe.discriminator_optimizer or recipe.optimizer if phase == "discriminator" else recipe.optimizer
    )


def set_learning_rates(
    recipe: Recipe,
    training: Training,
    optimizers: dict[str, torch.optim.Optimizer],
    step: int,
    total_steps: int,
) -> None:
    """Learning rates as a pure function of the step; 0 for a phase that rests, which weight decay would move."""
    for name, optimizer in optimizers.items():
        config = optimizer_config(recipe, name)
        rate = config.learning_rate * schedules.scale(config.schedule, step, total_steps)
        if training.rests(name, step):
            rate = 0.0
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]


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


def update(recipe: Recipe, training: Training, state: TrainingState) -> dict[str, Tensor]:
    """Clip, step, clear; returns the gradient norm of each phase."""
    norms: dict[str, Tensor] = {}
    for name, phase in training.phases.items():
        optimizer = state.optimizers[name]
        parameters = [p for p in phase.parameters() if p.requires_grad]
        if state.scaler:
            state.scaler.unscale_(optimizer)
        clip = optimizer_config(recipe, name).clip_norm
        norm = nn.utils.clip_grad_norm_(parameters, clip if clip is not None else float("inf"), foreach=True)
        norms[f"{name}_gradient_norm"] = norm
        if state.scaler:
            state.scaler.step(optimizer)
        elif recipe.on_nan == "stop" or bool(norm.isfinite()):  # "skip" reads the norm on the host, each step
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if state.scaler:
        state.scaler.update()
    return norms


class Meter:
    """Losses of the steps since the last report, kept on the device; reduced over ranks at the logging cadence."""

    def __init__(
        self,
        worker: Worker,
        host: Host,
        recipe: Recipe,
        total_steps: int,
        scaler: torch.amp.GradScaler | None = None,
        control: Any = None,
    ) -> None:
        self.control = control
        self.stream: Any = None
        self.worker, self.host, self.recipe, self.total_steps = worker, host, recipe, total_steps
        self.scaler = scaler
        self.rows: list[tuple[int, int | None, Tensor]] = []
        self.names: list[str] = []
        self.started = time.monotonic()
        self.waited = 0.0
        self.warned: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.system = SystemSampler(worker.device.index) if worker.rank == 0 else None

    def waiting(self, fetch: Callable) -> list[dict[str, Tensor]]:
        """Fetch the next data and count the time it took."""
        began = time.monotonic()
        batches = fetch()
        self.waited += time.monotonic() - began
        return batches

    def add(
        self,
        step: int,
        keep: int | None,
        losses: list[tuple[float, dict[str, Tensor]]],
        norms: dict[str, Tensor],
        stream: Any,
    ) -> None:
        """Remember one step, whose micro-batches have (share of the step, losses); report when the cadence says so."""
        self.stream = stream
        names = list(losses[0][1])
        columns = [*names, *norms, "bad_pictures"]
        assert not self.rows or columns == self.names, (
            "losses of one training have the same names at every step"
        )
        self.names = columns
        parts = [
            share * torch.stack([part[name].detach().float() for name in names]) for share, part in losses
        ]
        extra = [norm.detach().float() for norm in norms.values()]
        extra.append(parts[0].new_tensor(float(len(stream.new_bad))))
        self.rows.append((step, keep, torch.cat([torch.stack(parts).sum(0), torch.stack(extra)])))
        if step % self.recipe.log_every == 0 or step == self.total_steps:
            self.flush()

    def flush(self) -> None:
        """Reduce the remembered steps over ranks, check them, and hand them to the host (rank 0)."""
        if not self.rows:
            return
        table = torch.stack([row for *_, row in self.rows])
        if self.worker.world_size > 1:
            dist.all_reduce(table)
            table[:, :-1] /= self.worker.world_size  # bad pictures are a sum
        values = table.cpu()
        self._share_bad_pictures(values)
        steps, seconds, waited = len(self.rows), time.monotonic() - self.started, self.waited
        rows, self.rows, self.started, self.waited = self.rows, [], time.monotonic(), 0.0
        self._check_finite(rows, values)
        if self.worker.rank:
            return
        self._tell_of_left_out(rows, values)
        scale = {"loss_scale": self.scaler.get_scale()} if self.scaler else {}
        for (step, keep, _), row in zip(rows, values.tolist(), strict=True):
            if step % self.recipe.log_every and step != self.total_steps:
                continue
            named = dict(zip(self.names, row, strict=True))
            if keep is not None:
                named["kept_tokens"] = float(keep)
            rate = schedules.scale(self.recipe.optimizer.schedule, step - 1, self.total_steps)
            named["learning_rate"] = self.recipe.optimizer.learning_rate * rate
            if self.scaler:  # a step that it left out has no norm
                named = {name: value for name, value in named.items() if math.isfinite(value)} | scale
            self.host.record(step, {f"train/{name}": value for name, value in named.items()})
        status = dict(zip(self.names, values[-1].tolist(), strict=True))
        last = rows[-1][0]
        self._warn_of_low_usage(last, status)
        speed = {
            "images_per_second": steps * self.recipe.global_batch / seconds,
            "waiting_share": min(1.0, waited / seconds),
            "seconds_per_step": seconds / steps,
            "workers": float(self.worker.world_size),
        }
        assert self.system is not None
        measured = {f"system/{name}": value for name, value in speed.items()} | self.system.sample()
        self.host.record(last, measured)
        self.host.progress({"step": last, "total_steps": self.total_steps} | speed | status)

    def _share_bad_pictures(self, values: Tensor) -> None:
        """Count the bad pictures of all ranks since the run began, and tell every rank which they are."""
        new, before = bool(values[-1, -1]), len(self.stream.known_bad)
        values[:, -1] += before
        if not new:
            return
        found = [self.stream.new_bad]
        if self.worker.world_size > 1:
            found = [[] for _ in range(self.worker.world_size)]
            dist.all_gather_object(found, self.stream.new_bad, group=self.control)
        self.stream.share([item for rank in found for item in rank])

    def _check_finite(self, rows: list, values: Tensor) -> None:
        if self.recipe.on_nan == "skip":
            return
        if self.scaler:
            if self.scaler.get_scale() < 1:
                raise BrokenTraining(
                    f"step {rows[-1][0]}: gradients overflow float16 at every loss scale; the last checkpoint is from before. "
                    "Set precision=bfloat16 or float32, or lower optimizer.learning_rate"
                )
            # Norms overflow while the scaler looks for the scale: it leaves such steps out.
            norms = torch.tensor([name.endswith("_gradient_norm") for name in self.names])
            values = values.masked_fill(norms, 0.0)
        if bool(values.isfinite().all()):
            return
        row, column = (int(i) for i in (~values.isfinite()).nonzero()[0])
        raise BrokenTraining(
            f"step {rows[row][0]}: '{self.names[column]}' is {values[row, column].item()}; the last checkpoint is from before. "
            "Lower optimizer.learning_rate, set optimizer.clip_norm, or go on over such steps with on_nan=skip"
        )

    def _tell_of_left_out(self, rows: list, values: Tensor) -> None:
        """With on_nan=skip, say for each phase that steps were left out: at the first, the tenth, the hundredth."""
        if self.recipe.on_nan != "skip" or self.scaler:
            return
        for column, name in enumerate(self.names):
            if not name.endswith("_gradient_norm"):
                continue
            phase = name.removesuffix("_gradient_norm")
            for (step, *_), norm in zip(rows, values[:, column].tolist(), strict=True):
                if math.isfinite(norm):
                    continue
                self.left_out[phase] += 1
                count = self.left_out[phase]
                if count in (1, 10, 100) or count % 1000 == 0:
                    so_far = f", {count} steps by now" if count > 1 else ""
                    self.host.warn(
                        f"step {step}: the gradient of the {phase} is not finite: its step was left out "
                        f"(on_nan=skip){so_far}; lower optimizer.learning_rate if this goes on"
                    )

    def _warn_of_low_usage(self, step: int, status: dict[str, float]) -> None:
        task = self.recipe.task
        early = step < EARLY_STEPS or "usage" in self.warned
        if early or not isinstance(task, TokenizerTask) or task.model.quantizer.kind != "lfq":
            return
        highest = task.model.quantizer.max_entropy
        if status["codebook_entropy"] < LOW_CODE_USAGE * highest:
            self.warned.add("usage")
            self.host.warn(
                f"step {step}: the codebook entropy is {status['codebook_entropy']:.2f} nats of at most {highest:.2f}, few codes "
                "are used; raise task.losses.entropy.weight or lower optimizer.learning_rate"
            )


def _scaler(recipe: Recipe, worker: Worker) -> torch.amp.GradScaler | None:
    return torch.amp.GradScaler(worker.device.type) if recipe.precision == "float16" else None


def _agreed(flags: list[bool], group: Any) -> list[bool]:
    # Rank 0's word, over gloo so that a GPU need not be waited for.
    if group is None:
        return flags
    word = torch.tensor(flags, dtype=torch.uint8)
    dist.broadcast(word, src=0, group=group)
    return [bool(flag) for flag in word]
