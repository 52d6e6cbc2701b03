"""The allocator `oracle`: encodes and decodes at every count of the menu, and so knows what each is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergevq.allocation.config import OracleAllocatorConfig
from mergevq.allocation.grid_tokens import grid_tokens
from mergevq.allocation.lagrangian import lagrangian_counts, price_bracket
from mergevq.allocation.protocol import Menu
from mergevq.encoder import Cells
from mergevq.metrics.lpips import LpipsDistance
from mergevq.metrics.pixels import to_uint8
from mergevq.tokenizer import MergeVQ

Distortion = Callable[[Tensor, Tensor], Tensor]  # images and reconstructions (B, 3, H, W) in [-1, 1] -> (B,)


def squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """The mean squared error (B,) float64 of images rounded to 8 bits, in squared levels of [0, 255]: that of `Psnr`."""
    difference = to_uint8(images).double() - to_uint8(reconstructions).double()
    return difference.square().mean((1, 2, 3))


@torch.no_grad()
def distortions(
    tokenizer: MergeVQ,
    images: Tensor,
    menu: Menu,
    distortion: Distortion = squared_error,
    cells: Cells | None = None,
) -> Tensor:
    """D(K) of images (B, 3, H, W) in [-1, 1], reconstructed from their codes and true source: (B, M) float64.

    The stem runs once for all counts. Raises `InputError` as `encode`.
    """
    cells = grid_tokens(tokenizer, images, menu, cells)
    columns = [distortion(images, tokenizer.decode(tokenizer.encode_cells(cells, count))) for count in menu]
    return torch.stack([column.double() for column in columns], dim=1)


@dataclass(frozen=True)
class OracleAllocator:
    """The best count of each image at a price per token: the constant, in units of the distortion."""

    menu: Menu
    config: OracleAllocatorConfig = field(default_factory=OracleAllocatorConfig)

    def scores(self, tokenizer: MergeVQ, images: Tensor, cells: Cells | None = None) -> Tensor:
        """See `Allocator.scores`: D(K) (B, M)."""
        return distortions(tokenizer, images, self.menu, self._distortion(images.device), cells)

    def counts(self, scores: Tensor, constant: float) -> Tensor:
        """See `Allocator.counts` and `lagrangian_counts`."""
        return lagrangian_counts(scores, self.menu, constant)

    def bracket(self, scores: Tensor, budget: float) -> tuple[float, float]:
        """See `Allocator.bracket` and `price_bracket`."""
        del budget
        return price_bracket(scores, self.menu)

    def _distortion(self, device: torch.device) -> Distortion:
        files = self.config.lpips
        return squared_error if files is None else LpipsDistance(files).to(device)
