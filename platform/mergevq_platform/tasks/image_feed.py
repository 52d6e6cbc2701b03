"""Batches of images, for every task but a generator on a code set."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mergevq_platform.data import Batch, Dataset, EvalBatches, TrainStream, open_dataset, to_unit_range
from mergevq_platform.recipe import Recipe
from mergevq_platform.tasks.task import Worker
from mergevq_platform.tasks.validation import Measure, validate


def open_images(recipe: Recipe) -> Dataset:
    """The images of the training split. Raises `InputError` for a split that training cannot read."""
    dataset = open_dataset(recipe.data.path, recipe.data.train_split, recipe.data.reading)
    dataset.require_whole_groups()
    return dataset


@dataclass(frozen=True)
class ImageFeed:
    """Images and their views, in [-1, 1]; `measure` is what a validation asks of a model and a batch."""

    recipe: Recipe
    samples: Dataset
    worker: Worker
    measure: Measure

    @property
    def encoder(self) -> nn.Module | None:
        """None: the model takes images."""
        return None

    def stream(self, start_step: int, known_bad: Collection[int] = ()) -> TrainStream:
        """See `Feed.stream`."""
        recipe = self.recipe
        return TrainStream(
            self.samples,
            recipe.data.views,
            partition=recipe.batch_partition,
            seed=recipe.seed,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            start_step=start_step,
            workers=recipe.data.loader_workers,
            bad_image_limit=recipe.data.bad_image_limit,
            known_bad=known_bad,
            window_blocks=recipe.data.window_blocks,
        )

    def batch(self, micro_batch: Batch, keep: int | None) -> Batch:
        """See `Feed.batch`."""
        del keep
        batch = to_unit_range(micro_batch, self.worker.device)
        if not self.recipe.channels_last:
            return batch
        return {
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in batch.items()
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """See `Feed.validate`."""
        batches = (
            to_unit_range(batch, self.worker.device) for batch in validation_share(self.recipe, self.worker)
        )
        return validate(model, batches, self.measure, self.worker.world_size)


def validation_share(recipe: Recipe, worker: Worker) -> Iterator[Batch]:
    """This worker's fixed batches of the first images of the evaluation split, without those that cannot be decoded."""
    settings, data = recipe.evaluation, recipe.data
    dataset = open_dataset(data.path, data.evaluation_split, data.reading)
    batches = EvalBatches(dataset, data.views.image_size, settings.batch, limit=settings.validation_images)
    for index in batches.shard(worker.rank, worker.world_size):
        if (batch := batches.readable(index)) is not None:
            yield batch
