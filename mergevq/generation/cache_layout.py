"""Where the keys and values of raster cells lie in a cache, and which of them a cell sees.

No decision here needs a look at the data by the host, but for how full a compressed cache is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.generation.masks import first_occurrences, mergear_mask

# The host looks once in so many cells how full a compressed cache is; where it is the device, looking costs nothing.
LOOK_EVERY = {"cpu": 1}


class Place(NamedTuple):
    """Of one new cell."""

    slots: Tensor  # (1,) int64, or (B, 1) where the rows differ: where its keys and values go
    visible: int  # it sees of the first `visible` slots
    mask: Tensor | None  # those that are set here, (B or 1, 1, visible) bool; None: all


class DistinctCodes:
    """The different codes of each row in order of appearance, (B, capacity) int64 with -1 for none yet."""

    def __init__(self, batch: int, capacity: int, device: torch.device) -> None:
        self.codes = torch.full((batch, capacity), -1, device=device)
        self.count = torch.zeros(batch, dtype=torch.int64, device=device)

    def observe(self, codes: Tensor) -> Tensor:
        """Take up codes (B,); returns (B,) bool: which of them are new."""
        new = ~(self.codes == codes[:, None]).any(1)
        # In rows that are full nothing is new, and the last entry must stay.
        at = self.count.clamp(max=self.codes.shape[1] - 1)[:, None]
        self.codes.scatter_(1, at, torch.where(new[:, None], codes[:, None], self.codes.gather(1, at)))
        self.count = self.count + new
        return new


class Whole:
    """Every cell keeps its slot: slot = place in the sequence. With a window, what MergeAR hides is masked."""

    def __init__(
        self, batch: int, cells: int, prefix: int, window: int | None, bucket: int, device: torch.device
    ) -> None:
        self.prefix, self.window, self.bucket = prefix, window, bucket
        self.slots = prefix + cells - 1  # the last cell is seen by none
        self.index = torch.arange(self.slots, device=device)
        self.distinct = DistinctCodes(batch, cells, device)
        self.lasting = torch.zeros(batch, self.slots, dtype=torch.bool, device=device)
        self.lasting[:, :prefix] = True

    def place(self, cell: int, codes: Tensor) -> Place:
        """The place of raster cell `cell` with codes (B,)."""
        slot = self.prefix + cell
        visible = min(self.slots, _rounded(slot + 1, self.bucket))
        slots = self.index[slot : slot + 1]
        mask = None
        if self.window is not None:
            self.lasting[:, slot] = self.distinct.observe(codes)
            recent = self.index[:visible] > slot - self.window
            mask = (self.lasting[:, :visible] | recent) & (self.index[:visible] <= slot)
        elif self.bucket > 1:
            mask = (self.index[:visible] <= slot)[None]
        return Place(slots, visible, None if mask is None else mask[:, None])

    def held(self, slots: int) -> Tensor:
        """(B, slots) int64: which place of the sequence each slot holds."""
        return self.index[:slots].expand(len(self.lasting), -1)


class Compressed:
    """MergeAR's cache: prefix, a ring of `window` slots for repeated codes, and one slot per different code.

    A repeated code of cell l lies in ring slot l mod W, where the cell that leaves the window takes its place: the
    cache holds distinct codes + W + prefix entries. Rows differ in what they hold and agree in the layout.
    `held` is the position cache.
    """

    def __init__(
        self,
        batch: int,
        cells: int,
        prefix: int,
        window: int,
        bucket: int,
        expected: int,
        most: int,
        device: torch.device,
    ) -> None:
        self.prefix, self.window, self.bucket = prefix, window, bucket
        self.most = min(most, cells - 1)
        self.look_every = LOOK_EVERY.get(device.type, 32)
        self.bound = 0
        self.base = prefix + window
        self.slots = self.base + min(expected, self.most)
        self.distinct = DistinctCodes(batch, cells, device)
        self.ring = torch.zeros(batch, window, dtype=torch.bool, device=device)
        self.front = torch.ones(batch, prefix, dtype=torch.bool, device=device)
        self.index = torch.arange(self.base + cells, device=device)
        self.positions = torch.arange(self.base + cells, device=device).repeat(batch, 1)

    def place(self, cell: int, codes: Tensor) -> Place:
        """The place of raster cell `cell` with codes (B,); `slots` grows where the cache must."""
        rank = self.distinct.count
        new = self.distinct.observe(codes)
        slot = torch.where(new, self.base + rank, self.prefix + cell % self.window)[:, None]
        self.ring[:, cell % self.window] = ~new
        self.positions.scatter_(1, slot, self.prefix + cell)
        if cell % self.look_every == 0:
            self.bound = int(self.distinct.count.max()) + self.look_every - 1
        visible = self.base + min(_rounded(min(self.bound, self.most), self.bucket), self.most)
        if visible > self.slots:
            self.slots = self.base + min(_rounded(visible - self.base, 32), self.most)
        filled = self.index[: visible - self.base] < self.distinct.count[:, None]
        mask = torch.cat([self.front, self.ring, filled], 1)
        return Place(slot, visible, mask[:, None])

    def held(self, slots: int) -> Tensor:
        """(B, slots) int64: which place of the sequence each slot holds; anything where it holds nothing."""
        return self.positions[:, :slots]


def sequence_mask(codes: Tensor, window: int | None, prefix: int) -> Tensor:
    """What the prefix and cells with codes (B, M) see, (B or 1, P + M, P + M) bool."""
    if window is None:
        total = prefix + codes.shape[1]
        return torch.ones(1, total, total, dtype=torch.bool, device=codes.device).tril()
    return mergear_mask(first_occurrences(codes), window, prefix)


def _rounded(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple
