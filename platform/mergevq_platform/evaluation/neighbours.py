"""Nearest training images of generated ones, in pixels, in blocks of rows on workers: a copy would be found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq_platform.evaluation.passes import Passes

SIDE = 32  # images are compared with their neighbours at this many pixels a side
BLOCK = 4096  # images whose distances to as many others are taken at once


def thumbnails(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) uint8 at `SIDE` pixels a side: (B, 3 * SIDE * SIDE) uint8."""
    small = images.float()
    if small.shape[-2:] != (SIDE, SIDE):
        small = F.interpolate(small, (SIDE, SIDE), mode="area")
    return small.round().byte().flatten(1).cpu().numpy()


class NeighboursJob(NamedTuple):
    """The k nearest of T training images, each or its mirror image, for M images; both as thumbnails."""

    small: np.ndarray  # (M, 3 * SIDE * SIDE) uint8
    train: np.ndarray  # (T, 3 * SIDE * SIDE) uint8
    k: int

    def on_rows(self, device: torch.device, number: int, shares: int) -> dict[str, np.ndarray]:
        """`distances` (b, k) float32 and `numbers` (b, k) int64 of a block of `BLOCK` images: see `nearest`."""
        start = number * BLOCK
        rows = self.small[start:] if number == shares - 1 else self.small[start : start + BLOCK]
        # On the CPU: distances of GPUs round otherwise.
        distances, numbers = _nearest_of(torch.from_numpy(rows), torch.from_numpy(self.train), self.k)
        return {
            "distances": distances.numpy() / self.small.shape[1] ** 0.5,
            "numbers": numbers.numpy(),
        }


def nearest(
    passes: Passes,
    small: np.ndarray,
    key: Mapping[str, Any],
    train: np.ndarray,
    train_key: Mapping[str, Any],
    *,
    k: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (M, k) in grey levels to the nearest of T training images, each or its mirror image, whichever is nearer;
    and their numbers (M, k), T and more for mirror images.

    Compares `BLOCK` x `BLOCK` thumbnails at a time. The keys name the passes that the thumbnails are of.
    """
    found = passes.in_shares(
        {"kind": "neighbours", "of": key, "images": len(small), "train": train_key, "k": k},
        NeighboursJob(small, train, k),
        len(small),
        rows_of_share=BLOCK,
    )
    return found["distances"], found["numbers"]


def _nearest_of(wanted: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    wanted = wanted.float()
    best, numbers = wanted.new_empty(len(wanted), 0), torch.empty(len(wanted), 0, dtype=torch.int64)
    for first in range(0, len(train), BLOCK):
        known = train[first : first + BLOCK].float()
        mirrored = known.view(-1, 3, SIDE, SIDE).flip(-1).flatten(1)
        distances, is_mirrored = torch.stack([torch.cdist(wanted, known), torch.cdist(wanted, mirrored)]).min(
            0
        )
        values, images = distances.topk(min(k, len(known)), largest=False)
        found = first + images + len(train) * is_mirrored.gather(1, images)
        best, numbers = torch.cat([best, values], 1), torch.cat([numbers, found], 1)
        best, order = best.topk(min(k, best.shape[1]), largest=False)
        numbers = numbers.gather(1, order)
    return best, numbers
