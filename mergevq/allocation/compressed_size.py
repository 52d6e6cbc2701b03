"""The allocator `compressed_size`: as many tokens as the bytes of the image's JPEG pay for."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from mergevq.allocation.config import CompressedSizeAllocatorConfig
from mergevq.allocation.menu import nearest_counts
from mergevq.allocation.protocol import Menu
from mergevq.encoder import Cells
from mergevq.metrics.pixels import to_uint8
from mergevq.tokenizer import MergeVQ


@dataclass(frozen=True)
class CompressedSizeAllocator:
    """Tokens in proportion to the bytes that the image needs as JPEG; the constant is tokens per byte.

    A uniform grey image of the same size costs headers and tables alone: these bytes are taken off, which of small images are
    nearly all.
    """

    menu: Menu
    config: CompressedSizeAllocatorConfig = field(default_factory=CompressedSizeAllocatorConfig)

    def scores(self, tokenizer: MergeVQ, images: Tensor, cells: Cells | None = None) -> Tensor:
        """See `Allocator.scores`: bytes (B,) beyond those of a uniform image, at least 1."""
        del tokenizer, cells
        pixels = to_uint8(images).permute(0, 2, 3, 1).cpu()
        least = self._bytes(torch.full_like(pixels[0], 128)) if len(pixels) else 0
        sizes = [max(1, self._bytes(image) - least) for image in pixels]
        return torch.tensor(sizes, dtype=torch.float64, device=images.device)

    def counts(self, scores: Tensor, constant: float) -> Tensor:
        """See `Allocator.counts`: the count of the menu nearest to constant * bytes."""
        return nearest_counts(scores * constant, self.menu)

    def bracket(self, scores: Tensor, budget: float) -> tuple[float, float]:
        """See `Allocator.bracket`: no tokens for a byte, and the whole menu for the smallest image."""
        del budget
        return 0.0, self.menu[-1] / float(scores.min())

    def _bytes(self, pixels: Tensor) -> int:
        # (H, W, 3) uint8. Pillow's defaults but for the quality: Huffman tables of the standard, chroma halved.
        with io.BytesIO() as file:
            Image.fromarray(pixels.numpy()).save(file, format="JPEG", quality=self.config.quality)
            return file.tell()
