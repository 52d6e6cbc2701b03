"""Forward and backward passes of a training as CUDA graphs, one for each kept count: the host launches one thing a pass.

Their work is counted here as well, at the first pass of a kept count, which is never recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor, nn

from mergevq.cuda_graphs import CudaGraphs
from mergevq.training.protocol import Training
from mergevq_platform.flops import FlopCount
from mergevq_platform.recipe import Recipe
from mergevq_platform.tasks.task import Worker

MOST = 32  # recordings: each holds its launches, some tens of MB


class MicroBatchPasses(Protocol):
    """Forward and backward of every phase on one micro-batch, see `loop.accumulate`."""

    def __call__(
        self, batch: dict[str, Tensor], keep: int | None, step: int, share: float, last: bool
    ) -> dict[str, Tensor]: ...


class RecordedPasses:
    """`passes`, recorded where the recipe, the training and the device allow it; elsewhere `passes` itself.

    A recording adds to gradients at their addresses: while it is `enabled`, gradients are set to zero and never to None.
    Several ranks are not recorded, as their gradients meet within the backward pass, nor is float16, whose loss scale is
    the host's. A pass that cannot be recorded is told to `warn`, and all go on as they are.
    """

    def __init__(
        self,
        recipe: Recipe,
        training: Training,
        passes: MicroBatchPasses,
        worker: Worker,
        warn: Callable[[str], None],
    ) -> None:
        self.training, self.passes = training, passes
        self.flops = FlopCount(worker.device)
        self.names: dict[Hashable, list[str]] = {}
        self.graphs = CudaGraphs(
            worker.device,
            calls_before=1 + recipe.compile,  # counted passes are not compiled
            most=MOST,
            share_memory=True,
            on_failure=lambda error: warn(
                f"the training step could not be recorded as a CUDA graph ({error}): its kernels are launched one by one, "
                "which is slower; cuda_graphs=false says so"
            ),
        )
        self.graphs.enabled &= (
            recipe.cuda_graphs
            and worker.world_size == 1
            and recipe.precision != "float16"
            and training.variant(0) is not None
        )

    @property
    def enabled(self) -> bool:
        """Whether passes are recorded, so that gradients must stay where they are."""
        return self.graphs.enabled

    def __call__(
        self, batch: dict[str, Tensor], keep: int | None, step: int, share: float, last: bool
    ) -> dict[str, Tensor]:
        """Losses of one micro-batch, whose gradients are added to those of the parameters."""
        if self.flops.missing(keep):
            with self.flops.counting(keep, len(batch["label"])):
                return self._call(batch, keep, step, share, last)
        return self._call(batch, keep, step, share, last)

    def _call(
        self, batch: dict[str, Tensor], keep: int | None, step: int, share: float, last: bool
    ) -> dict[str, Tensor]:
        if not self.enabled:
            return self.passes(batch, keep, step, share, last)
        gradients_in_place(self.training)
        names = list(batch)
        key = (keep, self.training.variant(step), share, *names)

        def run(*tensors: Tensor) -> Tensor:
            losses = self.passes(dict(zip(names, tensors, strict=True)), keep, step, share, last)
            self.names[key] = list(losses)
            return torch.stack(list(losses.values()))

        # Copied, because the next micro-batch writes its losses there.
        losses = self.graphs(key, run, *batch.values()).clone()
        return dict(zip(self.names[key], losses.unbind(), strict=True))


def gradients_in_place(training: nn.Module) -> None:
    """Give every trained parameter a gradient, of zeros where it has none."""
    for parameter in training.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
