"""The mean of named values."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, float64, total


class Mean(Accumulator):
    """The mean of values by name; of booleans (right or wrong) in percent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.boolean: bool | None = None  # known with the first values
        self.sum: Tensor | None = None  # scalar

    def update(self, values: Tensor) -> None:
        """Add values of any shape. Raises `InputError` where booleans and numbers mix under one name."""
        self._set_kind(values.dtype == torch.bool)
        self.count += values.numel()
        self.sum = added(self.sum, float64(values).sum())

    def merge(self, other: Mean) -> Self:
        """The mean over both, on the CPU. Raises `InputError` for different names or kinds of value."""
        if self.name != other.name:
            raise InputError(f"the means of '{self.name}' and '{other.name}' do not merge")
        merged, other = self.cpu_copy(), other.cpu_copy()
        if other.boolean is not None:
            merged._set_kind(other.boolean)
        merged.count += other.count
        merged.sum = added(merged.sum, other.sum)
        return merged

    def compute(self) -> dict[str, float]:
        """The mean by its name, in percent for booleans; NaN before the first value."""
        scale = 100 if self.boolean else 1
        return {self.name: scale * total(self.sum) / self.count if self.count else math.nan}

    def _set_kind(self, boolean: bool) -> None:
        if self.boolean not in (None, boolean):
            raise InputError(f"'{self.name}' was given booleans and numbers: their mean has no unit")
        self.boolean = boolean
