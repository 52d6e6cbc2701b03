"""The allocator `fixed`: one kept count for all images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mergevq.allocation.menu import menu_text
from mergevq.allocation.protocol import Menu
from mergevq.encoder import Cells
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ


@dataclass(frozen=True)
class FixedAllocator:
    """One kept count for all: the constant is that count.

    A mean between two counts of the menu would need some images to keep one and some the other, for no reason that is in the
    images: it is refused.
    """

    menu: Menu

    def scores(self, tokenizer: MergeVQ, images: Tensor, cells: Cells | None = None) -> Tensor:
        """See `Allocator.scores`: nothing is seen in images, (B,) zeros."""
        del tokenizer, cells
        return torch.zeros(len(images), dtype=torch.float64, device=images.device)

    def counts(self, scores: Tensor, constant: float) -> Tensor:
        """See `Allocator.counts`."""
        if constant not in self.menu:
            raise InputError(self._refusal(constant))
        return torch.full_like(scores, constant, dtype=torch.int64)

    def bracket(self, scores: Tensor, budget: float) -> tuple[float, float]:
        """See `Allocator.bracket`: the budget, which must be a count of the menu."""
        del scores
        if budget not in self.menu:
            raise InputError(self._refusal(budget))
        return budget, budget

    def _refusal(self, count: float) -> str:
        below = [known for known in self.menu if known < count]
        above = [known for known in self.menu if known > count]
        nearest = menu_text((*below[-1:], *above[:1]))
        return f"the allocator fixed keeps one count for all images, and {count:g} is none of its menu: nearest are {nearest}"
