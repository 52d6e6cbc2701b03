"""The fixed batches of an evaluation: batch b is always samples [bB, (b+1)B), and workers take whole batches."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mergevq.errors import InputError
from mergevq_platform.data.dataset import Dataset, Row
from mergevq_platform.data.pictures import MAX_PIXELS, BadPicture
from mergevq_platform.data.stream import Batch
from mergevq_platform.data.views import evaluation_view

DECODING_THREADS = 8


class EvalBatches:
    """A split as fixed batches of `batch` pictures, resized to `size` and cropped in the middle.

    `limit` takes only the first pictures of the split. The last batch may be smaller. A picture that cannot be decoded
    is an `InputError` naming shard and row: leaving it out would silently change what a metric means.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        batch: int,
        *,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        assert size > 0
        assert batch > 0
        self.dataset, self.size, self.batch_size, self.max_pixels = dataset, size, batch, max_pixels
        self.images = min(dataset.rows, limit or dataset.rows)

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def shard(self, rank: int, world_size: int) -> range:
        """The batches that one of `world_size` workers takes; every batch belongs to exactly one."""
        return range(rank, self.num_batches, world_size)

    def batch(self, index: int) -> Batch:
        """Batch `index`: `image` uint8 (b, 3, S, S) in channels-last memory, `label` and `sample` int64 (b,)."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of {self.num_batches}")
        start = index * self.batch_size
        rows = self.dataset.read(range(start, min(start + self.batch_size, self.images)))
        with ThreadPoolExecutor(
            min(DECODING_THREADS, os.cpu_count() or 1)
        ) as pool:  # Pillow works outside the GIL
            pictures = list(pool.map(self._view, rows))
        return {
            "image": torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
            "label": torch.tensor([row.label for row in rows], dtype=torch.int64),
            "sample": torch.tensor([row.sample for row in rows], dtype=torch.int64),
        }

    def _view(self, row: Row) -> np.ndarray:
        try:
            return evaluation_view(self.dataset.image(row, max_pixels=self.max_pixels), self.size)
        except BadPicture as error:
            place = f"{self.dataset.path}/{self.dataset.place(row.sample)}"
            raise InputError(
                f"{place} {error}: evaluation needs every picture; pack the data again, without it"
            ) from None
