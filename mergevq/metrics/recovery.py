"""Accuracy of the recovered source, with the accuracy of a constant answer as baseline."""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, percent, total


class RecoveryAccuracy(Accumulator):
    """Accuracy of the slot (kept token) predicted for every grid cell, and two answers that need no prediction."""

    def __init__(self) -> None:
        self.count = 0  # cells
        self.right: Tensor | None = None  # scalar
        self.largest: Tensor | None = None  # scalar: cells in their image's largest cluster
        self.histogram: Tensor | None = None  # (N, K) int64: how often each slot is true for each cell

    def update(self, predicted: Tensor, assignment: Tensor) -> None:
        """Add predicted and true slots, both (B, N) integers. Raises `InputError` for other or differing shapes."""
        if predicted.ndim != 2 or predicted.shape != assignment.shape:
            raise InputError(
                f"predicted slots {tuple(predicted.shape)} and assignment {tuple(assignment.shape)}: both must be (B, N)"
            )
        if not assignment.numel():
            return
        assignment = assignment.detach().long()
        predicted = predicted.detach().to(assignment)
        self._check_grid(assignment.shape[1])
        slots = int(assignment.amax()) + 1
        if int(assignment.amin()) < 0:
            raise InputError("the assignment holds a negative slot: slots are 0 to K - 1")
        cells = torch.arange(assignment.shape[1], device=assignment.device)
        flat = (cells * slots + assignment).flatten()
        rows = torch.arange(len(assignment), device=assignment.device).unsqueeze(1)
        sizes = torch.bincount((rows * slots + assignment).flatten(), minlength=len(assignment) * slots)
        seen = torch.bincount(flat, minlength=len(cells) * slots).view(len(cells), slots)
        self.count += assignment.numel()
        self.right = added(self.right, (predicted == assignment).sum())
        self.largest = added(self.largest, sizes.view(len(assignment), slots).amax(1).sum())
        self.histogram = _joined(self.histogram, seen)

    def merge(self, other: RecoveryAccuracy) -> Self:
        """The accuracy over both sets, on the CPU. Raises `InputError` for grids of different size."""
        merged, other = self.cpu_copy(), other.cpu_copy()
        if other.histogram is not None:
            merged._check_grid(len(other.histogram))
        merged.count += other.count
        merged.right = added(merged.right, other.right)
        merged.largest = added(merged.largest, other.largest)
        merged.histogram = _joined(merged.histogram, other.histogram)
        return merged

    def compute(self) -> dict[str, float]:
        """Percent of cells, NaN before the first cell.

        `recovery_accuracy`: right. `recovery_baseline_cell`: right if every cell were always given the slot that is
        most frequent there over these images. `recovery_baseline_largest`: right if all of an image were given
        its largest cluster. `recovery_baseline`: the better of the two.
        """
        if self.histogram is None:
            names = ("accuracy", "baseline", "baseline_cell", "baseline_largest")
            return {f"recovery_{name}": math.nan for name in names}
        cell = percent(self.histogram.amax(1).sum(), self.count)
        largest = percent(total(self.largest), self.count)
        return {
            "recovery_accuracy": percent(total(self.right), self.count),
            "recovery_baseline": max(cell, largest),
            "recovery_baseline_cell": cell,
            "recovery_baseline_largest": largest,
        }

    def _check_grid(self, cells: int) -> None:
        if self.histogram is not None and len(self.histogram) != cells:
            raise InputError(
                f"grids of {len(self.histogram)} and {cells} cells do not merge: use one image size"
            )


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    slots = max(a.shape[1], b.shape[1])
    return added(F.pad(a, (0, slots - a.shape[1])), F.pad(b, (0, slots - b.shape[1])))
