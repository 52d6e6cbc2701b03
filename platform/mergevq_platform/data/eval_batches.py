"""The fixed batches of an evaluation: batch b is always samples [bB, (b+1)B), and workers take whole batches."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mergevq.errors import InputError
from mergevq.image_size import ImageSize, height_width
from mergevq_platform.data.dataset import Dataset, ImageRow
from mergevq_platform.data.images.decoding import MAX_PIXELS, ImageDecodeError
from mergevq_platform.data.loader import Batch
from mergevq_platform.data.views import evaluation_view

DECODING_THREADS = 8


class BadImage(InputError):
    """An image of an evaluation cannot be decoded; `EvalBatches.bad_rows` finds all of them."""


class EvalBatches:
    """A split as fixed batches of `batch` images, resized to cover `size` and cropped in the middle.

    `limit` takes only the first images of the split. The last batch may be smaller. An image that cannot be decoded
    is a `BadImage` naming shard and row: leaving it out would silently change what a metric means. Whoever says so may
    leave out the rows `left_out` of these; positions then count the others.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: ImageSize,
        batch: int,
        *,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
        left_out: Collection[int] = (),
    ) -> None:
        assert min(height_width(size)) > 0
        assert batch > 0
        self.dataset, self.size, self.batch_size, self.max_pixels = dataset, size, batch, max_pixels
        self.taken = min(dataset.rows, limit or dataset.rows)  # the first rows of the split
        self.left_out = tuple(sorted(row for row in left_out if row < self.taken))
        self.rows = range(self.taken) if not left_out else np.setdiff1d(range(self.taken), self.left_out)
        self.images = len(self.rows)

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def shard(self, rank: int, world_size: int) -> range:
        """The batches that one of `world_size` workers takes; every batch belongs to exactly one."""
        return range(rank, self.num_batches, world_size)

    def batch(self, index: int) -> Batch:
        """Batch `index`: `image` uint8 (b, 3, H, W) in channels-last memory, `label` and `sample` int64 (b,)."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of {self.num_batches}")
        start = index * self.batch_size
        return self._batch(self.rows[start : start + self.batch_size])

    def _batch(self, numbers: Iterable[int]) -> Batch:
        rows = self.dataset.read(numbers)
        with ThreadPoolExecutor(
            min(DECODING_THREADS, os.cpu_count() or 1)
        ) as pool:  # Pillow works outside the GIL
            images = list(pool.map(self._view, rows))
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            "label": torch.tensor([row.label for row in rows], dtype=torch.int64),
            "sample": torch.tensor([row.sample for row in rows], dtype=torch.int64),
        }

    def readable(self, index: int) -> Batch | None:
        """Batch `index` without its images that cannot be decoded; none where it has no other."""
        try:
            return self.batch(index)
        except BadImage:
            start = index * self.batch_size
            rows = self.dataset.read(self.rows[start : start + self.batch_size])
            good = [row.sample for row in rows if self._reason(row) is None]
            return self._batch(good) if good else None

    def bad_rows(self) -> dict[int, str]:
        """The rows that cannot be decoded, each with its place and the reason; decodes every image."""
        found: dict[int, str] = {}
        with ThreadPoolExecutor(min(DECODING_THREADS, os.cpu_count() or 1)) as pool:
            for start in range(0, self.images, self.batch_size):
                rows = self.dataset.read(self.rows[start : start + self.batch_size])
                reasons = pool.map(self._reason, rows)
                found |= {row.sample: reason for row, reason in zip(rows, reasons, strict=True) if reason}
        return found

    def without(self, rows: Collection[int]) -> EvalBatches:
        """The same without these rows. Raises `InputError` where no image is left."""
        left = EvalBatches(
            self.dataset,
            self.size,
            self.batch_size,
            limit=self.taken,
            max_pixels=self.max_pixels,
            left_out={*self.left_out, *rows},
        )
        if not left.images:
            raise InputError(
                f"{self.dataset.path}: none of the {self.images:,} images of '{self.dataset.split}' can be decoded: "
                "pack the data again"
            )
        return left

    def _reason(self, row: ImageRow) -> str | None:
        try:
            self._view(row)
        except BadImage as error:
            return str(error)
        return None

    def _view(self, row: ImageRow) -> np.ndarray:
        try:
            return evaluation_view(self.dataset.image(row, max_pixels=self.max_pixels), self.size)
        except ImageDecodeError as error:
            place = f"{self.dataset.path}/{self.dataset.place(row.sample)}"
            raise BadImage(
                f"{place} {error}: evaluation needs every image; pack the data again, without it"
            ) from None
