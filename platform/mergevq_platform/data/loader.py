"""One loader process: reads and decodes its piece of each of the rank's micro-batches, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mergevq.errors import InputError
from mergevq_platform.data.batch_partition import BatchPartition
from mergevq_platform.data.dataset import Dataset, ImageRow, RowGroup
from mergevq_platform.data.images.decoding import ImageDecodeError
from mergevq_platform.data.order import SampleOrder
from mergevq_platform.data.views import ViewsConfig, make_views

Batch = dict[str, Tensor]


class ReplacedImage(NamedTuple):
    """An image that could not be used, and the row that took its place."""

    row: int
    place: str
    reason: str
    replacement: int


class BatchPiece(NamedTuple):
    """A piece of a micro-batch, as one loader process makes it."""

    batch: Batch
    bad: tuple[ReplacedImage, ...]
    error: str | None = None


@dataclass
class PieceLoader(IterableDataset):
    """Run a loader process: its piece of each of the rank's micro-batches, in order.

    Every process has the same places in each batch, so that it alone reads the row groups of these places.
    """

    dataset: Dataset
    order: SampleOrder
    views: ViewsConfig
    seed: int
    start_step: int
    partition: BatchPartition
    rank: int
    world_size: int
    max_pixels: int
    held: dict[int, RowGroup] = field(default_factory=dict)
    reads: int = 0

    def __iter__(self) -> Iterator[BatchPiece]:
        info = get_worker_info()
        index, count = (info.id, info.num_workers) if info else (0, 1)
        if info:
            torch.set_num_threads(1)
        passes = [
            self.partition.positions(number, self.rank, self.world_size, index, count)
            for number in range(self.partition.passes)
        ]
        step = self.start_step
        while True:
            epoch, step_in_epoch = self.order.position(step)
            live: set[int] = set()
            for runs in passes:
                try:
                    yield self._part(epoch, step_in_epoch, runs)
                except InputError as error:
                    yield BatchPiece({}, (), str(error))
                for start, stop in runs:
                    live |= self.order.live_groups(epoch, step_in_epoch, start, stop)
            self.held = {group: held for group, held in self.held.items() if group in live}
            step += 1

    def _part(self, epoch: int, step: int, runs: list[tuple[int, int]]) -> BatchPiece:
        rows: list[ImageRow] = []
        bad: list[ReplacedImage] = []
        views: list[dict[str, np.ndarray]] = []
        for start, stop in runs:
            for row_id in self.order.batch(epoch, step, start, stop).tolist():
                row, found = self._usable(row_id, epoch, views)
                rows.append(row)
                bad += found
        if not rows:
            return BatchPiece({}, ())
        batch = {name: _stacked([view[name] for view in views]) for name in views[0]}
        batch["label"] = torch.tensor([row.label for row in rows], dtype=torch.int64)
        batch["sample"] = torch.tensor([row.sample for row in rows], dtype=torch.int64)
        return BatchPiece(batch, tuple(bad))

    def _usable(
        self, row_id: int, epoch: int, views: list[dict[str, np.ndarray]]
    ) -> tuple[ImageRow, list[ReplacedImage]]:
        """The row, or the next good one of its row group; its views are appended to `views`."""
        number = int(self.dataset.group_of(row_id))
        group = self._group(number)
        reasons: list[tuple[int, str]] = []
        size = len(group.labels)
        for ahead in range(size):
            row = group.row(group.first_row + (row_id - group.first_row + ahead) % size)
            try:
                image = self.dataset.image(row, max_pixels=self.max_pixels)
            except ImageDecodeError as error:
                reasons.append((row.sample, str(error)))
                continue
            views.append(make_views(image, self.views, seed=self.seed, epoch=epoch, sample=row.sample))
            return row, [
                ReplacedImage(bad, self.dataset.place(bad), reason, row.sample) for bad, reason in reasons
            ]
        # What is not in the files cannot be packed from them either.
        fix = "write the images' bytes into it" if group.images.null_count == size else "pack the data again"
        raise InputError(
            f"{self.dataset.path}/{self.dataset.place(row_id)} and its whole row group hold no usable image "
            f"({reasons[0][1]}): {fix}"
        )

    def _group(self, number: int) -> RowGroup:
        if number not in self.held:
            self.held[number] = self.dataset.row_group(number)
            self.reads += 1
        return self.held[number]


def _stacked(images: list[np.ndarray]) -> Tensor:
    """uint8 (B, 3, H, W) in channels-last memory, of (H, W, 3) arrays."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
