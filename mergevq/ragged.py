"""A kept count for every image: batches whose images hold different numbers of tokens, padded at the end.

Each image gets what it gets alone: on a CPU images of equal count are computed together, on a GPU all are, and what is
padded has no part in any result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.inputs import readable

NO_TOKEN = -1  # the index of a padded position


def in_one_pass(device: torch.device) -> bool:
    """Whether images of different counts go through the encoder's blocks together, padded, and not count by count.

    A GPU waits for its kernels to be launched, so few large ones are fastest; a CPU would compute what is padded.
    """
    return device.type == "cuda"


def rows_by_count(counts: Sequence[int]) -> dict[int, list[int]]:
    """Kept count -> the positions in the batch of the images that keep so many, counts ascending."""
    rows: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        rows.setdefault(count, []).append(row)
    return dict(sorted(rows.items()))


def joined(parts: Sequence[Tensor], rows: Sequence[Sequence[int]], *, dim: int | None, fill: float) -> Tensor:
    """Parts of a batch as one tensor, in the batch's order; gradients flow.

    `parts`: tensors (b, ...), one for each list of `rows`, that differ in the length of `dim` at most; shorter ones
    get `fill` at the end of it. `dim` None: all have the same shape but b.
    """
    if dim is not None:
        longest = max(part.shape[dim] for part in parts)
        parts = [_padded(part, dim, longest, fill) for part in parts]
    order = torch.tensor([row for group in rows for row in group], device=parts[0].device)
    return torch.cat(list(parts))[order.argsort()]


def token_counts(indices: Tensor) -> Tensor:
    """The kept counts (B,) int64 of indices (B, K) that are padded with -1 at the end."""
    return (indices != NO_TOKEN).sum(1)


def checked_counts(indices: Tensor, vocabulary: int) -> list[int] | None:
    """The kept counts of code indices (B, K) padded with -1; None where nothing is padded. Waits for the device, once.

    Also None where the values cannot be read: within a CUDA graph or a compiled program. Raises `InputError` for -1
    before an image's last token, for an image without tokens, and for indices outside [0, V).
    """
    if indices.numel() == 0 or not readable(indices):
        return None
    token = indices != NO_TOKEN
    misplaced = (token[:, 1:] & ~token[:, :-1]).any()
    ends = torch.stack([misplaced.to(indices.dtype), *torch.aminmax(indices.where(token, 0))])
    some_misplaced, low, high, *counts = torch.cat([ends, token.sum(1)]).tolist()
    if min(counts) == 0:
        raise InputError(f"image {counts.index(0)} of the batch has no token: give the codes of `encode`")
    if some_misplaced:
        raise InputError(
            f"code indices hold {NO_TOKEN} before a token: only the end of an image's codes is padded with it"
        )
    if low < 0 or high >= vocabulary:
        raise InputError(f"code indices must lie in 0..{vocabulary - 1}, got {low}..{high}")
    return None if min(counts) == indices.shape[1] else counts


def _padded(part: Tensor, dim: int, length: int, fill: float) -> Tensor:
    missing = length - part.shape[dim]
    if not missing:
        return part
    shape = list(part.shape)
    shape[dim] = missing
    return torch.cat([part, part.new_full(shape, fill)], dim)
