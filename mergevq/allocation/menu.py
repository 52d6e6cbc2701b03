"""The menu of an allocator: reachable kept counts, ascending."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mergevq.allocation.protocol import Menu
from mergevq.errors import InputError
from mergevq.merge_schedule import require_reachable
from mergevq.tokenizer import TokenizerConfig


def checked_menu(counts: Iterable[int], tokenizer: TokenizerConfig) -> Menu:
    """The counts, ascending and each once. Raises `InputError` for none, and for one that the tokenizer's layers cannot reach."""
    menu = tuple(sorted(set(counts)))
    if not menu:
        raise InputError("the menu of an allocator is empty: give the kept counts to choose from")
    for count in menu:
        require_reachable(tokenizer.grid_tokens, count, tokenizer.encoder.depth)
    return menu


def nearest_counts(wanted: Tensor, menu: Menu) -> Tensor:
    """The count of the menu that is nearest to each wanted number (B,) float64, the lower of two: (B,) int64."""
    counts = torch.tensor(menu, device=wanted.device)
    middles = (counts[1:] + counts[:-1]).double() / 2
    return counts[torch.bucketize(wanted.contiguous(), middles)]


def menu_text(menu: Menu) -> str:
    """A menu in messages: "9, 16, 25"."""
    return ", ".join(map(str, menu))
