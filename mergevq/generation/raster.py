"""Decoding of all cells in raster order: plain, or as MergeAR with a cache that drops repeated codes (section 4.1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mergevq.cuda_graphs import CudaGraphs
from mergevq.generation.cache_layout import CompressedLayout, DenseLayout, sequence_mask
from mergevq.generation.code_sampler import CodeSampler
from mergevq.generation.config import MergeARConfig
from mergevq.generation.kv_cache import KVCache
from mergevq.generation.model import Generator
from mergevq.generation.sampling_config import guided_steps


def decode(
    generator: Generator,
    sampler: CodeSampler,
    labels: Tensor,
    *,
    keep: int | Tensor,
    uniforms: Tensor,
    compress: bool,
    limit_distinct: bool,
) -> tuple[Tensor, int, int]:
    """Codes (B, N) of labels (B,) by `uniforms` (B, N, S); the passes through the transformer; the cache's peak bytes.

    `keep`: one kept count for all, or (B,) int64, one for each.
    """
    config, device, transformer = generator.config, labels.device, generator.transformer
    batch, count = len(labels), config.grid_tokens
    fractions = [cell / count for cell in range(count)]
    guided = guided_steps(sampler.guidance, fractions, len(config.sub_bits))
    scales = sampler.scales(fractions, device)
    prefix, uncond_prefix = (generator.prefix(y, keep) for y in (labels, torch.full_like(labels, -1)))
    length = prefix.shape[1]
    rotation = generator.sequence_rotation(length, generator.cell_rotation())
    codes = torch.zeros(batch, count, dtype=torch.int64, device=device)
    window = config.window if isinstance(config, MergeARConfig) else None
    compressed = window is not None and compress
    most = int(keep.max()) if isinstance(keep, Tensor) else keep
    limits = keep[:, None] if isinstance(keep, Tensor) else keep
    layout = _layout(generator, batch, length, most, compressed, most if limit_distinct else count, device)
    cache = transformer.cache(batch, layout.slots, prefix)
    peak, halves, graphs = 0, 1, CudaGraphs(device)

    for cell in range(count):
        if guided and cell in (guided.start, guided.stop):
            graphs.forget()
        if guided and cell == guided.start:
            cached_codes = codes[:, : cell - 1] if cell else None
            _add_unconditional(generator, cache, layout, uncond_prefix, cached_codes, rotation, window)
            halves = 2
        elif guided and cell == guided.stop:
            cache.keep_rows(batch)
            halves = 1
        if cell == 0:
            x = prefix if halves == 1 else torch.cat([prefix, uncond_prefix])
            step_rotation, slots, visible, mask = rotation[:length], layout.index[:length], length, None
            if length > 1:
                mask = sequence_mask(codes[:, :0], None, length)
        else:
            slots, visible, mask = layout.allocate(cell - 1, codes[:, cell - 1])
            if layout.slots > cache.slots:
                cache.grow(layout.slots)
                graphs.forget()
            x = generator.tokens.embed(codes[:, cell - 1, None]).repeat(halves, 1, 1)
            step_rotation = rotation[length + cell - 1 : length + cell]
            if slots.ndim == 2:
                slots = slots.repeat(halves, 1)
            if mask is not None and mask.shape[0] > 1:
                mask = mask.repeat(halves, 1, 1)
        peak = max(peak, cache.num_bytes)
        step = partial(transformer.step, cache=cache, visible=visible)
        hidden = graphs(visible, step, x, step_rotation, slots, mask)[:, -1]
        allowed = None
        if limit_distinct and cell:
            full = layout.distinct.count[:, None] >= limits
            allowed = torch.where(full, layout.distinct.codes, -1)
        codes[:, cell] = graphs("draw", sampler.draw, hidden, uniforms[:, cell], scales[cell], allowed)
    return codes, count, peak


def _layout(
    generator: Generator,
    batch: int,
    prefix: int,
    keep: int,
    compressed: bool,
    capacity: int,
    device: torch.device,
) -> DenseLayout | CompressedLayout:
    """The layout of the cache for `batch` sequences; a compressed one has room for `capacity` different codes."""
    config, bucket = generator.config, generator.bucket
    window = config.window if isinstance(config, MergeARConfig) else None
    if compressed:
        assert window is not None
        return CompressedLayout(batch, config.grid_tokens, prefix, window, bucket, keep, capacity, device)
    return DenseLayout(batch, config.grid_tokens, prefix, window, bucket, device)


def _add_unconditional(
    generator: Generator,
    cache: KVCache,
    layout: DenseLayout | CompressedLayout,
    uncond_prefix: Tensor,
    cached_codes: Tensor | None,
    rotation: Tensor,
    window: int | None,
) -> None:
    """Give the cache a second half for the unconditional sequences, laid out as the first half.

    `cached_codes` (B, M): the codes of the cells in the cache; None before the prefix.
    """
    if cached_codes is None:
        cache.replace(lambda cached: torch.cat([cached, torch.zeros_like(cached)]))
        return
    transformer = generator.transformer
    x = torch.cat([uncond_prefix, generator.tokens.embed(cached_codes)], 1)
    total = x.shape[1]
    dense = transformer.cache(len(x), total, x)
    mask = sequence_mask(cached_codes, window, uncond_prefix.shape[1])
    positions = torch.arange(total, device=x.device)
    transformer.step(x, rotation[:total], positions, mask, cache=dense, visible=total)
    index = layout.slot_to_position(cache.slots).clamp(max=total - 1)[:, None, :, None]

    def joined(conditional: Tensor, unconditional: Tensor) -> Tensor:
        return torch.cat([conditional, unconditional.gather(2, index.expand_as(conditional))])

    cache.replace(joined, dense)
