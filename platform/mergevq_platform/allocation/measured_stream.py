"""The endless stream of measured images of one rank; the images of a step are a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count

import numpy as np
import torch

from mergevq_platform.allocation.measured import MeasuredImages
from mergevq_platform.data import Batch, BatchPartition, SampleOrder
from mergevq_platform.data.loader import ReplacedImage

BLOCK_ROWS = 1024  # images that stay together in the order of an epoch, before windows of them are shuffled


class MeasuredStream:
    """The micro-batches of one rank, step by step, from `start_step` on, without end.

    Iterating yields for each optimizer step the list of this rank's micro-batches: `features` (b, 3D) float32, `distortions` (b, M)
    float64 and `label` (b,) int64, which is -1; one for each pass of `partition`. Raises `InputError` for fewer images than
    the global batch.
    """

    bad_images = 0  # images that could not be decoded were left out when they were measured
    known_bad: Collection[int] = ()
    new_bad: Sequence[ReplacedImage] = ()

    def __init__(
        self,
        images: MeasuredImages,
        *,
        partition: BatchPartition,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        assert world_size <= partition.workers
        self.images, self.start_step = images, start_step
        whole, rest = divmod(len(images), BLOCK_ROWS)
        sizes = [BLOCK_ROWS] * whole + [rest] * bool(rest)
        self.order = SampleOrder(sizes or [0], partition.global_batch, seed)
        self.passes = [partition.positions(number, rank, world_size) for number in range(partition.passes)]

    def __iter__(self) -> Iterator[list[Batch]]:
        return (self.step(step) for step in count(self.start_step))

    def __enter__(self) -> MeasuredStream:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: all is in memory."""

    def share(self, bad: Sequence[ReplacedImage]) -> None:
        """Does nothing: measured images are never bad."""

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of an optimizer step."""
        epoch, step_in_epoch = self.order.position(step)
        return [
            measured_batch(
                self.images,
                np.concatenate([self.order.batch(epoch, step_in_epoch, start, stop) for start, stop in runs]),
            )
            for runs in self.passes
        ]


def measured_batch(images: MeasuredImages, rows: np.ndarray | slice) -> Batch:
    """Some rows as a batch on the CPU."""
    features = torch.tensor(images.features[rows])
    return {
        "features": features,
        "distortions": torch.tensor(images.distortions[rows]),
        "label": torch.full((len(features),), -1),
    }
