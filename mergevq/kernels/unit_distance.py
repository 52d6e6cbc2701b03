"""The weighted squared distance of two channels-last maps whose pixels are first made unit vectors, forward and backward.

LPIPS compares the widest maps of VGG16 so. PyTorch makes a dozen float32 maps on the way, forward and backward; here each
pass reads both maps once, computes in float32, and nothing but the maps themselves is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # values of one map that a program holds at once


class ChannelsLastUnitDistance(torch.autograd.Function):
    """`apply(found, wanted, weight, floor)`: maps (B, C, H, W) channels-last, weight (C,) -> distances (B,) float32.

    The mean over pixels of sum_c weight_c (f_c / |f| - w_c / |w|)^2, with |x| = sqrt(sum x^2 + floor). Differentiable once,
    in `found` alone.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor, weight: Tensor, floor: float) -> Tensor:
        batch, channels, height, width = found.shape
        columns, rows, parts = _tiles(found)
        sums = torch.empty(batch, parts, dtype=torch.float32, device=found.device)
        _distances[(batch, parts)](
            *(found, wanted, weight, sums, height * width, floor),
            CHANNELS=channels,
            COLUMNS=columns,
            ROWS=rows,
            num_warps=8,
        )
        ctx.save_for_backward(found, wanted, weight)
        ctx.floor = floor
        return sums.sum(1) / (height * width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found, wanted, weight = ctx.saved_tensors
        batch, channels, height, width = found.shape
        columns, rows, parts = _tiles(found)
        out = torch.empty_like(found, memory_format=torch.channels_last)
        _gradient[(batch, parts)](
            *(found, wanted, weight, (grad / (height * width)).float().contiguous(), out),
            *(height * width, ctx.floor),
            CHANNELS=channels,
            COLUMNS=columns,
            ROWS=rows,
            num_warps=8,
        )
        return out, None, None, None


def _tiles(x: Tensor) -> tuple[int, int, int]:
    """(columns of a tile, its rows, tiles of a map) of channels-last x."""
    _, channels, height, width = x.shape
    columns = triton.next_power_of_2(channels)
    rows = max(1, min(TILE // columns, triton.next_power_of_2(height * width)))
    return columns, rows, triton.cdiv(height * width, rows)


@triton.jit
def _unit(values, floor):
    factor = 1.0 / tl.sqrt(tl.sum(values * values, 1) + floor)
    return values * factor[:, None], factor


@triton.jit(do_not_specialize=["pixels"])
def _distances(
    found,
    wanted,
    weight,
    sums,
    pixels,
    floor,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    image, part = tl.program_id(0), tl.program_id(1)
    rows = part * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    valid = (rows < pixels)[:, None] & (columns < CHANNELS)[None, :]
    offset = image.to(tl.int64) * pixels * CHANNELS + rows[:, None] * CHANNELS + columns[None, :]
    one, _ = _unit(tl.load(found + offset, mask=valid, other=0.0).to(tl.float32), floor)
    other, _ = _unit(tl.load(wanted + offset, mask=valid, other=0.0).to(tl.float32), floor)
    w = tl.load(weight + columns, mask=columns < CHANNELS, other=0.0).to(tl.float32)
    difference = one - other
    total = tl.sum(tl.sum(difference * difference * w[None, :], 1), 0)
    tl.store(sums + image * tl.num_programs(1) + part, total)


@triton.jit(do_not_specialize=["pixels"])
def _gradient(
    found,
    wanted,
    weight,
    grad,
    out,
    pixels,
    floor,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    image, part = tl.program_id(0), tl.program_id(1)
    rows = part * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    valid = (rows < pixels)[:, None] & (columns < CHANNELS)[None, :]
    offset = image.to(tl.int64) * pixels * CHANNELS + rows[:, None] * CHANNELS + columns[None, :]
    one, factor = _unit(tl.load(found + offset, mask=valid, other=0.0).to(tl.float32), floor)
    other, _ = _unit(tl.load(wanted + offset, mask=valid, other=0.0).to(tl.float32), floor)
    w = tl.load(weight + columns, mask=columns < CHANNELS, other=0.0).to(tl.float32)
    slope = (
        2.0 * w[None, :] * (one - other)
    )  # by the unit vector; what lies along it has no effect on the map
    along = tl.sum(slope * one, 1)
    result = tl.load(grad + image) * factor[:, None] * (slope - along[:, None] * one)
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=valid)
