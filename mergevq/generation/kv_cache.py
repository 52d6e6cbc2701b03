"""The key-value cache of decoding, in slots allocated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """Per layer keys and values (B, heads, slots, head_dim), preallocated. A cache layout knows what a slot holds."""

    def __init__(
        self, layers: int, batch: int, heads: int, slots: int, head_dim: int, *, like: Tensor
    ) -> None:
        shape = (batch, heads, slots, head_dim)
        self.keys = [like.new_zeros(shape) for _ in range(layers)]
        self.values = [like.new_zeros(shape) for _ in range(layers)]

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def at(self, slots: Tensor, visible: int) -> list[LayerCache]:
        """One step's view, layer by layer: new entries go to `slots`, the first `visible` slots are attended to."""
        return [LayerCache(k, v, slots, visible) for k, v in zip(self.keys, self.values, strict=True)]

    def replace(self, change: Callable[..., Tensor], *others: KVCache) -> None:
        """Replace each tensor by `change(tensor, *those of others)`, in turn: at most one exists twice."""
        for tensors, rest in (
            (self.keys, [other.keys for other in others]),
            (self.values, [other.values for other in others]),
        ):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = change(tensor, *(other[layer] for other in rest))

    def grow(self, slots: int) -> None:
        """Add slots up to `slots`; their contents are zero."""
        self.replace(lambda cached: F.pad(cached, (0, 0, 0, slots - cached.shape[2])))

    def keep_rows(self, rows: int) -> None:
        """Drop all but the first `rows` sequences."""
        self.replace(lambda cached: cached[:rows].contiguous())


class LayerCache(NamedTuple):
    """One layer of a cache during one step.

    `slots`: (T,) int64, or (B, T) where the rows differ: where the T new entries go. `visible`: how many slots are
    read, a number known to the host.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    visible: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new entries (B, heads, T, head_dim); returns the visible keys and values."""
        for cached, new in ((self.keys, keys), (self.values, values)):
            if self.slots.ndim == 1:
                cached.index_copy_(2, self.slots, new.to(cached.dtype))
            else:
                index = self.slots[:, None, :, None].expand_as(new)
                cached.scatter_(2, index, new.to(cached.dtype))
        return self.keys[:, :, : self.visible], self.values[:, :, : self.visible]
