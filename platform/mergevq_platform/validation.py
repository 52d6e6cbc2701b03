"""A quick look at the model during training: accumulators over a few fixed batches, merged over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from mergevq.metrics import CodeUsage, Mean, Psnr, RecoveryAccuracy
from mergevq_platform.data import Batch

Meters = dict[str, Any]


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    measure: Callable[[Any, Batch, Meters], None],
    world_size: int,
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


def of_tokenizer(model: Any, batch: Batch, meters: Meters) -> None:
    """PSNR, code usage and recovery of a tokenizer at its default kept count."""
    encoded = model.encode(batch["image"])
    meters.setdefault("pixels", Psnr()).update(batch["image"], model.decode(encoded))
    meters.setdefault("codes", CodeUsage(model.config.quantizer.vocabulary)).update(encoded.indices)
    if model.config.recovery is not None:
        logits = model.recover(encoded.codes)
        meters.setdefault("recovery", RecoveryAccuracy()).update(logits.argmax(-1), encoded.source.assignment)


def of_recovery(keeps: Sequence[int], model: Any, batch: Batch, meters: Meters) -> None:
    """`recovery_accuracy_K` (percent of cells) of a tokenizer at each kept count K, as `RecoveryAccuracy` has it."""
    for keep in keeps:
        encoded = model.encode(batch["image"], keep)
        name = f"recovery_accuracy_{keep}"
        right = model.recover(encoded.codes).argmax(-1) == encoded.source.assignment
        meters.setdefault(name, Mean(name)).update(right)


def of_classifier(model: Any, batch: Batch, meters: Meters) -> None:
    """Accuracy of a classifier on the labelled images."""
    right = model(batch["image"]).argmax(-1) == batch["label"]
    meters.setdefault("accuracy", Mean("accuracy")).update(right[batch["label"] >= 0])


def of_probe(features: nn.Module, heads: Any, batch: Batch, meters: Meters) -> None:
    """Accuracy of each head of a probe on the labelled images."""
    right = heads(features(batch["image"])).argmax(-1) == batch["label"]
    for index, row in enumerate(right):
        name = f"accuracy_{index}"
        meters.setdefault(name, Mean(name)).update(row[batch["label"] >= 0])


def of_generator(model: Any, batch: Batch, meters: Meters) -> None:
    """Loss (nats a code, without smoothing) and accuracy of a generator's codes, each predicted from the true ones before it."""
    keep = batch["indices"].shape[1]
    order = None
    if model.config.kind == "random_order":  # one order for all validations
        order = torch.rand(batch["indices"].shape, generator=torch.Generator().manual_seed(0)).argsort(1)
        order = order.to(batch["indices"].device)
    prediction = model(batch["indices"], batch["assignment"], batch["label"], keep, order)
    parts = model.tokens.split(prediction.targets)
    losses, right = torch.zeros(()), torch.ones((), dtype=torch.bool)
    for place, logits in enumerate(prediction.logits):
        part = parts[..., place]
        losses = losses + F.cross_entropy(logits.float().movedim(-1, 1), part, reduction="none").cpu()
        right = right & (logits.argmax(-1) == part).cpu()
    meters.setdefault("loss", Mean("token_loss")).update(losses)
    meters.setdefault("right", Mean("token_accuracy")).update(right)
