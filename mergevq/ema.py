"""Exponential moving averages of a module's weights, and of statistics measured during steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def move_towards(averaged: nn.Module, source: nn.Module, fraction: float) -> None:
    """Move every parameter of `averaged` by `fraction` of the way to `source`'s; buffers are copied.

    `source` must have all names of `averaged`, and may have more.
    """
    targets, sources = dict(averaged.named_parameters()), dict(source.named_parameters())
    assert targets.keys() <= sources.keys()
    if targets:
        torch._foreach_lerp_(list(targets.values()), [sources[name] for name in targets], fraction)
    buffers = dict(source.named_buffers())
    for name, buffer in averaged.named_buffers():
        buffer.copy_(buffers[name])


class Ema:
    """The moving average of a module's weights: at `update`, averaged = decay * averaged + (1 - decay) * module.

    Call `update` once per optimizer step. With `warmup`, the decay of update n is min(decay, (1 + n) / (10 +
    n)), so that a short training is not dominated by its initial weights. `averaged` is in eval mode, without
    gradients.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool = False) -> None:
        assert 0 <= decay < 1
        self.module = module
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self.averaged = copy.deepcopy(module).requires_grad_(False).eval()

    def update(self) -> None:
        """Add the module's current weights to the average."""
        decay = (
            min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        )
        move_towards(self.averaged, self.module, 1 - decay)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to resume: the averaged weights and the number of updates so far."""
        state = {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        return state | {"num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; raises RuntimeError when a name or shape differs."""
        prefix = "averaged."
        self.averaged.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
        self.num_updates = int(state["num_updates"])


class RunningMean(nn.Module):
    """The moving average of a float32 statistic over optimizer steps, the same on all ranks.

    `observe` gathers what the micro-batches of a step measured, `fold` ends the step: it averages over all
    images of all ranks, then moves `value` towards that. All micro-batches of a step therefore read
    the same `value`, and neither accumulation nor the number of ranks changes it. Keep it outside of modules
    wrapped in DistributedDataParallel, which may overwrite buffers with those of rank 0 before `fold` has
    seen them.
    """

    value: Tensor
    _total: Tensor
    _count: Tensor

    def __init__(self, shape: tuple[int, ...], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("_total", torch.zeros(shape, dtype=torch.float32), persistent=False)
        self.register_buffer("_count", torch.zeros((), dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def observe(self, measured: Tensor, num_images: int) -> None:
        """Add the mean over a micro-batch of `num_images`, of the statistic's shape, to the step at hand.

        A mean with NaN or an infinite number in it is left out whole: one such pass would stay in `value` for ever.
        """
        finite = measured.isfinite().all()
        self._total += torch.where(finite, measured.float(), 0.0) * num_images
        self._count += finite * num_images

    @torch.no_grad()
    def fold(self) -> None:
        """End the step: a collective, to be called by every rank; without observations the value stays."""
        packed = torch.cat([self._total.flatten(), self._count.flatten()])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(packed)
        count = packed[-1]
        mean = (packed[:-1] / count.clamp(min=1)).view_as(self.value)
        self.value.lerp_(mean, (1 - self.decay) * (count > 0))
        self._total.zero_()
        self._count.zero_()
