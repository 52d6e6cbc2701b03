"""Kept counts of a code set's images by a calibrated allocator, at one budget."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergevq.config import to_tree
from mergevq_platform.allocation.calibrating import CalibratedAllocator
from mergevq_platform.codes.manifest import CodeAllocation, CountHistogram


@dataclass(frozen=True)
class AllocatedCounts:
    """A kept count for every image, so many on the mean; travels to workers."""

    calibrated: CalibratedAllocator
    budget: float

    @property
    def constant(self) -> float:
        """The allocator's constant. Raises `InputError` for a budget that is not calibrated."""
        return self.calibrated.calibration.of(self.budget).constant

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """The calibration as plain values."""
        tree: dict[str, Any] = to_tree(self.calibrated.calibration)
        return tree

    @cached_property
    def sha256(self) -> str:
        """The hash of the calibration: allocator, menu, weights, images and constants."""
        return hashlib.sha256(json.dumps(self.calibration, sort_keys=True).encode()).hexdigest()

    def described(
        self, counted: Mapping[str, Counter[tuple[int, int]]], classes: Sequence[str]
    ) -> CodeAllocation:
        """What the manifest says of it, with the views of each split by (label, kept count)."""
        menu = self.calibrated.ref.menu
        return CodeAllocation(
            allocator=self.calibrated.ref.name,
            budget=self.budget,
            constant=self.constant,
            calibration=self.calibration,
            calibration_sha256=self.sha256,
            histograms={
                split: CountHistogram.counted(found, menu, len(classes)) for split, found in counted.items()
            },
        )
