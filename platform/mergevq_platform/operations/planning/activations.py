"""Activation memory: what autograd saves for the backward pass, to the byte, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class SavedTensors:
    """Bytes that autograd holds for the backward pass: now, and at the peak."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}  # storage -> [bytes, holders]
        self.peaks: dict[int, int] = {}
        self.now = self.peak = 0

    def hold(self, tensor: Tensor) -> Any:
        """Count a saved tensor's storage, once however often it is saved."""
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        entry = self.held.setdefault(key, [size, 0])
        if entry[1] == 0:
            self.now += size
        entry[1] += 1
        if self.now > self.peak:
            self.peak = self.now
            self.peaks = {place: held[0] for place, held in self.held.items() if held[1]}
        holder = _Holder(tensor)
        weakref.finalize(holder, self._release, key)
        return holder

    def _release(self, key: int) -> None:
        entry = self.held[key]
        entry[1] -= 1
        if entry[1] == 0:
            self.now -= entry[0]
            del self.held[key]

    def peak_without(self, own: set[int]) -> int:
        """Bytes at the peak, without storages that are there anyway (parameters)."""
        return sum(size for place, size in self.peaks.items() if place not in own)


class _Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def saved_for_backward() -> Iterator[SavedTensors]:
    """Count what autograd saves within the context; on any device, to the byte."""
    saved = SavedTensors()
    with torch.autograd.graph.saved_tensors_hooks(saved.hold, lambda holder: holder.tensor):
        yield saved
