"""The passes of `group_norm` on an NVIDIA GPU.

Statistics are in float32, of deviations from the mean of each tile, merged as Chan, Golub and LeVeque 1983.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mergevq.kernels.terms import Terms

CHUNKS = (
    512  # parts of a map whose statistics are taken side by side, at the most; few would leave memory waiting
)
TILE = 8192  # values that a program holds at once

# Sizes of maps are not specialised: a kernel is compiled for each width, and not again for each view.


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, out: Tensor
) -> Terms:
    """Write the norm of x (B, C, H, W) channels-last to `out`; returns the terms that it was computed with."""
    mean, rstd = _statistics(x, groups, eps)
    terms = Terms(mean, rstd, weight, bias)
    _launch_apply(x, None, terms, None, out, silu)
    return terms


def backward(x: Tensor, grad: Tensor, terms: Terms, silu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of x; and (2, B, C) float32, sums over pixels: of dz, the gradient before SiLU, and of dz times the normed value."""
    sums = _gradient_sums(x, grad, terms, silu)
    batch, channels, height, width = x.shape
    groups = terms.mean.shape[1]
    by_group = (sums * terms.weight.float()).view(2, batch, groups, -1).sum(-1)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    _launch_apply(x, grad, terms, by_group / (height * width * channels // groups), out, silu)
    return out, sums


def _tiles(x: Tensor) -> tuple[int, int, int, int]:
    """(values of a map, columns of a tile, rows of a tile, rows of a chunk) of channels-last x."""
    _, channels, height, width = x.shape
    columns = triton.next_power_of_2(channels)
    rows = max(1, min(TILE // columns, triton.next_power_of_2(height * width)))
    chunk = triton.cdiv(triton.cdiv(height * width, CHUNKS), rows) * rows
    return height * width, columns, rows, chunk


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation of each group, (B, groups) float32."""
    batch, channels = x.shape[:2]
    pixels, columns, rows, chunk = _tiles(x)
    chunks = triton.cdiv(pixels, chunk)
    means, squares = torch.empty(2, batch, chunks, channels, dtype=torch.float32, device=x.device)
    _chunk_statistics[(batch, chunks)](
        x, means, squares, pixels, chunk, CHANNELS=channels, COLUMNS=columns, ROWS=rows, num_warps=8
    )
    mean, rstd = torch.empty(2, batch, groups, dtype=torch.float32, device=x.device)
    _merge_statistics[(batch, groups)](
        *(means, squares, mean, rstd, pixels, chunk, chunks, eps),
        CHANNELS=channels,
        WIDTH=channels // groups,
        COLUMNS=triton.next_power_of_2(channels // groups),
        CHUNKS=triton.next_power_of_2(chunks),
    )
    return mean, rstd


def _gradient_sums(x: Tensor, grad: Tensor, terms: Terms, silu: bool) -> Tensor:
    batch, channels = x.shape[:2]
    pixels, columns, rows, chunk = _tiles(x)
    chunks = triton.cdiv(pixels, chunk)
    sums = torch.empty(2, batch, chunks, channels, dtype=torch.float32, device=x.device)
    _chunk_gradients[(batch, chunks)](
        *(x, grad, *terms, sums[0], sums[1], pixels, chunk, terms.image_stride),
        CHANNELS=channels,
        GROUPS=terms.mean.shape[1],
        COLUMNS=columns,
        ROWS=rows,
        SILU=silu,
        num_warps=8,
    )
    return sums.sum(2)


def _launch_apply(
    x: Tensor, grad: Tensor | None, terms: Terms, means: Tensor | None, out: Tensor, silu: bool
) -> None:
    """The norm of x where `grad` is None, else its gradient; `means` (2, B, groups) are those of the gradient's sums."""
    batch, channels = x.shape[:2]
    pixels, columns, rows, _ = _tiles(x)
    _apply[(batch, triton.cdiv(pixels, rows))](
        *(x, x if grad is None else grad, *terms, x if means is None else means, out, pixels),
        *(batch * terms.mean.shape[1], terms.image_stride),
        CHANNELS=channels,
        GROUPS=terms.mean.shape[1],
        COLUMNS=columns,
        ROWS=rows,
        SILU=silu,
        BACKWARD=grad is not None,
        num_warps=8,
    )


@triton.jit(do_not_specialize=["pixels", "chunk"])
def _chunk_statistics(
    x, means, squares, pixels, chunk, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    image, part = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, COLUMNS)
    is_channel = columns < CHANNELS
    end = tl.minimum((part + 1) * chunk, pixels)
    x += image.to(tl.int64) * pixels * CHANNELS
    mean = tl.zeros([COLUMNS], tl.float32)
    square = tl.zeros([COLUMNS], tl.float32)
    for start in range(part * chunk, end, ROWS):
        rows = start + tl.arange(0, ROWS)
        valid = (rows < end)[:, None] & is_channel[None, :]
        values = tl.load(x + rows[:, None] * CHANNELS + columns[None, :], mask=valid, other=0.0).to(
            tl.float32
        )
        before = (start - part * chunk).to(tl.float32)
        here = tl.minimum(end - start, ROWS).to(tl.float32)
        tile_mean = tl.sum(values, 0) / here
        deviation = tl.where(valid, values - tile_mean[None, :], 0.0)
        delta = tile_mean - mean
        mean += delta * here / (before + here)
        square += tl.sum(deviation * deviation, 0) + delta * delta * before * here / (before + here)
    offset = (image * tl.num_programs(1) + part) * CHANNELS + columns
    tl.store(means + offset, mean, mask=is_channel)
    tl.store(squares + offset, square, mask=is_channel)


@triton.jit(do_not_specialize=["pixels", "chunk", "chunks"])
def _merge_statistics(
    means,
    squares,
    mean_out,
    rstd_out,
    pixels,
    chunk,
    chunks,
    eps,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    image, group = tl.program_id(0), tl.program_id(1)
    parts, columns = tl.arange(0, CHUNKS), tl.arange(0, COLUMNS)
    valid = (parts < chunks)[:, None] & (columns < WIDTH)[None, :]
    offset = (image * chunks + parts[:, None]) * CHANNELS + group * WIDTH + columns[None, :]
    part_means = tl.load(means + offset, mask=valid, other=0.0)
    part_squares = tl.load(squares + offset, mask=valid, other=0.0)
    counts = tl.minimum(pixels - parts * chunk, chunk).to(tl.float32)[:, None]
    total = pixels * 1.0 * WIDTH  # Triton makes a number of a single pixel
    mean = tl.sum(tl.sum(tl.where(valid, part_means * counts, 0.0), 0), 0) / total
    deviation = part_means - mean
    spread = tl.where(valid, part_squares + counts * deviation * deviation, 0.0)
    variance = tl.sum(tl.sum(spread, 0), 0) / total
    here = image * tl.num_programs(1) + group
    tl.store(mean_out + here, mean)
    tl.store(rstd_out + here, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _loaded_terms(
    mean,
    rstd,
    weight,
    bias,
    image,
    weight_stride,
    columns,
    is_channel,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    group = image * GROUPS + columns // (CHANNELS // GROUPS)
    scale = image * weight_stride + columns
    return (
        tl.load(mean + group, mask=is_channel, other=0.0)[None, :],
        tl.load(rstd + group, mask=is_channel, other=0.0)[None, :],
        tl.load(weight + scale, mask=is_channel, other=0.0).to(tl.float32)[None, :],
        tl.load(bias + scale, mask=is_channel, other=0.0).to(tl.float32)[None, :],
    )


@triton.jit
def _gradient_before_silu(grad, z, SILU: tl.constexpr):
    if SILU:
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * sigmoid * (1.0 + z * (1.0 - sigmoid))
    return grad


@triton.jit(do_not_specialize=["pixels", "chunk"])
def _chunk_gradients(
    x,
    grad,
    mean,
    rstd,
    weight,
    bias,
    sums,
    products,
    pixels,
    chunk,
    weight_stride,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
):
    image, part = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, COLUMNS)
    is_channel = columns < CHANNELS
    end = tl.minimum((part + 1) * chunk, pixels)
    base = image.to(tl.int64) * pixels * CHANNELS
    centre, scale, w, b = _loaded_terms(
        mean, rstd, weight, bias, image, weight_stride, columns, is_channel, CHANNELS, GROUPS
    )
    summed = tl.zeros([COLUMNS], tl.float32)
    multiplied = tl.zeros([COLUMNS], tl.float32)
    for start in range(part * chunk, end, ROWS):
        rows = start + tl.arange(0, ROWS)
        valid = (rows < end)[:, None] & is_channel[None, :]
        offset = base + rows[:, None] * CHANNELS + columns[None, :]
        normed = (tl.load(x + offset, mask=valid, other=0.0).to(tl.float32) - centre) * scale
        incoming = tl.load(grad + offset, mask=valid, other=0.0).to(tl.float32)
        incoming = _gradient_before_silu(incoming, normed * w + b, SILU)
        summed += tl.sum(incoming, 0)
        multiplied += tl.sum(incoming * normed, 0)
    here = (image * tl.num_programs(1) + part) * CHANNELS + columns
    tl.store(sums + here, summed, mask=is_channel)
    tl.store(products + here, multiplied, mask=is_channel)


@triton.jit(do_not_specialize=["pixels"])
def _apply(
    x,
    grad,
    mean,
    rstd,
    weight,
    bias,
    means,
    out,
    pixels,
    second,
    weight_stride,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    image = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_channel = columns < CHANNELS
    valid = (rows < pixels)[:, None] & is_channel[None, :]
    offset = image.to(tl.int64) * pixels * CHANNELS + rows[:, None] * CHANNELS + columns[None, :]
    centre, scale, w, b = _loaded_terms(
        mean, rstd, weight, bias, image, weight_stride, columns, is_channel, CHANNELS, GROUPS
    )
    normed = (tl.load(x + offset, mask=valid, other=0.0).to(tl.float32) - centre) * scale
    z = normed * w + b
    if BACKWARD:
        incoming = tl.load(grad + offset, mask=valid, other=0.0).to(tl.float32)
        incoming = _gradient_before_silu(incoming, z, SILU) * w
        group = image * GROUPS + columns // (CHANNELS // GROUPS)
        shift = tl.load(means + group, mask=is_channel, other=0.0)[None, :]
        slope = tl.load(means + second + group, mask=is_channel, other=0.0)[None, :]
        result = scale * (incoming - shift - normed * slope)
    elif SILU:
        result = z / (1.0 + tl.exp(-z))
    else:
        result = z
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=valid)
