"""Cache layouts of raster order: the slot of each cell's keys and values, and the slots that a cell sees.

The host never waits for the device, but to read how full a compressed cache is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.generation.masks import first_occurrences, mergear_mask

# Cells between two reads of how full a compressed cache is; 32 where the device is not the host.
POLL_EVERY = {"cpu": 1}


class Allocation(NamedTuple):
    """The slot of one new cell, and the slots that it sees."""

    slots: Tensor  # (1,) int64, or (B, 1) where the rows differ: its keys and values go there
    visible: int  # of the first `visible` slots it sees
    mask: Tensor | None  # those that are set here, (B or 1, 1, visible) bool; None: all


class DistinctCodes:
    """The different codes of each row in order of appearance, (B, capacity) int64 with -1 for none yet."""

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.codes = torch.full((batch, capacity), -1, device=device)
        self.count = torch.zeros(batch, dtype=torch.int64, device=device)

    def observe(self, codes: Tensor) -> Tensor:
        """Add codes (B,); returns (B,) bool: which of them are new."""
        new = ~(self.codes == codes[:, None]).any(1)
        # In rows that are full nothing is new, and the last entry must stay.
        at = self.count.clamp(max=self.codes.shape[1] - 1)[:, None]
        self.codes.scatter_(1, at, torch.where(new[:, None], codes[:, None], self.codes.gather(1, at)))
        self.count = self.count + new
        return new


class DenseLayout:
    """Slot = position in the sequence. With a window, what MergeAR hides is masked."""

    def __init__(
        self, batch: int, cells: int, prefix: int, window: int | None, bucket: int, device: torch.device
    ) -> None:
        self.prefix, self.window, self.bucket = prefix, window, bucket
        self.slots = prefix + cells - 1  # no cell sees the last one
        self.index = torch.arange(self.slots, device=device)
        self.distinct = DistinctCodes(batch, cells, device)
        self.is_first = torch.zeros(batch, self.slots, dtype=torch.bool, device=device)
        self.is_first[:, :prefix] = True

    def allocate(self, cell: int, codes: Tensor) -> Allocation:
        """Allocate the slot of raster cell `cell` with codes (B,)."""
        slot = self.prefix + cell
        visible = min(self.slots, _rounded(slot + 1, self.bucket))
        slots = self.index[slot : slot + 1]
        mask = None
        if self.window is not None:
            self.is_first[:, slot] = self.distinct.observe(codes)
            recent = self.index[:visible] > slot - self.window
            mask = (self.is_first[:, :visible] | recent) & (self.index[:visible] <= slot)
        elif self.bucket > 1:
            mask = (self.index[:visible] <= slot)[None]
        return Allocation(slots, visible, None if mask is None else mask[:, None])

    def slot_to_position(self, slots: int) -> Tensor:
        """The position in the sequence (B, slots) int64 that each slot holds."""
        return self.index[:slots].expand(len(self.is_first), -1)


class CompressedLayout:
    """MergeAR's cache: prefix, a ring of `window` slots for repeated codes, and one slot per different code.

    A repeated code of cell l lies in ring slot l mod W until its cell leaves the window: the cache holds distinct
    codes + W + prefix entries. Rows differ in what they hold and agree in the layout. `slot_to_position` is the
    position cache.
    """

    def __init__(
        self,
        batch: int,
        cells: int,
        prefix: int,
        window: int,
        bucket: int,
        expected: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        self.prefix, self.window, self.bucket = prefix, window, bucket
        self.capacity = min(capacity, cells - 1)
        self.poll_every = POLL_EVERY.get(device.type, 32)
        self.bound = 0
        self.base = prefix + window
        self.slots = self.base + min(expected, self.capacity)
        self.distinct = DistinctCodes(batch, cells, device)
        self.ring = torch.zeros(batch, window, dtype=torch.bool, device=device)
        self.prefix_visible = torch.ones(batch, prefix, dtype=torch.bool, device=device)
        self.index = torch.arange(self.base + cells, device=device)
        self.positions = torch.arange(self.base + cells, device=device).repeat(batch, 1)

    def allocate(self, cell: int, codes: Tensor) -> Allocation:
        """Allocate the slot of raster cell `cell` with codes (B,); `slots` grows where the cache must."""
        rank = self.distinct.count
        new = self.distinct.observe(codes)
        slot = torch.where(new, self.base + rank, self.prefix + cell % self.window)[:, None]
        self.ring[:, cell % self.window] = ~new
        self.positions.scatter_(1, slot, self.prefix + cell)
        if cell % self.poll_every == 0:
            self.bound = int(self.distinct.count.max()) + self.poll_every - 1
        visible = self.base + min(_rounded(min(self.bound, self.capacity), self.bucket), self.capacity)
        if visible > self.slots:
            self.slots = self.base + min(_rounded(visible - self.base, 32), self.capacity)
        filled = self.index[: visible - self.base] < self.distinct.count[:, None]
        mask = torch.cat([self.prefix_visible, self.ring, filled], 1)
        return Allocation(slot, visible, mask[:, None])

    def slot_to_position(self, slots: int) -> Tensor:
        """The position in the sequence (B, slots) int64 that each slot holds; anything where it holds none."""
        return self.positions[:, :slots]


def sequence_mask(codes: Tensor, window: int | None, prefix: int) -> Tensor:
    """The mask (B or 1, P + M, P + M) bool of the prefix and of cells with codes (B, M)."""
    if window is None:
        total = prefix + codes.shape[1]
        return torch.ones(1, total, total, dtype=torch.bool, device=codes.device).tril()
    return mergear_mask(first_occurrences(codes), window, prefix)


def _rounded(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple
