"""Token merging of a batch whose images keep different counts, in one pass: every layer runs once for all images.

Images lie in the batch by ascending count; each holds its tokens first, then padding of size 0, which attention weighs
with 0 and no match chooses. Only the choice of the most similar pairs looks at the images of each count by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows(NamedTuple):
    """Images `start` to `stop` of the batch, which have `tokens` tokens before a layer and merge `r` of them."""

    start: int
    stop: int
    tokens: int
    r: int


class RaggedLayer(NamedTuple):
    """The merging of one layer: `rows` cover the batch in order; `lengths` (B,) int64 are the tokens of each image."""

    rows: tuple[Rows, ...]
    lengths: Tensor

    @property
    def longest(self) -> int:
        """The tokens of the longest image after the merge."""
        return max(rows.tokens - rows.r for rows in self.rows)


def ragged_layers(
    tokens: int, schedules: Sequence[tuple[int, Sequence[int]]], device: torch.device
) -> list[RaggedLayer | None]:
    """The merging of each layer of images that all begin with `tokens` tokens; None where no image merges any.

    `schedules`: for each count, in the batch's order, how many images keep it and the tokens that each layer merges.
    """
    layers: list[tuple[Rows, ...]] = []
    lengths = [tokens] * len(schedules)
    for merged in zip(*(schedule for _, schedule in schedules), strict=True):
        start, rows = 0, []
        for index, ((images, _), r) in enumerate(zip(schedules, merged, strict=True)):
            rows.append(Rows(start, start + images, lengths[index], r))
            lengths[index] -= r
            start += images
        layers.append(tuple(rows))
    table = torch.tensor(
        [[group.tokens for group in rows for _ in range(group.start, group.stop)] for rows in layers]
    )
    on_device = table.to(device)  # of all layers at once: one copy
    return [
        RaggedLayer(rows, lengths) if any(group.r for group in rows) else None
        for rows, lengths in zip(layers, on_device, strict=True)
    ]


@torch.no_grad()
def slots_each(metric: Tensor, layer: RaggedLayer) -> Tensor:
    """(B, T) int64: each token's position after the merge; padding goes to `layer.longest`, behind the last token.

    `metric` (B, T, C) as for `merging.match`, which each image's matches equal; the first token is protected.
    """
    metric = F.normalize(metric.float(), dim=-1)
    even, odd = metric[:, ::2], metric[:, 1::2]
    lengths = layer.lengths[:, None]
    positions = torch.arange(metric.shape[1], device=metric.device)
    no_even, no_odd = positions[::2] >= lengths, positions[1::2] >= lengths
    best, partner = (even @ odd.transpose(1, 2)).masked_fill_(no_odd[:, None], -torch.inf).max(dim=-1)
    best[:, 0] = -torch.inf
    taken = torch.zeros_like(best, dtype=torch.bool)
    for start, stop, tokens, r in layer.rows:
        if r:  # over as many proposals as these images have, so that ties fall as they do alone
            chosen = best[start:stop, : (tokens + 1) // 2].topk(r, dim=-1).indices
            taken[start:stop].scatter_(1, chosen, True)
    kept = ~(taken | no_even)
    odd_slots = kept.sum(1, keepdim=True) + torch.arange(odd.shape[1], device=metric.device)
    even_slots = torch.where(taken, odd_slots.gather(1, partner), kept.cumsum(1) - 1)
    out = torch.empty(metric.shape[:2], dtype=torch.int64, device=metric.device)
    out[:, ::2] = even_slots.masked_fill_(no_even, layer.longest)
    out[:, 1::2] = odd_slots.masked_fill_(no_odd, layer.longest)
    return out


def merge_each(slots: Tensor, tokens: Tensor, size: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """(B, T, D), sizes (B, T), 0 where padded -> size-weighted means (B, `longest`, D) and summed sizes.

    `slots` (B, T) as of `slots_each`. A padded mean is 0.
    """
    weighted = torch.cat(
        [tokens * size[..., None].to(tokens.dtype), size[..., None].to(tokens.dtype)], dim=-1
    )
    batch, _, width = weighted.shape
    out = weighted.new_zeros(batch, longest + 1, width)
    out = out.scatter_add(1, slots[..., None].expand(-1, -1, width), weighted)[:, :longest]
    summed = out[..., -1]
    return out[..., :-1] / summed.clamp(min=1)[..., None], summed
