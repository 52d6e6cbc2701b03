"""MergeAR's attention mask: a cell sees the newest cells, and of the older ones the first with each code (section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def first_occurrences(names: Tensor) -> Tensor:
    """(B, N) int64 -> (B, N) bool: no earlier cell of the row has the same value."""
    cells = names.shape[1]
    earlier = torch.ones(cells, cells, dtype=torch.bool, device=names.device).tril(-1)
    return ~((names[:, :, None] == names[:, None, :]) & earlier).any(-1)


def mergear_mask(first: Tensor, window: int, prefix: int) -> Tensor:
    """The mask (B, T, T) bool of T = `prefix` + N inputs, from the first occurrences (B, N) among the cells.

    Input prefix + l holds cell l and predicts cell l + 1. It sees the prefix, itself with the window - 1 cells
    before it (the `window` cells before the predicted one), and every older cell that is a first occurrence
    (equation 12, Figure 6a).
    """
    batch, cells = first.shape
    total = prefix + cells
    index = torch.arange(total, device=first.device)
    age = index[:, None] - index
    recent = (age >= 0) & (age < window)
    is_first = torch.cat([first.new_ones(batch, prefix), first], 1)
    return (recent | is_first[:, None, :]) & (age >= 0)
