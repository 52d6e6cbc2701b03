"""Decoding all cells in raster order: plain, or as MergeAR with a cache that forgets repeated codes (section 4.1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mergevq.generation.cache_layout import Compressed, Whole, sequence_mask
from mergevq.generation.cfg import Drawing
from mergevq.generation.config import MergeARConfig
from mergevq.generation.graphs import Graphs
from mergevq.generation.guidance import guided_steps
from mergevq.generation.kv_cache import KVCache

if TYPE_CHECKING:
    from mergevq.generation.model import Generator


def decode(
    generator: Generator,
    drawing: Drawing,
    labels: Tensor,
    *,
    keep: int,
    numbers: Tensor,
    compress: bool,
    limit_distinct: bool,
) -> tuple[Tensor, int, int]:
    """Codes (B, N) of labels (B,) with `numbers` (B, N, S); the passes it took, and the cache's bytes at their peak."""
    config, device, transformer = generator.config, labels.device, generator.transformer
    batch, count = len(labels), config.grid_tokens
    fractions = [cell / count for cell in range(count)]
    guided = guided_steps(drawing.guidance, fractions, len(config.sub_bits))
    scales = drawing.scales(fractions, device)
    prefix, nobody = (generator.prefix(who, keep) for who in (labels, torch.full_like(labels, -1)))
    length = prefix.shape[1]
    rotation = generator.sequence_rotation(length, generator.cell_rotation())
    codes = torch.zeros(batch, count, dtype=torch.int64, device=device)
    window = config.window if isinstance(config, MergeARConfig) else None
    layout: Whole | Compressed
    if window is not None and compress:
        most = keep if limit_distinct else count
        layout = Compressed(batch, count, length, window, generator.bucket, keep, most, device)
    else:
        layout = Whole(batch, count, length, window, generator.bucket, device)
    cache = transformer.cache(batch, layout.slots, prefix)
    peak, halves, graphs = 0, 1, Graphs(device)

    for cell in range(count):
        if guided and cell in (guided.start, guided.stop):
            graphs.forget()
        if guided and cell == guided.start:
            fed = codes[:, : cell - 1] if cell else None
            _add_unconditional(generator, cache, layout, nobody, fed, rotation, window)
            halves = 2
        elif guided and cell == guided.stop:
            cache.keep_rows(batch)
            halves = 1
        if cell == 0:
            x = prefix if halves == 1 else torch.cat([prefix, nobody])
            turns, slots, visible, mask = rotation[:length], layout.index[:length], length, None
            if length > 1:
                mask = sequence_mask(codes[:, :0], None, length)
        else:
            slots, visible, mask = layout.place(cell - 1, codes[:, cell - 1])
            if layout.slots > cache.slots:
                cache.grow(layout.slots)
                graphs.forget()
            x = generator.tokens.embed(codes[:, cell - 1, None]).repeat(halves, 1, 1)
            turns = rotation[length + cell - 1 : length + cell]
            if slots.ndim == 2:
                slots = slots.repeat(halves, 1)
            if mask is not None and mask.shape[0] > 1:
                mask = mask.repeat(halves, 1, 1)
        peak = max(peak, cache.num_bytes)
        step = partial(transformer.step, cache=cache, visible=visible)
        hidden = graphs(visible, step, x, turns, slots, mask)[:, -1]
        seen = None
        if limit_distinct and cell:
            full = layout.distinct.count[:, None] >= keep
            seen = torch.where(full, layout.distinct.codes, -1)
        codes[:, cell] = graphs("draw", drawing.draw, hidden, numbers[:, cell], scales[cell], seen)
    return codes, count, peak


def _add_unconditional(
    generator: Generator,
    cache: KVCache,
    layout: Whole | Compressed,
    nobody: Tensor,
    fed: Tensor | None,
    rotation: Tensor,
    window: int | None,
) -> None:
    """Give the cache a second half for the sequences without a class, holding what the first half holds.

    `fed`: the cells' codes (B, M) that the cache has seen; None before the prefix.
    """
    if fed is None:
        cache.replace(lambda held: torch.cat([held, torch.zeros_like(held)]))
        return
    transformer = generator.transformer
    x = torch.cat([nobody, generator.tokens.embed(fed)], 1)
    total = x.shape[1]
    whole = transformer.cache(len(x), total, x)
    mask = sequence_mask(fed, window, nobody.shape[1])
    place = torch.arange(total, device=x.device)
    transformer.step(x, rotation[:total], place, mask, cache=whole, visible=total)
    index = layout.held(cache.slots).clamp(max=total - 1)[:, None, :, None]

    def joined(held: Tensor, other: Tensor) -> Tensor:
        return torch.cat([held, other.gather(2, index.expand_as(held))])

    cache.replace(joined, whole)
