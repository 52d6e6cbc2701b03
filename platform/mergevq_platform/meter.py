"""Measurements of training: losses, gradient norms and speed, reduced over ranks and checked at the logging cadence."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mergevq import schedules
from mergevq_platform.flops import stated_peak
from mergevq_platform.recipe import Recipe
from mergevq_platform.tasks.task import Task, Worker
from mergevq_platform.tracking.system import SystemSampler

EARLY_STEPS = 100  # before these, losses tell little of what is to come


class Reporter(Protocol):
    """Receiver of rank 0's measurements."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """Record rank 0's metrics of `step`."""

    def progress(self, status: dict[str, float]) -> None:
        """Show rank 0's progress in the terminal."""

    def warn(self, message: str) -> None:
        """Warn the user, once."""


class BrokenTraining(RuntimeError):
    """A loss or gradient is not finite; the message names the step and the term."""


class Meter:
    """Losses of the steps since the last report, kept on the device; reduced over ranks at the logging cadence."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        worker: Worker,
        host: Reporter,
        total_steps: int,
        scaler: torch.amp.GradScaler | None = None,
        control: Any = None,
    ) -> None:
        self.control = control
        self.stream: Any = None
        self.recipe, self.task, self.worker, self.host = recipe, task, worker, host
        self.total_steps = total_steps
        self.scaler = scaler
        self.rows: list[tuple[int, int | None, Tensor]] = []
        self.names: list[str] = []
        self.started = time.monotonic()
        self.waited = 0.0
        self.warned = False
        self.left_out: Counter[str] = Counter()
        self.flops: dict[int | None, float] = {}  # of an image by kept count, where they are counted
        self.system = SystemSampler(worker.device.index) if worker.rank == 0 else None

    def waiting(self, fetch: Callable) -> list[dict[str, Tensor]]:
        """Fetch the next data, and count the time that it takes."""
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
            table[:, :-1] /= self.worker.world_size  # bad images are a sum
        values = table.cpu()
        self._share_bad_images(values)
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
        self._warn(last, status)
        speed = {
            "images_per_second": steps * self.recipe.global_batch / seconds,
            "waiting_share": min(1.0, waited / seconds),
            "seconds_per_step": seconds / steps,
            "workers": float(self.worker.world_size),
        }
        speed |= self._work([keep for _, keep, _ in rows], seconds)
        assert self.system is not None
        measured = {f"system/{name}": value for name, value in speed.items()} | self.system.sample()
        self.host.record(last, measured)
        self.host.progress({"step": last, "total_steps": self.total_steps} | speed | status)

    def _work(self, keeps: list[int | None], seconds: float) -> dict[str, float]:
        """The counted TFLOP/s of a device in steps with these kept counts, and their share of what its maker states."""
        if not all(keep in self.flops for keep in keeps):
            return {}
        images = self.recipe.global_batch / self.worker.world_size
        rate = sum(self.flops[keep] for keep in keeps) * images / seconds
        peak = stated_peak(torch.cuda.get_device_name(self.worker.device), self.recipe.precision)
        return {"tflops_per_second": rate / 1e12} | ({"peak_share": rate / peak} if peak else {})

    def _share_bad_images(self, values: Tensor) -> None:
        """Count the bad images of all ranks since the run began, and give every rank the list of them."""
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
        """With on_nan=skip, warn for each phase of steps left out: at the first, the tenth, the hundredth."""
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

    def _warn(self, step: int, losses: dict[str, float]) -> None:
        if step >= EARLY_STEPS and not self.warned and (warning := self.task.warning(losses)):
            self.warned = True
            self.host.warn(f"step {step}: {warning}")
