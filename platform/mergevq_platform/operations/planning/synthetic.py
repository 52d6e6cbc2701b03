"""Synthetic images and codes of a recipe's size, so that a step is measured without its data."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergevq_platform import loop
from mergevq_platform.data import (
    BatchPartition,
    Dataset,
    TrainStream,
    make_views,
    open_dataset,
    write_shapes,
)
from mergevq_platform.feeding import pinned, trained_keeps
from mergevq_platform.recipe import GeneratorTask, Recipe, RecoveryTask
from mergevq_platform.storage import checkpoints

INPUT_IMAGES = 32
KEEP_DRAWS = 256


def with_images(recipe: Recipe, folder: Path, count: int) -> tuple[Recipe, Dataset]:
    """The recipe on `count` procedural images in `folder`, and their training split."""
    if not learns_codes(recipe):
        recipe = pinned(recipe)
    size = recipe.data.views.image_size
    write_shapes(folder, images=count, val_images=1, size=size, seed=0)
    data = replace(recipe.data, path=str(folder), train_split="train", image_column=None, label_column=None)
    recipe = replace(recipe, data=data, compile=False)
    return recipe, open_dataset(recipe.data.path, recipe.data.train_split)


@dataclass(frozen=True)
class SyntheticSamples:
    """Images that claim as many classes as the model of a recipe knows."""

    images: Dataset
    num_classes: int
    labelled: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)


def classes_of(recipe: Recipe) -> int:
    """Number of classes of the generator that learns, or that is built on; else 0."""
    match recipe.task:
        case RecoveryTask(generator=str() as place):
            with checkpoints.newest(place, files=checkpoints.RECIPE) as directory:
                return checkpoints.recipe_of(directory).generator.model.classes
        case GeneratorTask() as task:
            return task.model.classes
    return 0


def learns_codes(recipe: Recipe) -> bool:
    """Whether the recipe trains a generator on a code set."""
    return isinstance(recipe.task, GeneratorTask) and recipe.task.codes is not None


def kept_counts(recipe: Recipe) -> tuple[int | None, int | None]:
    """(the reachable count nearest to the mean of those drawn, the largest)."""
    drawn = [keep for step in range(KEEP_DRAWS) if (keep := loop.draw_keep(recipe, step)) is not None]
    if not drawn:
        return None, None
    mean = sum(drawn) / len(drawn)
    return min(set(drawn), key=lambda keep: abs(keep - mean)), max(trained_keeps(recipe))


def micro_batches(
    recipe: Recipe, dataset: Dataset, micro_batch: int, keep: int | None
) -> list[dict[str, Tensor]]:
    """Two micro-batches as the recipe's data come: images, or codes at `keep`."""
    if learns_codes(recipe):
        return [_random_codes(recipe.generator, micro_batch, keep or 0, seed) for seed in range(2)]
    stream = TrainStream(
        dataset,
        recipe.data.views,
        partition=BatchPartition(micro_batch, passes=1, workers=1),
        seed=recipe.seed,
    )
    with stream:
        source = iter(stream)
        return [next(source)[0] for _ in range(2)]


def _random_codes(task: GeneratorTask, rows: int, keep: int, seed: int) -> dict[str, Tensor]:
    random, cells = torch.Generator().manual_seed(seed), task.model.grid_tokens
    every = torch.arange(cells) % keep  # each code has a cell
    order = torch.rand(rows, cells, generator=random).argsort(1)
    return {
        "indices": torch.randint(2**task.model.bits, (rows, keep), generator=random),
        "assignment": every.expand(rows, cells).gather(1, order),
        "label": torch.randint(task.model.classes, (rows,), generator=random),
    }


def input_seconds_of(recipe: Recipe, dataset: Dataset) -> float:
    """CPU seconds that decoding and augmenting an image takes."""
    rows = dataset.read(list(range(INPUT_IMAGES)))
    began = time.process_time()
    for row in rows:
        make_views(dataset.image(row), recipe.data.views, seed=recipe.seed, epoch=0, sample=row.sample)
    return (time.process_time() - began) / len(rows)
