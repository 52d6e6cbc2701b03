"""The grid tokens of images, computed once for allocator and encoding."""

from __future__ import annotations

import torch
from torch import Tensor

from mergevq.allocation.protocol import Allocator, Menu
from mergevq.encoder import Cells
from mergevq.inputs import check_image_values
from mergevq.tokenizer import Encoded, MergeVQ


def grid_tokens(tokenizer: MergeVQ, images: Tensor, menu: Menu, known: Cells | None = None) -> Cells:
    """The grid tokens of images (B, 3, H, W) in [-1, 1], or those that are known.

    Raises `InputError` as `encode`, and for a count of the menu that the layers cannot reach.
    """
    if known is not None:
        return known
    check_image_values(images, like=tokenizer.encoder.summary_token)
    tokenizer.encoder.check(images, menu)
    return tokenizer.encoder.embed(images)


@torch.no_grad()
def encode_allocated(tokenizer: MergeVQ, images: Tensor, allocator: Allocator, constant: float) -> Encoded:
    """Encode images with the counts that an allocator chooses at a constant; the stem runs once for both.

    The codes are those of `tokenizer.encode(images, keep=counts)`. Raises `InputError` as `grid_tokens`.
    """
    cells = grid_tokens(tokenizer, images, allocator.menu)
    counts = allocator.counts(allocator.scores(tokenizer, images, cells), constant)
    return tokenizer.encode_cells(cells, counts)
