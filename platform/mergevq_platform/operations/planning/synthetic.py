"""Synthetic images and codes of a recipe's size, so that a step is measured without its data."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mergevq.config import to_tree
from mergevq.image_size import height_width
from mergevq_platform.data import (
    BatchPartition,
    Dataset,
    TrainStream,
    make_views,
    open_dataset,
    write_shapes,
)
from mergevq_platform.recipe import FindRun, Recipe, ResolvedRecipe, parse_resolved, resolve
from mergevq_platform.tasks.task import task_of

INPUT_IMAGES = 32
KEEP_DRAWS = 256


def with_images(
    recipe: Recipe, folder: Path, count: int, find_run: FindRun | None = None
) -> tuple[ResolvedRecipe, Dataset]:
    """The recipe on `count` procedural images in `folder`, and their training split."""
    # Random codes stand in for a code set, which need not be here.
    upstream = task_of(recipe).reads_images
    resolved = resolve(recipe, find_run=find_run) if upstream else parse_resolved(to_tree(recipe))
    size = max(
        height_width(recipe.data.views.image_size)
    )  # procedural images are squares, and views crop them
    write_shapes(folder, images=count, val_images=1, size=size, seed=0)
    data = replace(recipe.data, path=str(folder), train_split="train", image_column=None, label_column=None)
    return replace(resolved, data=data, compile=False), open_dataset(data.path, data.train_split)


@dataclass(frozen=True)
class SyntheticSamples:
    """Images that claim as many classes as the model of a recipe knows."""

    images: Dataset
    num_classes: int
    labelled: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)


def kept_counts(recipe: Recipe) -> tuple[int | None, int | None]:
    """(the reachable count nearest to the mean of those drawn, the largest).

    Batches whose images keep different counts are padded to the longest: there both are the largest.
    """
    task, seed = recipe.task, recipe.seed
    drawn = [keep for step in range(KEEP_DRAWS) if (keep := task.draw_keep(seed, step)) is not None]
    if not drawn:
        most = max(task.kept_counts(), default=None)
        return most, most
    mean = sum(drawn) / len(drawn)
    return min(set(drawn), key=lambda keep: abs(keep - mean)), max(task.kept_counts())


def micro_batches(
    recipe: Recipe, dataset: Dataset, micro_batch: int, keep: int | None
) -> list[dict[str, Tensor]]:
    """Two micro-batches as the recipe's data come: images, or codes at `keep`."""
    task = task_of(recipe)
    if not task.reads_images:
        return [task.random_batch(micro_batch, keep, seed) for seed in range(2)]
    stream = TrainStream(
        dataset,
        recipe.data.views,
        partition=BatchPartition(micro_batch, passes=1, workers=1),
        seed=recipe.seed,
    )
    with stream:
        source = iter(stream)
        return [next(source)[0] for _ in range(2)]


def input_seconds_of(recipe: Recipe, dataset: Dataset) -> float:
    """CPU seconds that decoding and augmenting an image takes."""
    rows = dataset.read(list(range(INPUT_IMAGES)))
    began = time.process_time()
    for row in rows:
        make_views(dataset.image(row), recipe.data.views, seed=recipe.seed, epoch=0, sample=row.sample)
    return (time.process_time() - began) / len(rows)
