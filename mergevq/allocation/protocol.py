"""The interface of allocators.

What an allocator sees in an image (`scores`) depends on that image alone; its kept count (`counts`) depends on these scores and
on one constant, which `calibrate` finds for a wanted mean. So an image has the same count in any batch, on any worker.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mergevq.encoder import Cells
from mergevq.tokenizer import MergeVQ

Menu = tuple[int, ...]  # the kept counts to choose from, ascending


class Allocator(Protocol):
    """A choice of a kept count for each image, out of a menu."""

    @property
    def menu(self) -> Menu:
        """The kept counts to choose from, ascending."""

    def scores(self, tokenizer: MergeVQ, images: Tensor, cells: Cells | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> scores (B,) or (B, M) float64 on their device, M counts of the menu.

        `cells`: their grid tokens, `encoder.embed(images)`, where they are known already.
        """

    def counts(self, scores: Tensor, constant: float) -> Tensor:
        """Scores -> kept counts (B,) int64 of the menu; their mean is monotone in the constant."""

    def bracket(self, scores: Tensor, budget: float) -> tuple[float, float]:
        """The constants at which images of these scores have the fewest and the most tokens.

        Raises `InputError` for a budget that no constant between them comes near.
        """
