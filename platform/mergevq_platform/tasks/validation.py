"""Validation during training: accumulators over a few fixed batches, merged over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mergevq_platform.data import Batch

Meters = dict[str, Any]
Measure = Callable[[Any, Batch, Meters], None]


@torch.no_grad()
def validate(
    model: nn.Module, batches: Iterable[Batch], measure: Measure, world_size: int
) -> dict[str, float]:
    """Metrics of `model` (the averaged weights) over this rank's `batches` and those of the others.

    What has no value there (accuracy without a label) is left out.
    """
    was_training = model.training
    model.eval()
    meters: Meters = {}
    for batch in batches:
        measure(model, batch, meters)
    model.train(was_training)
    if world_size > 1:
        gathered: list[Meters] = [{} for _ in range(world_size)]
        dist.all_gather_object(gathered, meters)
        meters = {}
        for part in gathered:
            for name, meter in part.items():
                meters[name] = meter if name not in meters else meters[name].merge(meter)
    found = {name: value for meter in meters.values() for name, value in meter.compute().items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}
