"""A quick look at the model during training, over the first pictures of the evaluation split."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mergevq.metrics import CodeUsage, Mean, Psnr, RecoveryAccuracy
from mergevq.tokenizer import MergeVQ
from mergevq_platform.data import EvalBatches, open_dataset, to_unit_range
from mergevq_platform.recipe import Recipe


@torch.no_grad()
def validate(model: nn.Module, recipe: Recipe, worker: Any) -> dict[str, float]:
    """Metrics of `model` (the averaged weights); every rank takes whole batches and all get the merged result."""
    settings = recipe.evaluation
    dataset = open_dataset(recipe.data.path, recipe.data.evaluation_split)
    images = min(settings.validation_images, dataset.rows)
    batches = EvalBatches(dataset, recipe.data.views.image_size, settings.batch, limit=images)
    was_training = model.training
    model.eval()
    meters: dict[str, Any] = {}
    for index in batches.shard(worker.rank, worker.world_size):
        batch = to_unit_range(batches.batch(index), worker.device)
        measured = (
            _tokenizer(model, batch, meters)
            if isinstance(model, MergeVQ)
            else _classifier(model, batch, meters)
        )
        meters = measured
    model.train(was_training)
    if worker.world_size > 1:
        gathered: list[dict[str, Any]] = [{} for _ in range(worker.world_size)]
        dist.all_gather_object(gathered, meters)
        meters = {}
        for part in gathered:
            for name, meter in part.items():
                meters[name] = meter if name not in meters else meters[name].merge(meter)
    return {name: value for meter in meters.values() for name, value in meter.compute().items()}


def _tokenizer(model: MergeVQ, batch: dict[str, torch.Tensor], meters: dict[str, Any]) -> dict[str, Any]:
    encoded = model.encode(batch["image"])
    meters.setdefault("pixels", Psnr()).update(batch["image"], model.decode(encoded))
    meters.setdefault("codes", CodeUsage(model.config.quantizer.vocabulary)).update(encoded.indices)
    if model.config.recovery is not None:
        logits = model.recover(encoded.codes)
        meters.setdefault("recovery", RecoveryAccuracy()).update(logits.argmax(-1), encoded.source.assignment)
    return meters


def _classifier(model: nn.Module, batch: dict[str, torch.Tensor], meters: dict[str, Any]) -> dict[str, Any]:
    right = model(batch["image"]).argmax(-1) == batch["label"]
    meters.setdefault("accuracy", Mean("accuracy")).update(right)
    return meters
